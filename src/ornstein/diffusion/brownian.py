"""A Brownian path as a pure function of its key, the same whatever the grid that asks.

    B(0) = 0,   B(w) − B(v) ~ N(0, w − v), independent over disjoint intervals,   v ≥ 0

where v is any clock that runs one way along a grid: time, or the SNR α²/σ². The path of a sample
is fixed by the key and the id of its noise before anyone asks: a grid of 10 steps and one of 1000
look at one path, so that their samples differ by the error of the solver and not by the luck of
the draw.

It is a virtual Brownian tree (X. Li et al. 2020, "Scalable gradients for stochastic differential
equations", arXiv:2001.01328, section 4; A. Jelinčič et al. 2024, arXiv:2405.06464), one in each
octave [2^k, 2^(k+1)) of v, so that the resolution is relative. In an octave of length h, at the
place u in [0, 1) of it,

    B = B(2^k) + √h [ u z_0 + Σ_{d<D} min(w_d, 1 − w_d) 2^(−d/2) z_d + √(w_D (1 − w_D) 2^(−D)) z' ]

with w_d the fraction of 2^d u. z_0 is the octave's own increment; at each depth d the middle of
the interval around u departs from the chord of its ends by a normal of half its length's root,
and what is between is interpolated; the last term is the exact bridge within an interval of the
last depth D, a leaf. Each z belongs to one node of the tree, which is a step of `Noise`.

B(v) is then a known linear combination of a few independent normals, and so is an increment. The
law is exact for any points of which no two share the inside of a leaf, 2^−D of its octave; those
that do are refused. B is as rough as Brownian motion, but its values at two roundings of one v
differ by 1e-8 of the octave's at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from ornstein.errors import ConfigError
from ornstein.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise


DEPTH = 16  # bisections of an octave: neighbours of a grid may be 2^-16 of their clock apart
LOWEST = -32  # all of [0, 2^-32) counts as one octave
AHEAD = 2**18  # normals that are drawn at once, at most, where that is more than one node's


def combination(v: float, w: float) -> dict[int, float]:
    """B(w) − B(v) = Σ_n c_n z_n: the nodes n of the tree, below 2^32, and their coefficients c_n.

    Clocks v and w are at least 0 and finite, in any order. Raises: ConfigError where both lie
    within a leaf, so that Σ c_n² is not |w − v|.
    """
    if w < v:
        return {node: -c for node, c in combination(w, v).items()}
    (first, below), (last, total) = _within(v), _within(w)
    for octave in range(first, last):
        total[_root(octave)] = math.sqrt(_octave(octave)[1])
    for node, c in below.items():
        total[node] = total.get(node, 0.0) - c
    if abs(sum(c * c for c in total.values()) - (w - v)) > 1e-6 * (w - v):
        raise ConfigError(
            f"a Brownian path is resolved to 1/{2**DEPTH} of its clock, and two levels of the grid "
            f"are closer, at {v:.9g} and {w:.9g}; use fewer steps or more distant times"
        )
    return total


class Path:
    """The increments of B between neighbours of a grid, v_0, v_1, ..., scaled to unit variance.

    Along a grid of n steps, neighbours share the upper nodes of the tree: those drawn for a step
    are kept for the next, and a step draws about D + 2 − log₂(steps in an octave) numbers for
    each one it uses. That they are kept, or drawn ahead where samples are few and small, changes
    no bit. A path holds up to D + 2 tensors of the size of x.
    """

    def __init__(self, clock: Sequence[float]) -> None:
        self.terms = [
            {node: c / math.sqrt(abs(w - v)) for node, c in combination(v, w).items()}
            for v, w in pairwise(clock)
        ]
        self.noise: Noise | None = None
        self.next = 0
        self.held: dict[int, Tensor] = {}

    def added(self, x: Tensor, std: float, noise: Noise, i: int) -> Tensor:
        """x + std z; x is the step's own and is overwritten."""
        return x.add_(self.normal(noise, i, x), alpha=std)

    def normal(self, noise: Noise, i: int, x: Tensor) -> Tensor:
        """z = (B(v_{i+1}) − B(v_i)) / √|v_{i+1} − v_i| for each element of x [B, *].

        Standard normal, independent for different i, in the precision of x (computed in float32
        or better). The path is that of `noise` whatever its step.
        """
        if noise is not self.noise or i != self.next:
            self.noise, self.held = noise, {}
        self.next = i + 1
        self._draw(noise, i, x)
        z = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        for node, c in self.terms[i].items():
            z += c * self.held[node]  # two roundings: a fused one would depend on the batch size
        kept = self.terms[i + 1] if i + 1 < len(self.terms) else {}
        for node in self.terms[i].keys() - kept.keys():
            del self.held[node]
        return z.to(x.dtype)

    def _draw(self, noise: Noise, i: int, x: Tensor) -> None:
        """What step i lacks, and what the next steps will lack as far as there is room."""
        nodes = [node for node in self.terms[i] if node not in self.held]
        room = max(1, AHEAD // max(1, x.numel()))
        for before, after in pairwise(self.terms[i:] if nodes else ()):
            if len(nodes) >= room:
                break
            nodes += [node for node in after if node not in before]
        own, batch = noise.child("brownian"), len(noise.ids)
        dtype = torch.promote_types(x.dtype, torch.float32)
        for start in range(0, len(nodes), room):
            part = nodes[start : start + room]
            steps = torch.tensor(part, device=noise.ids.device).repeat_interleave(batch)
            many = own._replace(ids=own.ids.repeat(len(part)), step=steps)
            z = many.normal(0, x.shape[1:], dtype)
            self.held.update(zip(part, torch.split(z, batch), strict=True))


def _octave(octave: int) -> tuple[float, float]:
    """Where an octave begins, and its length."""
    length = 2.0 ** (LOWEST + max(0, octave - 1))
    return (length if octave else 0.0), length


def _root(octave: int) -> int:
    """The node of an octave's own increment; those below it follow, row by row."""
    return octave << (DEPTH + 1)


def _within(v: float) -> tuple[int, dict[int, float]]:
    """The octave of v, and B(v) − B(where it begins) as coefficients of nodes."""
    exponent = math.frexp(v)[1] if v > 0 else LOWEST  # v = m 2^exponent with m in [1/2, 1)
    octave = max(0, exponent - LOWEST)
    begin, length = _octave(octave)
    root, u, size = _root(octave), (v - begin) / length, math.sqrt(length)
    terms = {root: size * u}
    for depth in range(DEPTH + 1):
        place = int(u * 2**depth)
        w = u * 2**depth - place
        share = min(w, 1 - w) if depth < DEPTH else math.sqrt(w * (1 - w))
        terms[root + 2**depth + place] = size * share * 2 ** (-depth / 2)
    return octave, terms
