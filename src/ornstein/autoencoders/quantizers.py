"""Vector quantisation: each place of a code is the nearest of K vectors e_1 ... e_K.

    z = e_k,   k = argmin_i ‖E(x) − e_i‖                                                (notes 11)
    L = −log p(x|z) + ‖sg E(x) − e_k‖² + β ‖E(x) − sg e_k‖²                             (notes 12)
    N_i ← γ N_i + (1 − γ) n_i,   m_i ← γ m_i + (1 − γ) Σ_{k=i} E(x),   e_i = m_i/N_i    (notes 13)

Decoder's gradients go to the encoder as if z were E(x). The vectors learn by the second term of
(12), or, without a gradient, by (13), where n_i counts what fell to code i in the update. A. van
den Oord, O. Vinyals, K. Kavukcuoglu 2017, "Neural discrete representation learning",
arXiv:1711.00937, §3.2 and appendix A.1; A. Razavi, A. van den Oord, O. Vinyals 2019, "Generating
diverse high-fidelity images with VQ-VAE-2", arXiv:1906.00446.

m_i is kept as N_i e_i, which it is: so a code that nobody uses stays where it is, while N_i and m_i
fall below what a float can hold. Nothing is added to N_i.

Codes that start far from all features are never used, and so never learn. Against that the vectors
start as the means of a k-means of the first update's features; until then z = E(x). And a code
whose N_i has fallen below a share of the mean is put on a feature of the present update, with N_i
at the mean. Both need vectors that are equal for any split of the global batch into micro-batches
and ranks, whose statistics are added: each vector that a sample offers has a slot of its own, by
the sample's position in the global batch, where all other samples add zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ornstein.autoencoders.codec import Code
from ornstein.autoencoders.discrete import Discrete, through
from ornstein.autoencoders.kmeans import added, kmeans, nearest

if TYPE_CHECKING:
    from ornstein.noise import Noise

START = 16  # vectors for each code that a k-means is given, at most,
MOST = 1 << 15  # and in all, where that is more than there are codes
RESTARTS = 256  # codes that an update can restart, at most
_GOLDEN, _SILVER = 0x9E3779B9, 0x6A09E667  # fractions of 2^32 whose multiples spread evenly


class VQModule(Discrete):
    """features [B, D] or [B, D, h, w] -> z, its indices [B] or [B, h, w], and what they cost.

    Penalties, per sample and summed over all numbers: `commitment`, β ‖E(x) − sg e‖², and with
    update = "gradient" `codebook`, ‖sg E(x) − e‖². codes: K. update: by eq 13 or by gradient.
    decay: γ. restart: the share of the mean N_i below which a code restarts; 0: never. kmeans:
    whether the vectors start so.
    """

    codebook: Tensor  # float [K, D]
    n: Tensor  # float [K], N_i of eq 13, vectors per update
    started: Tensor  # bool

    def __init__(
        self,
        latent: tuple[int, ...],
        codes: int,
        *,
        update: Literal["ema", "gradient"] = "ema",
        commitment: float = 0.25,
        decay: float = 0.99,
        restart: float = 0.03,
        kmeans: bool = True,
    ) -> None:
        super().__init__(latent, codes)
        self.update, self.commitment, self.decay, self.restart = update, commitment, decay, restart
        vectors = torch.randn(codes, latent[0])
        if update == "gradient":
            self.codebook = nn.Parameter(vectors)
        else:
            self.register_buffer("codebook", vectors)
        self.register_buffer("n", torch.zeros(codes))
        self.register_buffer("started", torch.tensor(not kmeans))
        self._started = False  # what is known of that without asking the device
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def forward(self, h: Tensor, noise: Noise | None = None) -> Code:
        """The code of features h [B, D, *places]; statistics with the noise of an update, and
        without it what the code costs by its law."""
        h = h.to(self.codebook.dtype)  # and so is what follows, in narrow networks, too
        rows = _rows(h.detach())
        indices = nearest(rows, self.codebook.detach()).view(len(h), *h.shape[2:])
        if not self.has_started():
            stats = {} if noise is None else self._first(rows, noise)
            nothing = 0 * self.codebook.sum()  # of which all ranks must have a gradient
            names = ["commitment", "codebook"][: 1 + (self.update == "gradient")]
            penalties = {name: nothing.expand(len(h)) for name in names}
            return Code(h, indices=indices, penalties=penalties, stats=stats)
        e = self.lookup(indices).contiguous()
        penalties = {"commitment": self.commitment * _squares(h, e.detach())}
        if self.update == "gradient":
            penalties["codebook"] = _squares(h.detach(), e)
        z = through(e, h)
        if noise is None:
            return Code(z, self.code_nats(indices), indices=indices, penalties=penalties)
        stats = self._stats(rows, indices, noise)
        return Code(z, indices=indices, penalties=penalties, stats=stats)

    def lookup(self, indices: Tensor) -> Tensor:
        """z [B, D, *places] of indices int64 [B, *places]."""
        return F.embedding(indices, self.codebook).movedim(-1, 1)

    @torch.no_grad()
    def after_step(self, stats: Mapping[str, Tensor], noise: Noise) -> None:
        """Eq 13, restarts and counts, or the start. stats: summed over the global batch. noise: of
        one sample, the same on all ranks."""
        if not self.has_started():
            self._start(stats, noise)
            return
        self.count(stats)
        fallen = stats["codes"].sum(0)
        kept = self.decay * self.n
        self.n.copy_(kept + (1 - self.decay) * fallen)
        if self.update == "ema":
            m = kept[:, None] * self.codebook + (1 - self.decay) * stats["sums"]
            moved = m / self.n[:, None]  # by eq 13 a code to which nothing fell does not move
            self.codebook.copy_(torch.where(fallen[:, None] > 0, moved, self.codebook))
        if self.restart:
            self._restart(stats["candidates"], stats["filled"] > 0)

    def _stats(self, rows: Tensor, indices: Tensor, noise: Noise) -> dict[str, Tensor]:
        stats = self.uses(indices)
        if self.update == "ema":
            flat = indices.view(-1)
            stats["sums"] = torch.zeros_like(self.codebook).index_add_(0, flat, rows)
        if self.restart:
            # A vector of each sample, so that no picture gives many; its place changes from
            # sample to sample and from update to update.
            turn = noise.ids * _GOLDEN + noise.step * _SILVER
            place = ((turn & 0xFFFFFFFF) * self.places) >> 32
            offered = rows.view(-1, self.places, rows.shape[1])
            offered = offered[torch.arange(len(indices), device=rows.device), place]
            stats |= _slots(offered, noise.ids, min(self.codes, RESTARTS))
        return stats

    def _first(self, rows: Tensor, noise: Noise) -> dict[str, Tensor]:
        """The first vectors of the global batch, in its order."""
        size = max(self.codes, min(START * self.codes, MOST))
        places = torch.arange(self.places, device=rows.device)
        slots = (noise.ids[:, None] * self.places + places).view(-1)
        samples = torch.full((), len(noise.ids), dtype=torch.int64, device=rows.device)
        return _slots(rows, slots, size) | {"samples": samples}

    def _start(self, stats: Mapping[str, Tensor], noise: Noise) -> None:
        points = stats["candidates"][stats["filled"] > 0]
        means, counts = kmeans(points, self.codes, noise.child("k-means"))
        self.codebook.copy_(means)
        self.n.copy_(counts * (stats["samples"] * self.places / len(points)))
        self.seen += stats["samples"]
        self.started.fill_(True)

    def _restart(self, candidates: Tensor, filled: Tensor) -> None:
        """The first dead code takes the first candidate, the second the second, while there are
        some; all without a word from the device."""
        mean = self.n.mean()
        dead = self.n < self.restart * mean
        turn = dead.cumsum(0) - 1
        revived = dead & (turn < filled.sum())
        order = torch.argsort(~filled, stable=True)
        given = candidates[order[turn.clamp(0, len(order) - 1)]]
        self.codebook.copy_(torch.where(revived[:, None], given, self.codebook))
        self.n.copy_(torch.where(revived, mean, self.n))

    def has_started(self) -> bool:
        """Whether there are vectors to choose from: before the k-means, z = E(x)."""
        self._started = self._started or bool(self.started)
        return self._started


def _forget(module: nn.Module, _: object) -> None:
    assert isinstance(module, VQModule)
    module._started = False


def _rows(h: Tensor) -> Tensor:
    """[B, D, *places] -> [B · places, D]."""
    return h.flatten(2).transpose(1, 2).reshape(-1, h.shape[1]) if h.ndim > 2 else h


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """‖a − b‖² of each sample, [B]."""
    return F.mse_loss(a, b, reduction="none").flatten(1).sum(1)


def _slots(rows: Tensor, slots: Tensor, size: int) -> dict[str, Tensor]:
    """Vectors [n, D] in slots int64 [n]; those beyond `size` are left out."""
    sums, counts = added(rows, slots.clamp(max=size), size + 1)
    return {"candidates": sums[:-1], "filled": counts[:-1]}
