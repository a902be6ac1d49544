"""Mean and scale of a run's latents: measured once for its weights, and kept in its folder.

runs/NAME/latents.json    {"weights": SHA-256, "samples", "mean", "std", "channel_mean", ...}
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ornstein import fsops
from ornstein.autoencoders.moments import LatentMoments, moments
from ornstein.choice import RunRef
from ornstein.data.info import drawn
from ornstein.errors import CheckpointError, ConfigError
from ornstein.run import Run, codec_of

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.encoding import Trained

FILE = "latents.json"
MOST = 10_000  # samples that are encoded: they know the scale to a percent and better
BATCH = 64


def latent_moments(run: Run, average: str = "", trained: Trained | None = None) -> LatentMoments:
    """The moments of the latents of the training split, or of 10,000 of its samples.

    They are read from `latents.json` where they are of these weights, else measured and written
    there. trained: the run's codec, where it has been loaded. Raises: ConfigError where the run is
    no autoencoder, DataError where its data is gone, StorageError where they cannot be written.
    """
    if trained is None:
        trained = codec_of(RunRef(path=str(run.path), average=average), type(run.recipe))
    found = _kept(run, trained.weights)
    if found is None:
        found = moments(trained.codec, _batches(run, trained))
        record = {"weights": trained.weights, **found._asdict()}
        fsops.replace(run.path / FILE, json.dumps(record, indent=1).encode())
    return found


def _batches(run: Run, trained: Trained) -> Iterator[Tensor]:
    dataset = run.dataset
    if not len(dataset.train):
        raise ConfigError(f"{dataset.info.name} has no training samples to measure latents of")
    ids = drawn(dataset.train, MOST, "latents")
    for start in range(0, len(ids), BATCH):
        yield trained.seen(np.asarray(dataset.x[ids[start : start + BATCH]]))


def _kept(run: Run, weights: str) -> LatentMoments | None:
    """What was measured of these weights; None where nothing was, or it is damaged."""
    with contextlib.suppress(CheckpointError, KeyError, TypeError, ValueError):
        record = fsops.read_json(run.path / FILE)
        if record["weights"] == weights:
            channels = (tuple(map(float, record[f"channel_{of}"])) for of in ("mean", "std"))
            return LatentMoments(
                int(record["samples"]), float(record["mean"]), float(record["std"]), *channels
            )
    return None
