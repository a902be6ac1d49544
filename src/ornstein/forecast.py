"""What a trained model of sequences expects after some frames, in the data's own values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ornstein.autoencoders.rollout import Rollout, predict
from ornstein.errors import ConfigError
from ornstein.noise import Noise
from ornstein.run import Run


def forecast(
    run: Run,
    x: np.ndarray,
    horizons: Sequence[int],
    seed: int = 0,
    *,
    longest: int | None = None,
    average: str = "",
    batch: int = 64,
) -> np.ndarray:
    """The frames expected h after the last one for each horizon h ≥ 1, [n, len(horizons), C, H, W].

    x: sequences [n, t, C, H, W] in native values, t at least 1, of the run's kind of frame.
    longest: the longest jump that is made in one; None: the run's own reach; 1: step by step. What
    is expected of sequence i depends on (seed, i) and x[i]. Raises: ConfigError where the run is no
    model of sequences, or x are other frames; and as `predict`.
    """
    checked(run)
    frame = run.info.shape[1:]
    if x.ndim != 5 or x.shape[2:] != frame or not len(x) or not x.shape[1] or batch < 1:
        raise ConfigError(
            f"a forecast is of sequences [n, t, {', '.join(map(str, frame))}], in batches of 1 or "
            f"more; got {list(x.shape)} in batches of {batch}"
        )
    model: Any = run.learner(average).model
    a, b = run.info.affine(run.recipe.objective.range)
    found = []
    for start in range(0, len(x), batch):
        part = torch.from_numpy(x[start : start + batch]).to(run.device, torch.float32) * a + b
        ids = torch.arange(start, start + len(part), device=run.device)
        noise = Noise.of(seed, "forecast", ids)
        found.append(run.native(predict(model, part, horizons, noise, longest)))
    return np.concatenate(found)


def checked(run: Run) -> None:
    """Raises: ConfigError where a run is no model of sequences."""
    if not isinstance(run.recipe.generation, Rollout):
        raise ConfigError(
            f"run {run.path.name} is of no sequences, so nothing follows; name a run of td_vae or "
            "state_space"
        )
