"""How a model of sequences generates, and predicts: states first, then the frame of each.

    z_0, then z_t ~ p_T(·|z_{t−1}), x_t = E[x|z_t] or a draw from p(x|z_t)

From t frames that are given, z_t is drawn from what the model believes after them, and z_{t+h} is
reached from it by jumps: by one, as far as the model's reach, else by as few as will do. No frame
in between is made (K. Gregor et al. 2019, arXiv:1806.03107, §5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

from ornstein.choice import Choice
from ornstein.errors import ConfigError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.autoencoders.codec import Likelihood
    from ornstein.autoencoders.jumps import Terms
    from ornstein.data.info import DataInfo
    from ornstein.nats import Nats
    from ornstein.noise import Noise


class StateModel(Protocol):
    """A model of sequences; x are frames [B, t, C, H, W], z states [B, state]."""

    @property
    def reach(self) -> int:
        """The longest jump that it makes in one, in frames."""

    @property
    def law(self) -> Likelihood:
        """What its decoder's outputs mean."""

    def bound(self, seen: Tensor, x: Tensor, noise: Noise) -> Terms:
        """A bound on −log p(x), by parts."""

    def state(self, x: Tensor, noise: Noise | None) -> Tensor:
        """z_t after t frames, 0 or more."""

    def states(self, x: Tensor) -> Tensor:
        """The likeliest states along the frames, [B, t, state]."""

    def jump(self, z: Tensor, frames: int, noise: Noise | None) -> Tensor:
        """The state so many frames later."""

    def mean(self, z: Tensor) -> Tensor:
        """E[x|z] of states [*, state]."""

    def sample(self, z: Tensor, noise: Noise) -> Tensor:
        """Draws from p(x|z)."""


class Rollout(Choice):
    """Generation frame by frame, in steps of 1 from the state before the first frame.

    x: whether a frame is the mean of p(x|z) or a draw from it, which has its noise.
    """

    kind: Literal["rollout"] = "rollout"
    x: Literal["mean", "draw"] = "mean"

    @property
    def steps(self) -> int | None:
        """As many as there are frames, which the data say."""
        return None

    @property
    def evaluations(self) -> int | None:
        """As many as there are frames, which the data say."""
        return None

    @property
    def words(self) -> str:
        """The sampler in a word or two."""
        return f"rollout, {self.x} of p(x|z)"

    @property
    def stem(self) -> str:
        """The same, as a part of a file's name."""
        return f"rollout-{self.x}"

    def __call__(self, model: StateModel, info: DataInfo, noise: Noise) -> Iterator[Tensor]:
        """Yield the sequences, [B, *info.shape] at the model's scale."""
        empty = torch.zeros(len(noise.ids), 0, *info.shape[1:], device=noise.ids.device)
        z, frames = model.state(empty, noise.child("start")), []
        for t in range(info.shape[0]):
            z = model.jump(z, 1, noise.child(f"step {t}"))
            law = noise.child(f"frame {t}")
            frames.append(model.mean(z) if self.x == "mean" else model.sample(z, law))
        yield torch.stack(frames, dim=1)

    @property
    def no_law(self) -> None:
        """There is one: that of the states and of x given them."""
        return None

    def likelihood(self, model: StateModel, info: DataInfo, x: Tensor, noise: Noise) -> Nats:
        """A bound on −log p(x), x [B, *info.shape] at the model's scale, from one draw of the
        states; of whole numbers it is of their probability, as in `autoencoders/bounds.py`.

        Raises: ConfigError where p(x|z) is no law.
        """
        from ornstein.nats import Nats

        law = model.law
        if law.no_law is not None:
            raise ConfigError(law.no_law)
        seen = law.seen(x, noise.child("seen"))
        target, parts = seen, {}
        if law.density and info.bins is not None and info.range is not None:
            width = (info.range[1] - info.range[0]) / (info.bins - 1)
            u = noise.child("bins").uniform(0, x.shape[1:], x.dtype)
            target = seen + width * (u - 0.5)
            parts["bins"] = torch.full((len(x),), -x[0].numel() * math.log(width), device=x.device)
        terms = model.bound(seen, target, noise.child("states"))
        parts |= {"reconstruction": terms.nats, "states": terms.kl + terms.jump}
        return Nats({name: nats.double() for name, nats in parts.items()}, exact=False)

    def reconstruct(self, model: StateModel, info: DataInfo, x: Tensor) -> Tensor:
        """E[x|z] for the likeliest state after each frame of x, all at the model's scale."""
        with torch.no_grad():
            return model.mean(model.states(x))


def predict(
    model: StateModel,
    x: Tensor,
    horizons: Sequence[int],
    noise: Noise,
    longest: int | None = None,
) -> Tensor:
    """E[x_{t+h}|z_{t+h}] for each horizon h ≥ 1, [B, len(horizons), C, H, W], after the frames x
    [B, t, C, H, W], all at the model's scale.

    All horizons start from one draw of z_t, each along a path of its own. longest: the longest jump
    that is made in one; None: the model's reach. 1 goes step by step.

    Raises: ConfigError for a horizon below 1 or jumps beyond the model's reach.
    """
    reach = model.reach if longest is None else longest
    if not 1 <= reach <= model.reach:
        raise ConfigError(
            f"this model makes jumps of 1 to {model.reach} frames, not of {reach}; write a longest "
            f"jump of at most {model.reach}"
        )
    if any(h < 1 for h in horizons):
        raise ConfigError(f"a frame is predicted 1 or more ahead; got {list(horizons)}")
    with torch.no_grad():
        start = model.state(model.law.seen(x, noise.child("seen")), noise.child("state"))
        found = []
        for h in horizons:
            z, keyed = start, noise.child(f"to {h}")
            for done in range(0, h, reach):
                z = model.jump(z, min(reach, h - done), keyed.child(f"jump from {done}"))
            found.append(z)
        return model.mean(torch.stack(found, dim=1))
