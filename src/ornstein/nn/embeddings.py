"""A number as a vector that a network can use: sines and cosines of many wavelengths.

    e(ℓ) = (sin ω₁ℓ, …, sin ω_hℓ, cos ω₁ℓ, …, cos ω_hℓ),   ω from 1 down to 10⁻⁴, geometrically

A. Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762, section 3.5, in the form of
J. Ho et al., "Denoising diffusion probabilistic models", 2020, arXiv:2006.11239, appendix B.
Labels of any scale up to some thousands are told apart; below 1 all but the first few entries
hardly move, and the layers that follow do the rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoidal(label: Tensor, width: int) -> Tensor:
    """label [B] -> [B, width], in the precision of `label`; an odd width drops the last cosine."""
    half = -(-width // 2)
    rate = math.log(10_000.0) / max(1, half - 1)
    frequency = torch.exp(torch.arange(half, device=label.device, dtype=label.dtype) * -rate)
    angle = label[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=1)[:, :width]
