"""What codes cost under a prior, on samples that it was trained on and on others.

    −log p(k_level | coarser levels)     nats per sample, and bits for each code of a level

A prior that has learned its training codes by heart gives them away cheaply, and those of held-out
samples dearly: the difference is its overfitting. A level's part is its stage's alone, whatever the
other stages and the codec are worth. The codes are those that the run is trained on, in its cache.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from ornstein import fsops, ranks
from ornstein.choice import Choice
from ornstein.errors import ConfigError
from ornstein.metrics.estimate import estimate
from ornstein.nats import Likelihood
from ornstein.noise import Noise, permutation
from ornstein.run import Run
from ornstein.scores import Estimate, Split

BATCH = 250
FILE = "codes.json"


class LevelNats(Choice):
    """Of one level: −log p in nats per sample, over so many places."""

    nats: Estimate
    places: int

    @property
    def bits_per_code(self) -> float:
        """Bits for each of its places."""
        return self.nats.value / (self.places * math.log(2))


class CodeNats(Choice):
    """What codes of each split cost, level by level, the coarsest first.

    weights: SHA-256 of the prior's. samples_trained: on how many it was trained.
    """

    weights: str
    samples_trained: int
    counts: dict[Split, int]
    splits: dict[Split, tuple[LevelNats, ...]]


@torch.no_grad()
def code_nats(run: Run, how: Any, average: str = "", count: int = 1000) -> CodeNats:
    """What the codes of `count` samples of each split cost, at most; kept in the run's folder.

    how: the way of generating whose law it is. Raises: ConfigError for runs of anything but codes,
    StorageError.
    """
    encoding = run.recipe.encoding
    if encoding is None or encoding.form != "codes" or not isinstance(how, Likelihood):
        raise ConfigError(f"run {run.path.name} is no prior over codes")
    codes = run.training_data
    model: Any = run.learner(average).model
    places = [level.places for level in model.levels]
    found: dict[Split, tuple[LevelNats, ...]] = {}
    counts: dict[Split, int] = {}
    splits: dict[Split, np.ndarray] = {"train": codes.train, "held_out": codes.held_out}
    for name, ids in splits.items():
        if not len(ids):
            continue
        chosen = permutation(0, "likelihood", 0, len(ids))[:count].numpy()
        rows = np.sort(ids[chosen])
        parts: list[torch.Tensor] = []
        for start in range(0, len(rows), BATCH):
            batch = codes.batch(rows[start : start + BATCH], run.recipe.objective.range)
            noise = Noise.of(0, "likelihood", batch.ids.to(run.device))
            nats = how.likelihood(model, run.seen, batch.x.to(run.device), noise)
            parts.append(torch.stack(list(nats.parts.values())).double().cpu())
        values = torch.cat(parts, dim=1)
        counts[name] = len(rows)
        found[name] = tuple(
            LevelNats(nats=estimate(float(level.mean()), level), places=size)
            for level, size in zip(values, places, strict=True)
        )
    result = CodeNats(
        weights=run.weights(average), samples_trained=run.samples, counts=counts, splits=found
    )
    if ranks.leads():
        fsops.replace(run.path / FILE, result.model_dump_json(indent=1).encode())
    return result


def table(found: CodeNats) -> list[list[str]]:
    """Rows for a person: a head, and a line for each level."""
    words: dict[Split, str] = {"train": "training", "held_out": "held-out"}
    head = ["codes"]
    for name, count in found.counts.items():
        head += [f"{words[name]}, nats ({count:,})", "95 % interval", "bits/code"]
    rows = [head]
    levels = len(next(iter(found.splits.values())))
    for number in range(levels):
        row = [f"level {number}" if levels > 1 else "all"]
        for name in found.counts:
            level = found.splits[name][number]
            nats = level.nats
            row += [f"{nats.value:.2f}", f"{nats.low:.2f} to {nats.high:.2f}"]
            row += [f"{level.bits_per_code:.3f}"]
        rows.append(row)
    return rows
