"""Averages of any length, made after training from some that were set aside during it.

A power average of exponent γ after n samples weights the weights that training had at τ samples by

    p_{γ,n}(τ) = (γ+1) τ^γ / n^(γ+1),   0 < τ ≤ n

A sum Σ_i c_i θ̄_i of snapshots of such averages has the weighting Σ_i c_i p_i, so an average that
nobody kept is the sum whose weighting is nearest to its own: with A_ij = ⟨p_i, p_j⟩, b_i = ⟨p_i, p⟩
and Σ c = 1, which keeps constants what they are,

    minimise cᵀA c − 2 bᵀc,     ⟨p_i, p_j⟩ = (γ_i+1)(γ_j+1)/(γ_i+γ_j+1) · m^(γ_i+γ_j+1)
                                              / (n_i^(γ_i+1) n_j^(γ_j+1)),   m = min(n_i, n_j)

T. Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models",
arXiv:2312.02696, §3.2 and appendix C.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ornstein import checkpoint as checkpoints
from ornstein.optim import Average, Power


class Profile(NamedTuple):
    """The weighting of a power average: its exponent γ, and the samples seen when it was taken."""

    gamma: float
    samples: int


def inner(a: Profile, b: Profile) -> float:
    """⟨p_a, p_b⟩ over [0, ∞), per sample."""
    power = a.gamma + b.gamma + 1
    logs = (
        power * np.log(min(a.samples, b.samples))
        - (a.gamma + 1) * np.log(a.samples)
        - (b.gamma + 1) * np.log(b.samples)
    )
    return float((a.gamma + 1) * (b.gamma + 1) / power * np.exp(logs))


def coefficients(kept: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """c [len(kept)], float64, Σ c = 1, whose sum of kept averages is nearest to the wanted one;
    and what is left, ‖Σ c_i p_i − p‖ / ‖p‖: 0 for one that was kept, 1 for nothing alike.

    Raises: ValueError where nothing was kept.
    """
    if not kept:
        raise ValueError("there are no averages to make another one of")
    scale = np.array([inner(p, p) ** -0.5 for p in kept])  # profiles of unit length: well scaled
    gram = np.array([[inner(p, q) for q in kept] for p in kept]) * np.outer(scale, scale)
    right = np.array([inner(p, wanted) for p in kept]) * scale
    size = len(kept)
    system = np.zeros((size + 1, size + 1))
    system[:size, :size], system[:size, size], system[size, :size] = gram, scale, scale
    solved = np.linalg.lstsq(system, np.append(right, 1.0), rcond=1e-13)[0][:size]
    whole = inner(wanted, wanted)
    left = whole - 2 * solved @ right + solved @ gram @ solved
    return solved * scale, float(np.sqrt(max(left, 0.0) / whole))


class Source(NamedTuple):
    """A stored power average: its profile, and the file of tensors that holds it."""

    profile: Profile
    checkpoint: checkpoints.Checkpoint
    file: str


def sources(
    folder: Path, newest: checkpoints.Checkpoint, averages: Sequence[Average]
) -> list[Source]:
    """The power averages of a checkpoint, and those that were set aside in `folder` before it."""
    aside = [
        found
        for found in checkpoints.whole(folder)
        if found.state["samples"] < newest.state["samples"]
    ]
    return [
        Source(Profile(average.gamma, int(found.state["samples"])), found, file)
        for found in (*aside, newest)
        for average in averages
        if isinstance(average, Power) and (file := f"average-{average.name}") in found.names
    ]


class Recombined(NamedTuple):
    """How an average is made of others: their coefficients, and what is left of its weighting
    (see `coefficients`)."""

    sources: list[Source]
    coefficients: np.ndarray
    left: float

    def tensors(self) -> dict[str, Tensor]:
        """Its weights, summed in float64; what is not a floating-point number is the newest."""
        total: dict[str, Tensor] = {}
        for source, c in zip(self.sources, self.coefficients, strict=True):
            given = source.checkpoint.tensors(source.file)
            for name, value in given.items():
                if value.is_floating_point():
                    total[name] = total.get(name, 0.0) + float(c) * value.double()
                else:
                    total[name] = value
        return {
            name: value.to(given[name].dtype) if value.dtype == torch.float64 else value
            for name, value in total.items()
        }

    def sha256(self) -> str:
        """A hash of all that `tensors` depends on."""
        words = [source.checkpoint.sha256(source.file) for source in self.sources]
        return hashlib.sha256(repr((words, self.coefficients.tolist())).encode()).hexdigest()


def recombined(found: list[Source], width: float) -> Recombined:
    """The power average of this width after the samples of the newest source.

    Raises: ValueError where there are no sources.
    """
    newest = max((source.profile.samples for source in found), default=0)
    wanted = Profile(Power(width=width).gamma, newest)
    return Recombined(found, *coefficients([source.profile for source in found], wanted))
