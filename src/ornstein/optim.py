"""How weights are updated, and which averages of them are kept. All lengths are in samples.

    lr(n)  = lr · min(1, n/warmup) · decay(n/N)
    θ̄ ← β θ̄ + (1 − β) θ after every update, buffers included (notes eq 1.18):
    half-life   β = ½^(batch / min(H, r n))     T. Karras et al. 2022, arXiv:2206.00364, appendix F
    power       β = (1 − batch/n)^(γ+1)         T. Karras et al. 2024, arXiv:2312.02696, eq 127

A power average has the same shape at any length: its width, relative to the training so far, is
σ_rel = (γ+1)^½ (γ+2)⁻¹ (γ+3)^−½ (eq 126).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ornstein.choice import Choice

WIDTHS = (0.001, 0.28)  # of a power average


class HalfLife(Choice):
    """Exponential average that forgets half in `samples` samples; early on, in `ramp` of those
    seen so far, so that the random start is forgotten quickly (0 turns that off)."""

    kind: Literal["half_life"] = "half_life"
    samples: int = Field(500_000, gt=0)
    ramp: float = Field(0.05, ge=0)

    @property
    def name(self) -> str:
        return f"half-life-{self.samples}"

    def decay(self, seen: int, batch: int) -> float:
        """β of the update after which `seen` samples have been used, `batch` of them just now."""
        half_life = min(self.samples, self.ramp * seen) if self.ramp > 0 else self.samples
        return float(0.5 ** (batch / half_life))


class Power(Choice):
    """Average with weights growing as a power of time; `width` is its relative standard
    deviation, 0.05 to 0.15 being usual."""

    kind: Literal["power"] = "power"
    width: float = Field(0.10, gt=WIDTHS[0], lt=WIDTHS[1])

    @property
    def name(self) -> str:
        return f"power-{self.width:g}"

    @property
    def gamma(self) -> float:
        """γ with σ_rel(γ) = width, by bisection: σ_rel falls from 0.2887 at γ = 0."""
        low, high = 0.0, 1e4
        for _ in range(100):
            middle = 0.5 * (low + high)
            width = math.sqrt(middle + 1) / (middle + 2) / math.sqrt(middle + 3)
            low, high = (middle, high) if width > self.width else (low, middle)
        return low

    def decay(self, seen: int, batch: int) -> float:
        """β of the update after which `seen` samples have been used, `batch` of them just now."""
        return float((1 - batch / seen) ** (self.gamma + 1))


Average = Annotated[HalfLife | Power, Field(discriminator="kind")]


class Optim(Choice):
    """AdamW (I. Loshchilov, F. Hutter 2019, arXiv:1711.05101), its schedule and its averages.

    Length: `samples`, or `minutes`, which is turned into samples by a measured speed when the run
    is made and stored with it. `batch` is global: over all ranks and micro-batches.
    """

    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient; null: none")
    batch: int = Field(128, ge=1)
    micro_batch: int | None = Field(None, ge=1, description="at most this many at once; null: all")
    samples: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    warmup: int = Field(5_000, ge=0, description="samples over which lr rises from 0")
    decay: Literal["none", "linear", "cosine"] = "cosine"
    averages: tuple[Average, ...] = (Power(width=0.10),)
    snapshots: int = Field(
        0,
        ge=0,
        le=10_000,
        description="times, evenly over the training, that power averages are set aside, so that "
        "one of any width can be made afterwards",
    )
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    shard: Literal["auto", "on", "off"] = Field(
        "auto",
        description="whether several processes share the weights out (FSDP2): auto, where one "
        "GPU cannot hold them all",
    )
    recompute: bool = Field(
        False, description="gradient checkpointing: less memory for a third more work"
    )

    @model_validator(mode="after")
    def _sound(self) -> Optim:
        if self.samples is None and self.minutes is None:
            raise ValueError("a length is needed: give samples or minutes")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {list(self.betas)}")
        names = [average.name for average in self.averages]
        if len(set(names)) < len(names):
            raise ValueError(f"two averages are the same: {', '.join(names)}")
        if self.snapshots and not self.powers:
            raise ValueError("snapshots are of power averages, and there is none among averages")
        return self

    @property
    def powers(self) -> tuple[str, ...]:
        """The names of the power averages."""
        return tuple(average.name for average in self.averages if isinstance(average, Power))

    def lr_at(self, seen: int, total: int) -> float:
        """The learning rate of the update that starts after `seen` of `total` samples."""
        warm = min(1.0, (seen + self.batch) / self.warmup) if self.warmup else 1.0
        share = min(1.0, seen / total)
        falls = {
            "none": 1.0,
            "linear": 1 - share,
            "cosine": 0.5 * (1 + math.cos(math.pi * share)),
        }
        return self.lr * warm * falls[self.decay]
