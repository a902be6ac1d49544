"""Self-attention between the pixels of a feature map.

    y = x + W_o softmax(Q Kᵀ/√d) V,   Q, K, V = linear maps of norm(x)

A. Vaswani et al., "Attention is all you need", 2017, arXiv:1706.03762; on feature maps, X. Wang
et al., "Non-local neural networks", 2018, arXiv:1711.07971. W_o starts at zero, so a new layer is
the identity. Heads are wide: on a CPU one head of 64 is five times faster than eight of 8, and
accelerators' kernels are made for 64 and 128.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ornstein.nn.layers import norm, zeroed


def head_count(channels: int, width: int) -> int:
    """The number of heads whose width comes nearest to `width`: it divides the channels, and is
    one if there are no more channels than that."""
    divisors = (h for h in range(1, channels + 1) if channels % h == 0)
    return min(divisors, key=lambda h: abs(h - channels / width))


class SelfAttention(nn.Module):
    """Norm, attention over all H·W pixels, and the sum with the input.

    `twice` is set by objectives that differentiate gradients: fused kernels have none of second
    order, so that training then uses plain products.
    """

    twice = False

    def __init__(self, channels: int, head_width: int = 64) -> None:
        super().__init__()
        self.heads = head_count(channels, head_width)
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, H, W]."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # [B, HW, C]
        # [B, HW, 3C] -> three of [B, heads, HW, C/heads]
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        plain = sdpa_kernel(SDPBackend.MATH) if self.twice and q.requires_grad else nullcontext()
        with plain:
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.out(attended)
        return x + out.transpose(1, 2).reshape(x.shape)
