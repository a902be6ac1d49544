"""What sees a sequence in order, and the gated maps between the states of one.

    memory      m_t = r(m_{t−1}, e_t),  b_t = (m_t, e_t),  b_0 learned
    gated map   D(u) = W₃ [tanh(W₁ u + c₁) ⊙ σ(W₂ u + c₂)] + c₃

S. Hochreiter, J. Schmidhuber 1997, "Long short-term memory"; K. Cho et al. 2014, arXiv:1406.1078,
for the gated recurrent unit; the map is the one of K. Gregor et al. 2019, "Temporal difference
variational auto-encoder", arXiv:1806.03107, appendix D.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


class Memory(nn.Module):
    """e [B, T, features] -> b [B, T + 1, size]: what is known before the first frame, and after
    each one. b_t depends on e_1 ... e_t only.

    It has e_t beside what a recurrent cell of this width keeps. So the cell need not say again what
    the last frame shows, and learns what it alone can: how frames follow each other. size: numbers
    of a belief.
    """

    def __init__(self, features: int, width: int, kind: Literal["lstm", "gru"]) -> None:
        super().__init__()
        cell = nn.LSTM if kind == "lstm" else nn.GRU
        self.cell = cell(features, width, batch_first=True)
        self.size = width + features
        self.start = nn.Parameter(torch.zeros(self.size))

    def forward(self, e: Tensor) -> Tensor:
        first = self.start.expand(len(e), 1, -1)
        if e.shape[1] == 0:
            return first
        kept, _ = self.cell(e)
        later = torch.cat((kept, e.to(kept)), dim=-1)
        return torch.cat((first.to(later), later), dim=1)


class GatedMap(nn.Module):
    """u [*, inputs] -> [*, outputs]; see the file."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.both = nn.Linear(inputs, 2 * hidden)
        self.last = nn.Linear(hidden, outputs)

    def forward(self, u: Tensor) -> Tensor:
        value, gate = self.both(u).chunk(2, dim=-1)
        out: Tensor = self.last(torch.tanh(value) * torch.sigmoid(gate))
        return out
