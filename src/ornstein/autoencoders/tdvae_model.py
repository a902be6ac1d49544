"""TD-VAE as it is learned; what it is, `autoencoders/tdvae.py` says, and `jumps.py` how it learns.

state(x_≤t)   z_t ~ p_B(·|b_t)
jump(z, d)    z_{t+d} ~ p_T(·|z_t, d), in one step as far as the jumps that were trained reach
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.autoencoders.codec import Likelihood
from ornstein.autoencoders.jumps import Terms, whole
from ornstein.autoencoders.states import Layered, States
from ornstein.noise import Noise


class FrameModule(nn.Module):
    """How frames are seen and said: what all models of sequences have.

    encoder x [N, C, H, W] -> [N, features]; memory, of these in order; decoder z [N, state] -> the
    parameters of p(x|z); likelihood, of single frames.
    """

    def __init__(
        self, encoder: nn.Module, memory: nn.Module, decoder: nn.Module, likelihood: nn.Module
    ) -> None:
        super().__init__()
        self.encoder, self.memory = encoder, memory
        self.decoder, self.likelihood = decoder, likelihood

    @property
    def law(self) -> Likelihood:
        """What the decoder's outputs mean."""
        return cast("Likelihood", self.likelihood)

    def beliefs(self, x: Tensor) -> Tensor:
        """b [B, T + 1, belief] of frames x [B, T, C, H, W], b_0 first. T may be 0."""
        batch, frames = x.shape[:2]
        if frames == 0:
            b: Tensor = self.memory(x.new_zeros(batch, 0, 1))
            return b
        e = self.encoder(x.flatten(0, 1)).view(batch, frames, -1)
        b = self.memory(e)
        return b

    def parameters_of(self, z: Tensor) -> Tensor:
        """The parameters of p(x|z), [N, multiplier · C, H, W], of states z [N, state]."""
        out: Tensor = self.decoder(z)
        return out

    def frame_nats(self, z: Tensor, x: Tensor) -> Tensor:
        """−log p(x_t|z_t) [*] of states z [*, state] and frames x [*, C, H, W]."""
        leading = z.shape[:-1]
        flat = x.reshape(-1, *x.shape[len(leading) :])
        return self.law.nats(self.parameters_of(z.flatten(0, -2)), flat).view(leading)

    def mean(self, z: Tensor) -> Tensor:
        """E[x|z] [*, C, H, W] of states z [*, state]."""
        found = self.law.mean(self.parameters_of(z.flatten(0, -2)))
        return found.view(*z.shape[:-1], *found.shape[1:])

    def sample(self, z: Tensor, noise: Noise) -> Tensor:
        """Draws from p(x|z), [B, C, H, W], of states z [B, state]."""
        return self.law.sample(self.parameters_of(z), noise)


class TDVAEModule(FrameModule):
    """The four laws, of which belief, smoothing and transition are gated maps; the fourth is what
    decoder and likelihood make. reach: the longest jump; timed: whether they are told its length.

    Smoothing is said around the belief at t₁, transition around z_t₁: what is known already, or
    stays as it is, need not be learned anew.
    """

    def __init__(
        self,
        encoder: nn.Module,
        memory: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        belief: States,
        smoothing: States,
        transition: States,
        reach: int,
        timed: bool,
    ) -> None:
        super().__init__(encoder, memory, decoder, likelihood)
        self.p_b, self.q_s, self.p_t = belief, smoothing, transition
        self.reach, self.timed = reach, timed

    def belief(self, b: Tensor) -> Layered:
        """p_B(z_t|b_t)."""
        law: Layered = self.p_b(b)
        return law

    def smoothing(self, z2: Tensor, b1: Tensor, b2: Tensor, jump: Tensor) -> Layered:
        """q_S(z_t₁|z_t₂, b_t₁, b_t₂)."""
        told = torch.cat((z2, b1, b2, self._told(jump, z2)), dim=-1)
        law: Layered = self.q_s(told, self.belief(b1))
        return law

    def transition(self, z1: Tensor, jump: Tensor) -> Layered:
        """p_T(z_t₂|z_t₁), jump = t₂ − t₁, int64 [*], 1 to `reach`."""
        told = self._told(jump, z1)
        # A jump of each length has weights of its own for the state.
        by_length = (z1.unsqueeze(-1) * told.unsqueeze(-2)).flatten(-2)
        told = torch.cat((z1, told, by_length), dim=-1)
        law: Layered = self.p_t(told, z1)
        return law

    def _told(self, jump: Tensor, like: Tensor) -> Tensor:
        """The length of a jump as one of `reach` marks, [*, reach]; [*, 0] where it is not told."""
        if not self.timed:
            return like[..., :0]
        return F.one_hot(jump - 1, self.reach).to(like)

    def bound(self, seen: Tensor, x: Tensor, noise: Noise) -> Terms:
        """The bound on −log p(x) of whole sequences x [B, T, C, H, W], each part [B]; seen: x as
        the belief is shown it."""
        return whole(self, self.beliefs(seen), x, noise)

    def state(self, x: Tensor, noise: Noise | None) -> Tensor:
        """z_t [B, state] after the frames x [B, t, C, H, W], drawn from the belief, or its mean; of
        t = 0 frames, z_0."""
        return self.belief(self.beliefs(x)[:, -1]).draw(noise)

    def states(self, x: Tensor) -> Tensor:
        """The means of the belief after each of the frames x [B, T, C, H, W]: [B, T, state]."""
        return self.belief(self.beliefs(x)[:, 1:]).draw(None)

    def jump(self, z: Tensor, frames: int, noise: Noise | None) -> Tensor:
        """The state `frames` later, of z [B, state]: one jump, up to `reach`."""
        length = torch.full((len(z),), frames, dtype=torch.int64, device=z.device)
        return self.transition(z, length).draw(noise)
