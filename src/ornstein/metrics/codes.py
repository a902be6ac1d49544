"""How much of a code is used: active units of Gaussian codes, entries of a codebook.

    A_u = Var over x of E[z_u | x]                 unit u is active where A_u > 0.01
    KL_u = mean over x of KL( q(z_u|x) ‖ N(0, 1) ) = mean ½ (mean² + std² − 1) − ln std

Y. Burda, R. Grosse, R. Salakhutdinov, "Importance weighted autoencoders", 2015, arXiv:1509.00519,
§5.2: a unit that says nothing of x has a posterior that is the prior's, A_u = 0 and KL_u = 0.
Units that a model uses and those that it does not are far apart, so that the limit hardly matters.

Of a codebook, the share of entries used and the perplexity are those of `autoencoders.discrete`. A
perplexity is the number of entries that would be as unpredictable if all were used alike. Both are
of the codes that were counted, and both are low where these are not many times K.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ornstein.autoencoders.discrete import usage as usage_of
from ornstein.errors import ConfigError

ACTIVE = 0.01  # what the variance of an active unit's mean is above


class Usage(NamedTuple):
    """Of a codebook: how many entries there are, how many of them were used, the perplexity, and
    of how many codes that is."""

    entries: int
    used: int
    perplexity: float
    codes: int

    @property
    def share(self) -> float:
        """Of the entries, those that were used."""
        return self.used / self.entries


def active_units(means: Tensor, least: float = ACTIVE) -> int:
    """How many units have posterior means [N, L], of N samples, that vary by more than `least`.

    Raises: ConfigError for anything but a matrix of at least 2 rows.
    """
    return int(active(means, least).sum())


def active(means: Tensor, least: float = ACTIVE) -> Tensor:
    """Which units are active, bool [L]; see `active_units`."""
    if means.dim() != 2 or len(means) < 2:
        raise ConfigError(
            f"units are active in at least 2 samples, rows of a matrix, not in {list(means.shape)}"
        )
    return means.double().var(0, correction=0) > least


def unit_kl(mean: Tensor, std: Tensor) -> Tensor:
    """KL_u in nats, float64 [L], of posteriors N(mean, std²), both [N, L]; see above."""
    m, s = mean.double(), std.double()
    return (0.5 * (m.square() + s.square() - 1) - s.log()).mean(0)


def usage(indices: Tensor, entries: int) -> Usage:
    """How a codebook of K = `entries` was used in codes of whole numbers below K, of any shape.

    Raises: ConfigError for no codes, or for numbers that are none of the codebook's.
    """
    flat = indices.flatten()
    if flat.numel() == 0 or int(flat.min()) < 0 or int(flat.max()) >= entries:
        raise ConfigError(f"codes are whole numbers from 0 to {entries - 1}, one at least")
    counts = torch.bincount(flat, minlength=entries)
    perplexity = float(usage_of(counts)[1])
    return Usage(entries, int((counts > 0).sum()), perplexity, flat.numel())
