"""The adversarial term at work; what is minimised is said in `objectives/adversarial.py`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ornstein.nn.discriminator import PatchDiscriminator
from ornstein.objectives.adversarial import Adversarial


class AdversarialLoss(nn.Module):
    """Per sample, [B]: `adversarial`, which trains what made y, and `discriminator`, the hinge
    loss, which trains the discriminator."""

    def __init__(self, chosen: Adversarial, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.chosen = chosen
        self.discriminator = PatchDiscriminator(shape, chosen.channels)

    def forward(self, x: Tensor, y: Tensor, progress: float) -> dict[str, Tensor]:
        """Of data x and reconstructions y, both [B, C, H, W], at this share of the training."""
        if progress < self.chosen.start:
            # Weights without a gradient would be waited for where ranks exchange theirs.
            nothing = 0.0 * sum(p.sum() for p in self.discriminator.parameters())
            none = torch.zeros(len(x), device=x.device)
            return {"adversarial": none, "discriminator": none + nothing}
        constant = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fooled = functional_call(self.discriminator, constant, (y,))
        real, made = self.discriminator(x), self.discriminator(y.detach())
        hinge = _mean(F.relu(1 - real)) + _mean(F.relu(1 + made))
        weight = self.chosen.weight * x[0].numel()
        return {"adversarial": -weight * _mean(fooled), "discriminator": 0.5 * hinge}


def _mean(of_patches: Tensor) -> Tensor:
    """[B, 1, h, w] -> [B], float32 at least."""
    fine = of_patches.to(torch.promote_types(of_patches.dtype, torch.float32))
    return fine.flatten(1).mean(1)
