"""Noising processes side by side: how much signal is left at each time, and how that looks.

    share of signal   α²/(α² + σ²), which is ᾱ for a variance-preserving process
    log-SNR           λ = 2 log(α/σ), −∞ where nothing is left
    β of a table      β_i = 1 − α²_i/α²_{i−1} at t = i/T, α_0 = 1: of the table itself, and for a
                      continuous process of the table of 1000 steps that it amounts to

The first two and the strips are figures 5 and 3 of A. Nichol, P. Dhariwal 2021, "Improved
denoising diffusion probabilistic models", arXiv:2102.09672 (notes eq 34). The linear table has
next to no signal left over its last quarter, where the cosine one still has some.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from ornstein import pictures
from ornstein.charts import SCALE, Curve, Panel, chart
from ornstein.diffusion.process import NoisingProcess, log_snr
from ornstein.noise import Noise
from ornstein.strips import stacked, strips

if TYPE_CHECKING:
    from ornstein.data.info import Dataset

STEPS = 1000  # of the table that a continuous process is compared by
TIMES = tuple(i / 8 for i in range(9))  # of the pictures in a strip
LIMIT = 20.0  # of log-SNR as it is drawn: beyond it, signal or noise cannot be seen
POINTS = 4000  # of vector data, drawn as a cloud


def betas(process: NoisingProcess) -> tuple[np.ndarray, np.ndarray]:
    """Times i/T [T] and β_i [T]; all 0 for a process whose signal does not fade (α = 1)."""
    steps = int(getattr(process, "steps", STEPS))
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    kept = process(t)[0] ** 2
    before = torch.cat((torch.ones(1, dtype=torch.float64), kept[:-1]))
    return t.numpy(), (1 - kept / before).clamp(0, 1).numpy()


def log_snrs(process: NoisingProcess, times: tuple[float, ...]) -> list[float]:
    """Log-SNR at some times; −∞ where no signal is left."""
    return [float(v) for v in log_snr(process, torch.tensor(times, dtype=torch.float64))]


def curves(processes: Mapping[str, NoisingProcess]) -> Image.Image:
    """The share of signal, log-SNR and β of some processes over time, by name."""
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    shares, ratios, steps = [], [], []
    for name, process in processes.items():
        ratio = log_snr(process, t)
        shares.append(Curve(t.numpy(), torch.sigmoid(ratio).numpy(), name))
        ratios.append(Curve(t.numpy(), ratio.numpy(), name))
        at, beta = betas(process)
        steps.append(Curve(at, beta, name))
    seen = np.concatenate([np.asarray(curve.y) for curve in ratios])
    ends = float(seen.min().clip(-LIMIT, LIMIT)), float(seen.max().clip(-LIMIT, LIMIT))
    return chart(
        [
            Panel(shares, "Share of signal α² / (α² + σ²)", "t", y_range=(0, 1)),
            Panel(ratios, "log-SNR 2 log(α/σ)", "t", y_range=ends),
            Panel(steps, "β of a step (none where α stays 1)", "t", x_range=(0, 1), y_log=True),
        ]
    )


def noised(
    processes: Mapping[str, NoisingProcess], dataset: Dataset, seed: int = 0
) -> list[tuple[str, list[Image.Image]]]:
    """For each process the same image with the same noise, ever more of it, at `TIMES`.

    x = (α x0 + σ ε)/√(α² + σ²) with x0 in [−1, 1], the first image of the training split (or a
    cloud of standardised vectors): what a network sees, and x itself where α² + σ² = 1.
    """
    info = dataset.info
    ids = dataset.train[: POINTS if info.kind == "vector" else 1]
    x0 = dataset.batch(ids, (-1.0, 1.0)).x.double()
    eps = Noise.of(seed, "schedules", torch.from_numpy(ids)).normal(0, info.shape, torch.float64)
    a, b = info.affine((-1.0, 1.0))
    rows = []
    for name, process in processes.items():
        row = []
        for t in TIMES:
            alpha, sigma = process(torch.tensor(t, dtype=torch.float64)) if t > 0 else (1.0, 0.0)
            x = (alpha * x0 + sigma * eps) / (alpha**2 + sigma**2) ** 0.5
            native = ((x - b) / a).numpy()
            row.append(
                pictures.cloud(native, info)
                if info.kind == "vector"
                else pictures.single(native[0], info)
            )
        rows.append((name, row))
    return rows


def picture(
    processes: Mapping[str, NoisingProcess], dataset: Dataset, seed: int = 0
) -> Image.Image:
    """Curves above, strips of noised data below."""
    above = curves(processes)
    captions = [f"t = {t:g}" for t in TIMES]
    rows = strips(noised(processes, dataset, seed), captions, above.width - 16 * SCALE)
    return stacked([above, rows])
