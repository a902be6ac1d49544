"""L_vlb with its times drawn where its terms vary most.

    Σ_t L_t = E_{t ~ p} [L_t / p_t],   of least variance for p_t ∝ √E[L_t²]

A. Nichol, P. Dhariwal 2021, arXiv:2102.09672, §3.3. E[L_t²] is measured while training. The paper
keeps the last ten values of each t; here it is an exponential average with a memory of ten, which
is a function of *sums* over the global batch, so that it is the same for any number of ranks and
micro-batches. Until each t has been seen ten times, t is uniform; then one draw in a thousand is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ornstein.data.info import Batch
from ornstein.diffusion.bound import Bins, Chain, drawn, term_nats
from ornstein.diffusion.denoiser import Denoiser
from ornstein.objectives.base import Context, Loss
from ornstein.objectives.denoising import Range
from ornstein.objectives.variational import bits

MEMORY = 10
EVENLY = 0.001


class VariationalLoss(nn.Module):
    """Per sample: L_t/p_t in bits per dimension, an estimate of Σ L_t without L_T.

    Metric `vlb` is its mean. Buffers: `square` [T], the running E[L_t²] in (bits/dim)², not yet
    corrected for its start at 0; `seen` [T], how often each t was drawn; both noisiest t first.
    """

    def __init__(
        self, chain: Chain, bins: Bins | None, spread: float, importance: bool, limits: Range
    ) -> None:
        super().__init__()
        self.chain, self.bins, self.spread, self.importance = chain, bins, spread, importance
        self.range = limits
        steps = len(chain.gain)
        self.square: Tensor
        self.seen: Tensor
        self.register_buffer("square", torch.zeros(steps, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(steps, dtype=torch.int64))

    def probabilities(self) -> Tensor:
        """p_t, float64 [T], noisiest first."""
        steps = len(self.square)
        even = torch.full_like(self.square, 1 / steps)
        if not self.importance or bool((self.seen < MEMORY).any()):
            return even
        root = torch.sqrt(self.square / (1 - (1 - 1 / MEMORY) ** self.seen.double()))
        return (1 - EVENLY) * root / root.sum() + EVENLY * even

    def forward(self, model: Denoiser, batch: Batch, context: Context) -> Loss:
        x0 = batch.x
        p = self.probabilities()
        u = context.noise.child("level").uniform(0, (), torch.float64)
        row = torch.searchsorted(p.cumsum(0), u).clamp(max=len(p) - 1)
        eps = context.noise.child("eps").normal(0, x0.shape[1:], x0.dtype)
        x, level = drawn(self.chain, row, x0, eps)
        prediction = model(x, level)
        spread = self.spread if prediction.spread is None else prediction.spread
        term = bits(term_nats(x0, prediction.x0, spread, self.chain, row, self.bins), x0)
        estimate = term / p[row].to(term)
        # Sums by a product with one-hot rows: adding at indices has no fixed order on a GPU.
        where = nn.functional.one_hot(row, len(p)).double()
        stats = {"square": term.detach().double().square() @ where, "seen": where.sum(0)}
        metrics = {"vlb": (estimate.detach().sum(), float(len(x0)))}
        return Loss(estimate, metrics, stats)

    def after_step(self, model: Any, stats: Mapping[str, Tensor], context: Context) -> None:
        """Let the squares measured in this update into the running averages."""
        count = stats["seen"]
        mean = stats["square"] / count.clamp(min=1)
        kept = (1 - 1 / MEMORY) ** count  # 1 where t was not drawn
        self.square.copy_(kept * self.square + (1 - kept) * mean)
        self.seen.add_(count.long())
