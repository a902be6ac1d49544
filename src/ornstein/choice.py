"""What is chosen: frozen values with types, that are their own configuration.

A choice is written in a recipe, read from YAML, overridden on the command line and stored with
the run. Where a field may hold one of several choices its type is a union, told apart by `kind`:
the annotation is the registry.
"""

from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Choice(BaseModel):
    """A frozen value; an unknown field or a wrong type is an error, NaN and infinity too."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        revalidate_instances="never",
    )


class RunRef(Choice):
    """Another run that a recipe builds on (a teacher, a codec): by path, and by content.

    `weights` is the SHA-256 of the file of weights that is meant, so that a recipe names exactly
    what it was trained with; loading refuses anything else.
    """

    path: str
    average: str = Field("", description="which average of the weights; empty: the first")
    weights: str = Field("", pattern=r"^([0-9a-f]{64})?$", description="SHA-256; empty: not pinned")


Load = Callable[[RunRef], Any]
"""Turns a reference into the trained model behind it: `build` is handed one, so that no
family needs to know what a run is."""
