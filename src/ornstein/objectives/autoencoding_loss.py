"""The autoencoding objective at work; what is minimised is said in `objectives/autoencoding.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ornstein.autoencoders.codec import Anneals
from ornstein.autoencoders.discrete import Codebooks
from ornstein.objectives.autoencoding import Autoencoding, Beta, Capacity, Constrained
from ornstein.objectives.base import Context, Loss

if TYPE_CHECKING:
    from ornstein.autoencoders.codec import Code, Codec
    from ornstein.data.info import Batch, DataInfo

STEEPEST = 0.1  # by which log λ moves at most in one update


class AutoencodingLoss(nn.Module):
    """Per sample: −log p(x|z), what its code costs, and penalties, in nats.

    Metrics: `nats`, of the reconstruction; `kl`; each penalty by its name; of a codebook `used`, a
    share, and `perplexity`, over an epoch, of each of several as in `used/top`; `multiplier` of a
    constrained divergence.
    """

    multiplier: Tensor | None

    def __init__(self, chosen: Autoencoding, model: Codec, info: DataInfo) -> None:
        super().__init__()
        self.chosen, self.info = chosen, info
        held = isinstance(chosen.divergence, Constrained)
        start = torch.tensor(chosen.divergence.start) if held else None  # type: ignore[union-attr]
        self.register_buffer("multiplier", start)
        # Modules, so that a discriminator is trained, saved and averaged with the model.
        self.perceptual = None if chosen.perceptual is None else chosen.perceptual.build(info)
        self.adversarial = None if chosen.adversarial is None else chosen.adversarial.build(info)
        bottleneck: Any = model.bottleneck
        self.counted = isinstance(bottleneck, Codebooks)
        if self.counted:
            bottleneck.epoch = info.count - info.held_out

    @property
    def range(self) -> tuple[float, float]:
        """The range in which bounded data must arrive."""
        return self.chosen.range

    @property
    def looks(self) -> bool:
        """Whether `look` has something to say; see `objectives.base.Look`."""
        return self.chosen.sparsity is not None

    def look(self, model: Codec, batch: Batch, context: Context) -> Mapping[str, Tensor]:
        """The sums that a penalty needs of the whole global batch."""
        assert self.chosen.sparsity is not None
        return self.chosen.sparsity.sums(self._code(model, batch, context)[1].z)

    def forward(self, model: Codec, batch: Batch, context: Context) -> Loss:
        """The loss of one sample each; see the class."""
        chosen = self.chosen
        x, code = self._code(model, batch, context)
        parameters, law = model.decode(code.z), model.likelihood
        terms = {"nats": law.nats(parameters, x)}  # type: ignore[operator]
        if code.kl is not None:
            terms["kl"] = code.kl
        terms |= code.penalties
        if chosen.sparsity is not None:
            sums = chosen.sparsity.sums(code.z) if context.totals is None else context.totals
            terms["sparsity"] = chosen.sparsity(code.z, chosen.sparsity.mean(sums))
        if chosen.contraction is not None:
            terms["contraction"] = chosen.contraction(model, x, context.noise.child("probes"))
        if self.perceptual is not None or self.adversarial is not None:
            terms |= self._judged(x, law.mean(parameters), context)  # type: ignore[operator]
        loss = torch.zeros(len(x), device=x.device)
        for name, value in terms.items():
            loss = loss + (self._cost(value, context) if name == "kl" else value)
        count = float(len(x))
        metrics = {name: (value.detach().sum(), count) for name, value in terms.items()}
        if self.counted:
            found = model.bottleneck.report()  # type: ignore[operator]
            metrics |= {name: (value.float() * count, count) for name, value in found.items()}
        stats = dict(code.stats)
        if self.multiplier is not None:
            assert code.kl is not None  # `build` saw to it
            metrics["multiplier"] = (self.multiplier * count, count)
            stats |= {"kl": code.kl.detach().sum(), "kl/count": torch.full_like(x[0].sum(), count)}
        return Loss(loss, metrics, stats)

    @torch.no_grad()
    def after_step(self, model: Codec, stats: Mapping[str, Tensor], context: Context) -> None:
        """Move what has no gradient: codebooks, moments, the multiplier."""
        model.bottleneck.after_step(stats, context.noise.child("bottleneck"))  # type: ignore[operator]
        if isinstance(model.bottleneck, Anneals):
            model.bottleneck.anneal(context.progress)
        if self.multiplier is not None:
            rule = self.chosen.divergence
            assert isinstance(rule, Constrained)
            excess = stats["kl"] / stats["kl/count"] / rule.delta - 1
            self.multiplier *= torch.exp((rule.rate * excess).clamp(-STEEPEST, STEEPEST))

    def _code(self, model: Codec, batch: Batch, context: Context) -> tuple[Tensor, Code]:
        """What is to be said, and the code of what was seen of it."""
        noise = context.noise
        x: Tensor = model.likelihood.seen(batch.x, noise.child("binarise"))  # type: ignore[operator]
        seen = x
        if self.chosen.corruption is not None:
            seen = self.chosen.corruption(x, noise.child("corruption"), self.info)
        return x, model.encode(seen, noise.child("code"))

    def _judged(self, x: Tensor, y: Tensor, context: Context) -> dict[str, Tensor]:
        """What networks say of reconstructions y of x, each [B]."""
        terms: dict[str, Tensor] = {}
        if self.perceptual is not None and self.chosen.perceptual is not None:
            weight = self.chosen.perceptual.weight * x[0].numel()
            terms["perceptual"] = weight * self.perceptual(x, y)
        if self.adversarial is not None:
            terms |= self.adversarial(x, y, context.progress)
        return terms

    def _cost(self, kl: Tensor, context: Context) -> Tensor:
        """What a KL divergence costs, [B]."""
        rule, progress = self.chosen.divergence, context.progress
        if isinstance(rule, Beta):
            risen = min(1.0, progress / rule.warmup) if rule.warmup > 0 else 1.0
            return rule.weight * risen * kl
        if isinstance(rule, Capacity):
            capacity = rule.capacity * min(1.0, progress / rule.rise)
            return rule.weight * (kl - capacity).abs()
        assert self.multiplier is not None
        return self.multiplier.detach() * (kl - rule.delta)
