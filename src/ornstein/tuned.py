"""What `ornstein tune` has found out for a number of evaluations: a record in the run.

    runs/NAME/tuned/6.json    the sampler to use with 6 evaluations, and what it was compared with

Errors are distances to where the flow ends from the same noise: root mean square over the values of
a sample, at the model's scale, and the mean over starts that the fit has not seen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from ornstein import fsops
from ornstein.choice import Choice
from ornstein.diffusion.sampling import Sampling
from ornstein.errors import CheckpointError
from ornstein.scores import Estimate

FOLDER = "tuned"


class Tuned(Choice):
    """The sampler for a number of evaluations, and how it was found."""

    layout: Literal[1] = 1
    evaluations: int = Field(ge=1)
    generation: Sampling
    chosen: str = Field(description="'fitted', or the name of the fixed solver that is as good")
    best: str = Field(description="name of the best fixed solver")
    errors: dict[str, Estimate] = Field(description="of what was compared, by name")
    ratio: Estimate = Field(description="of the chosen one's error to that of the best fixed one")
    teacher: float = Field(ge=0, description="about the error of what all are measured by")
    weights: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the model's weights")
    average: str = Field(description="which average of the weights; empty for the first")
    samples_trained: int = Field(ge=0)
    seed: int
    starts: int = Field(ge=1, description="that the fit has seen")
    unseen: int = Field(ge=1, description="starts that it has not seen, of which errors are")
    rounds: int = Field(ge=0, description="of the fit")
    cut: bool = Field(False, description="whether the clock ended the fit")
    seconds: float = Field(ge=0)


def path_of(folder: Path, evaluations: int) -> Path:
    """Where the run in a folder keeps the record for so many evaluations."""
    return folder / FOLDER / f"{evaluations}.json"


def read(folder: Path, evaluations: int) -> Tuned | None:
    """The record of the run in a folder, if there is one.

    Raises: CheckpointError if it is damaged.
    """
    path = path_of(folder, evaluations)
    if not path.exists():
        return None
    try:
        found = Tuned.model_validate(json.loads(fsops.small(path)))
        if found.evaluations != evaluations or found.generation.evaluations is None:
            raise ValueError("it is of another number of evaluations")
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        raise CheckpointError(
            f"{path} is damaged; tune again, or remove it to do without what was fitted"
        ) from error
    return found


def write(folder: Path, found: Tuned) -> Path:
    """Keep a record in the place of an older one. Raises: StorageError."""
    path = path_of(folder, found.evaluations)
    fsops.make_inside(path.parent)
    fsops.replace(path, found.model_dump_json(indent=1).encode())
    return path
