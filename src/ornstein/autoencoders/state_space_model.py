"""A state-space model trained step by step, beside which TD-VAE's jumps are measured.

    p(x, z) = Π_t p_T(z_t|z_{t−1}) p_D(x_t|z_t),    q(z|x) = Π_t q(z_t|z_{t−1}, b_t)

    −log p(x) ≤ E_q Σ_t −log p_D(x_t|z_t) + KL(q(z_t|z_{t−1}, b_t) ‖ p_T(z_t|z_{t−1}))

z_0 is learned, b_t the belief about x_1 ... x_t, and KL of the layers as in `states.py`. This is a
deep Kalman filter (R. Krishnan, U. Shalit, D. Sontag 2015, arXiv:1511.05121; 2017,
arXiv:1609.09869) whose posterior filters, as that of the recurrent state-space model does (D.
Hafner et al. 2019, arXiv:1811.04551, without its deterministic path). Nets, memory and gated maps
are TD-VAE's; a prediction h frames ahead takes h steps, and training walks along all frames.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ornstein.autoencoders.jumps import Terms
from ornstein.autoencoders.states import Layered, States
from ornstein.autoencoders.tdvae_model import FrameModule
from ornstein.noise import Noise


class StateSpaceModule(FrameModule):
    """Transition p_T and posterior q, by gated maps; see the file. As in TD-VAE the transition is
    said around z_{t−1}, and the posterior around its prior."""

    reach = 1

    def __init__(
        self,
        encoder: nn.Module,
        memory: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        posterior: States,
        transition: States,
        state: int,
    ) -> None:
        super().__init__(encoder, memory, decoder, likelihood)
        self.q, self.p_t = posterior, transition
        self.start = nn.Parameter(torch.zeros(state))

    def bound(self, seen: Tensor, x: Tensor, noise: Noise) -> Terms:
        """The bound on −log p(x) of whole sequences x [B, T, C, H, W], each part [B] (`jump` is
        zero: all divergences are in `kl`); seen: x as the belief is shown it."""
        z, states, kl = self._start(len(x)), [], torch.zeros(len(x), device=x.device)
        # All at once, since a draw of a few numbers takes as long as one of many.
        eps = noise.normal(0, (x.shape[1], z.shape[-1]), z.dtype)
        for t, b in enumerate(self.beliefs(seen)[:, 1:].unbind(1)):
            prior = self._transition(z)
            posterior: Layered = self.q(torch.cat((z, b), dim=-1), prior)
            z = posterior.at(eps[:, t])
            kl = kl + posterior.kl(prior, z)
            states.append(z)
        nats = self.frame_nats(torch.stack(states, dim=1), x).sum(1)
        return Terms(nats, kl, torch.zeros_like(kl))

    def state(self, x: Tensor, noise: Noise | None) -> Tensor:
        """z_t [B, state] after the frames x [B, t, C, H, W], drawn from the posterior step by step,
        or by its means; of t = 0 frames, z_0."""
        return self._filtered(x, noise)[-1]

    def states(self, x: Tensor) -> Tensor:
        """The means of the posterior along the frames x [B, T, C, H, W]: [B, T, state]."""
        return torch.stack(self._filtered(x, None)[1:], dim=1)

    def jump(self, z: Tensor, frames: int, noise: Noise | None) -> Tensor:
        """The state `frames` later, of z [B, state], step by step."""
        for t in range(frames):
            z = self._transition(z).draw(None if noise is None else noise.child(f"step {t}"))
        return z

    def _transition(self, z: Tensor) -> Layered:
        """p_T(z_t|z_{t−1})."""
        law: Layered = self.p_t(z, z)
        return law

    def _start(self, batch: int) -> Tensor:
        return self.start.expand(batch, -1)

    def _filtered(self, x: Tensor, noise: Noise | None) -> list[Tensor]:
        """z_0 and the states along x."""
        states = [self._start(len(x))]
        for t, b in enumerate(self.beliefs(x)[:, 1:].unbind(1)):
            z = states[-1]
            law: Layered = self.q(torch.cat((z, b), dim=-1), self._transition(z))
            states.append(law.draw(None if noise is None else noise.child(f"state {t}")))
        return states
