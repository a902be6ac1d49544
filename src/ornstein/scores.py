"""What a score is: a number, the interval about it, and all that must be equal before two compare.

The same samples score otherwise in other features, at other counts, against another split, so a
number without its protocol can neither be compared nor reproduced. A record keeps

    protocol     in whose features, against which real samples, how many of each
    made         which weights drew the samples, and how
    metrics      value and 95 % interval of each metric that is defined
    baselines    what real data score by the same rule, and one Gaussian fitted to them
    classes      how the samples spread over the classes of the data
    likelihood   bits per dimension, where the model has them
    reconstruction   what is left of real samples, of an autoencoder

Records are a list in the JSON file `scores.json` of a run. Nothing here imports torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

from pydantic import Field, ValidationError, model_validator

from ornstein import fsops
from ornstein.choice import Choice
from ornstein.errors import CheckpointError

Split = Literal["train", "held_out"]
"""Which real samples generated ones are measured against."""

Metric = Literal[
    "frechet",
    "kernel",
    "precision",
    "recall",
    "density",
    "coverage",
    "inception",
    "memorised",
]
"""Every metric by its key in a record, in the order in which they are shown."""

METRICS: tuple[Metric, ...] = get_args(Metric)

Baseline = Literal["halves", "held_out", "train", "gaussian"]
"""What stands beside a model: two random halves of the reference; the real samples of the other
split; samples of one Gaussian fitted to the training split, value by value."""

_SHA256 = r"^[0-9a-f]{64}$"


class Estimate(Choice):
    """What a metric says of a sample, and the 95 % interval about it; see `metrics.estimate`."""

    value: float
    low: float
    high: float


class Protocol(Choice):
    """How it was measured: scores compare where all of this is equal, but for `seed`."""

    extractor: str = Field(description="whose features; with 12 digits of its weights' SHA-256")
    weights: str | None = Field(pattern=_SHA256, description="SHA-256 of the extractor's weights")
    accuracy: float | None = Field(description="held-out accuracy of the extractor's classifier")
    names: dict[Metric, str] = Field(description="what each metric may be called")
    generated: int = Field(description="generated samples")
    reference: int = Field(description="real samples that they are measured against")
    split: Split = Field(description="which split of the data these are")
    data: str = Field(description="the data's fingerprint, SHA-256")
    sha256: str = Field(pattern=_SHA256, description="of fingerprint and numbers of the reference")
    neighbours: int = Field(description="k of precision, recall, density and coverage")
    compared: int = Field(description="samples of each side that these four look at")
    threshold: float = Field(
        description="samples as near to a training sample count as memorised; root mean square, "
        "native units"
    )
    searched: int | None = Field(
        None, description="training samples among which copies are sought; None: all there are"
    )
    seed: int = Field(description="of samples, halves, Gaussian and the choice of those compared")

    @model_validator(mode="after")
    def _named_rightly(self) -> Self:
        if "FID" in self.names.values() and self.weights is None:
            raise ValueError("a distance is called FID only with the SHA-256 of the network")
        return self


class Made(Choice):
    """Where the samples came from."""

    weights: str = Field(pattern=_SHA256, description="SHA-256 of the model's weights")
    average: str = Field(description="which average of the weights; 'model': the last ones")
    samples_trained: int = Field(description="samples that the weights had been trained on")
    generation: dict[str, Any] = Field(description="the sampler: its step, grid and steps")
    evaluations: int | None = Field(description="evaluations of the network per sample")
    seconds: float | None = Field(None, description="to draw one sample, wall clock")


class Comparison(Choice):
    """What other samples score by the same rule; `values` as in `Scores.metrics`."""

    count: int = Field(description="samples in its place of the generated ones")
    values: dict[Metric, float]


class Classes(Choice):
    """What the extractor's classifier sees in the generated samples."""

    counts: tuple[int, ...] = Field(description="samples taken for each class")
    entropy: float = Field(description="of that histogram, nats; log K if all are equal")
    confidence: float = Field(description="mean probability of the most likely class")


class Bound(Choice):
    """−log p of real samples, or a bound on it."""

    nats: Estimate = Field(description="per sample")
    bits_per_dim: Estimate
    parts: dict[str, float] = Field(description="what bits_per_dim is the sum of, in bits/dim")
    count: int = Field(description="real samples that it is the mean over")
    split: Split = Field(description="of which split")
    exact: bool = Field(description="−log p itself, up to numerical error, and no bound")
    probes: float | None = Field(
        None, description="standard error of bits_per_dim from random probes or draws, if known"
    )


class Reconstruction(Choice):
    """What an autoencoder leaves of real samples; means over them, native units."""

    psnr: Estimate = Field(description="dB, of each image, within the data's range")
    ssim: Estimate = Field(description="structural similarity of each image, 1 for the same")
    count: int = Field(description="real samples")
    split: Split = Field(description="of which split")


class Scores(Choice):
    """What generated samples score, and what that is measured against."""

    layout: Literal[2] = 2
    protocol: Protocol
    made: Made | None = Field(None, description="None for samples of unknown origin")
    metrics: dict[Metric, Estimate] = Field(description="those that are defined")
    baselines: dict[Baseline, Comparison]
    classes: Classes | None = None
    likelihood: Bound | None = None
    reconstruction: Reconstruction | None = None

    @property
    def frechet(self) -> Estimate:
        """The Fréchet distance, which every record has; its name is in `protocol.names`."""
        return self.metrics["frechet"]


class Older(NamedTuple):
    """A score of an older layout, which said less of how it was made."""

    name: str
    value: float


def read(path: Path) -> list[Scores | Older]:
    """The records of a run's `scores.json`, oldest first; none where there is no such file.

    Raises: CheckpointError if it is damaged.
    """
    try:
        return [_record(entry) for entry in _entries(path)]
    except (ValidationError, LookupError, TypeError) as error:
        raise CheckpointError(
            f"{path} holds what is no score; restore it, or remove it to start afresh"
        ) from error


def add(path: Path, scores: Scores) -> None:
    """Add a record to `scores.json`; those in it stay as they are, whatever their layout.

    Raises: CheckpointError if the file is damaged, StorageError if it cannot be written.
    """
    record = scores.model_dump(mode="json")
    fsops.replace(path, json.dumps([*_entries(path), record], indent=1).encode())


def _entries(path: Path) -> list[Any]:
    found = fsops.read_json(path) if path.exists() else []
    if not isinstance(found, list):
        raise CheckpointError(f"{path} is damaged: it is no list; restore it, or remove it")
    return found


def _record(entry: Any) -> Scores | Older:
    if "layout" in entry:
        return Scores.model_validate(entry)
    return Older(str(entry["name"]), float(entry["value"]))
