"""What a jump from t₁ to t₂ > t₁ says of the data: the bound of TD-VAE (notes eq 14).

With a belief b_t = b(x_1 ... x_t) about the past, b_0 about none, four laws

    belief p_B(z_t|b_t),  transition p_T(z_t₂|z_t₁),  frame p_D(x_t|z_t),
    smoothing q_S(z_t₁|z_t₂, b_t₁, b_t₂)

make one of a frame given those up to t₁, and a posterior of its two states:

    p(x_t₂|x_≤t₁) = ∫∫ p_B(z₁|b_t₁) p_T(z₂|z₁) p_D(x_t₂|z₂)
    q(z₁, z₂) = p_B(z₂|b_t₂) q_S(z₁|z₂, b_t₁, b_t₂)

so that −log p(x_t₂|x_≤t₁) ≤ −J,

    −J = E_q [−log p_D(x_t₂|z₂)                                            nats
              + log q_S(z₁|z₂, b_t₁, b_t₂) − log p_B(z₁|b_t₁)              kl
              + log p_B(z₂|b_t₂) − log p_T(z₂|z₁)]                         jump

(K. Gregor et al. 2019, "Temporal difference variational auto-encoder", arXiv:1806.03107, eq 6; the
notes' p_S is q_S). The gap is KL(q ‖ p(z₁,z₂|x_≤t₁, x_t₂)). If all laws are those of a state-space
model it is zero at t₂ = t₁ + 1; over a longer jump it is what the frames between add to what is
known of the two states, KL(p(z₁,z₂|x_≤t₂) ‖ p(z₁,z₂|x_≤t₁, x_t₂)).

Steps of 1 from z_0 on are a law of whole sequences, p(x) = ∫ p_B(z_0|b_0) Π p_T(z_t|z_{t−1})
p_D(x_t|z_t). Smoothing step by step from the end is a posterior of its states, which bounds it:

    −log p(x) ≤ E [log p_B(z_T|b_T) − log p_B(z_0|b_0) + Σ_t −log p_D(x_t|z_t)
                   + Σ_t log q_S(z_{t−1}|z_t, b_{t−1}, b_t) − log p_T(z_t|z_{t−1})]

z_T ~ p_B(·|b_T), z_{t−1} ~ q_S. It is tight for the exact laws, and comparable with the ELBO of a
model that is trained on it (`state_space_model.py`).

The functions below take the laws as they come: networks, or those of a linear Gaussian model.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ornstein.noise import Noise


class Law(Protocol):
    """A law of states z [*, D], of which the first dimension is the batch."""

    def draw(self, noise: Noise | None) -> Tensor:
        """A state; without noise the mean, or what stands in for it."""

    def nats(self, z: Tensor) -> Tensor:
        """−log p(z), [*]."""

    def kl(self, other: Self, z: Tensor) -> Tensor:
        """KL(self ‖ other) [*] as far as it is in closed form, for the rest at z, a draw of self:
        in expectation over that draw it is the divergence."""


class Laws(Protocol):
    """The four laws; b, z and jump (t₂ − t₁, int64) have the same leading dimensions [*]."""

    def belief(self, b: Tensor) -> Law:
        """p_B(z_t|b_t)."""

    def smoothing(self, z2: Tensor, b1: Tensor, b2: Tensor, jump: Tensor) -> Law:
        """q_S(z_t₁|z_t₂, b_t₁, b_t₂)."""

    def transition(self, z1: Tensor, jump: Tensor) -> Law:
        """p_T(z_t₂|z_t₁)."""

    def frame_nats(self, z: Tensor, x: Tensor) -> Tensor:
        """−log p_D(x_t|z_t) [*] of frames x [*, ...]."""


class Terms(NamedTuple):
    """The three parts of −J, in nats, each [*]; see the file."""

    nats: Tensor
    kl: Tensor
    jump: Tensor


def bound(laws: Laws, b1: Tensor, b2: Tensor, x2: Tensor, jump: Tensor, noise: Noise) -> Terms:
    """An estimate of −J from one draw of both states, of x2 [*, ...], the frame at t₂.

    b1, b2: the beliefs at t₁ and t₂. The divergence of q_S from p_B is taken in closed form where
    there is one.
    """
    belief = laws.belief(b2)
    z2 = belief.draw(noise.child("later state"))
    smoothing = laws.smoothing(z2, b1, b2, jump)
    z1 = smoothing.draw(noise.child("earlier state"))
    return Terms(
        laws.frame_nats(z2, x2),
        smoothing.kl(laws.belief(b1), z1),
        laws.transition(z1, jump).nats(z2) - belief.nats(z2),
    )


def whole(laws: Laws, b: Tensor, x: Tensor, noise: Noise) -> Terms:
    """An estimate of the bound on −log p(x) of sequences x [B, T, ...], one draw of all states.

    b: the beliefs [B, T + 1, width], b_0 first. Each part is [B], and what they add up to counts:
    `kl` is the divergence at z_0, `jump` all that the others cost.
    """
    one = torch.ones(len(x), dtype=torch.int64, device=x.device)
    law = laws.belief(b[:, -1])
    z = law.draw(noise.child("last state"))
    jump, states = torch.zeros_like(z[..., 0]), []
    for t in range(x.shape[1], 0, -1):
        states.append(z)
        before = laws.smoothing(z, b[:, t - 1], b[:, t], one)
        # A child for each t, since the noise of a training has steps of its own.
        earlier = before.draw(noise.child(f"state {t - 1}"))
        jump = jump + laws.transition(earlier, one).nats(z) - law.nats(z)
        z, law = earlier, before
    nats = laws.frame_nats(torch.stack(states[::-1], dim=1), x).sum(1)
    return Terms(nats, law.kl(laws.belief(b[:, 0]), z), jump)
