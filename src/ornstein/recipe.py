"""A recipe: all that is chosen for a run, as one frozen value.

    data -> model, objective -> optim -> generation

The unions in the fields list every family there is; a method of the literature is a small module
in `ornstein.recipes` that states only what it chooses. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    NamedTuple,
    Protocol,
    Self,
    TypeVar,
    runtime_checkable,
)

from pydantic import Field, model_validator

from ornstein.autoencoders.code_drawing import CodeDrawing
from ornstein.autoencoders.decoding import Decoding
from ornstein.autoencoders.model import Autoencoder
from ornstein.autoencoders.prior import CodePrior
from ornstein.autoencoders.rollout import Rollout
from ornstein.autoencoders.tdvae import TDVAE, StateSpace
from ornstein.choice import Choice, Load
from ornstein.data.augment import Augment
from ornstein.data.info import DataInfo, Measure
from ornstein.data.sources import Data, Digits
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.sampling import Sampling
from ornstein.encoding import Encoding
from ornstein.errors import CheckpointError, ConfigError, nearest, of_section
from ornstein.objectives.autoencoding import Autoencoding
from ornstein.objectives.codes import Codes
from ornstein.objectives.denoising import Denoising, Gridded
from ornstein.objectives.score_matching import ScoreMatching
from ornstein.objectives.temporal import Jumps, WholeSequence
from ornstein.objectives.variational import Hybrid, Variational
from ornstein.optim import Optim
from ornstein.settings import chosen, flatten, resolve, to_yaml

if TYPE_CHECKING:
    from torch import Tensor

    from ornstein.noise import Noise
    from ornstein.training import Learner


@runtime_checkable
class Fitted(Protocol):
    """A choice with parts that may be left to the data."""

    def fitted(self, info: DataInfo, farthest: Measure | None = None) -> Choice:
        """The choice with those parts filled in; `info` is at the model's scale, and so is the
        largest distance between two training samples, which `farthest` measures."""


class Generation(Protocol):
    """How a trained model generates; the last state yielded is the result."""

    def __call__(self, model: Any, info: DataInfo, noise: Noise) -> Iterator[Tensor]: ...


@runtime_checkable
class Latent(Protocol):
    """A way of generating that is a function of latents, and one that can be undone."""

    def latent(self, model: Any, info: DataInfo) -> tuple[int, ...]:
        """The shape of the latents of one sample."""

    def encode(self, model: Any, info: DataInfo, x: Tensor) -> Tensor:
        """The latents z [B, *latent] from which x, at the model's scale, is drawn."""

    def decode(self, model: Any, info: DataInfo, z: Tensor) -> Tensor:
        """What is drawn from z, at the model's scale."""


@runtime_checkable
class Reconstructs(Protocol):
    """A way of generating by a model that can say back what it was shown, with some loss."""

    def reconstruct(self, model: Any, info: DataInfo, x: Tensor) -> Tensor:
        """What is left of x [B, *info.shape], both at the model's scale."""


Model = Annotated[
    Diffusion | Autoencoder | CodePrior | TDVAE | StateSpace, Field(discriminator="kind")
]
Objective = Annotated[
    Denoising | ScoreMatching | Hybrid | Variational | Autoencoding | Codes | Jumps | WholeSequence,
    Field(discriminator="kind"),
]
Drawing = Annotated[Sampling | Decoding | CodeDrawing | Rollout, Field(discriminator="kind")]


class Family(NamedTuple):
    """Which objectives and which ways of generating go with a kind of models; the first of each is
    what a sentence proposes."""

    objectives: tuple[type[Choice], ...]
    drawings: tuple[type[Choice], ...]


FAMILIES: dict[type[Choice], Family] = {
    Diffusion: Family((Denoising, ScoreMatching, Hybrid, Variational), (Sampling,)),
    Autoencoder: Family((Autoencoding,), (Decoding,)),
    CodePrior: Family((Codes,), (CodeDrawing,)),
    TDVAE: Family((Jumps, WholeSequence), (Rollout,)),
    StateSpace: Family((WholeSequence,), (Rollout,)),
}


class Recipe(Choice):
    """Everything chosen for a run.

    augment: how images are varied on their way to training, whatever data is named. encoding: the
    trained codec through which the model sees the data, if it does (see `ornstein.encoding`).
    preview: how the pictures during training are made, if not as `generation` says (which may be
    too slow for that). seed: of initial weights, data order, training noise and the split.
    """

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_.-]*$",
        max_length=60,
        description="lower-case letters, digits, '_', '.' and '-', a letter or digit first",
    )
    data: Data = Digits()
    augment: Augment = Augment()
    encoding: Encoding | None = None
    model: Model = Diffusion()
    objective: Objective = Denoising()
    optim: Optim = Optim(samples=1_000_000)
    generation: Drawing = Sampling()
    preview: Drawing | None = None
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _of_one_family(self) -> Self:
        family = FAMILIES.get(type(self.model))
        if family is None:
            return self  # of whoever has listed it in a schema of their own
        for section in ("objective", "generation", "preview"):
            given = getattr(self, section)
            fitting = family.objectives if section == "objective" else family.drawings
            if given is not None and not isinstance(given, fitting):
                raise ValueError(
                    f"a model of the kind {self.model.kind!r} does not go with "
                    f"{section}.kind={given.kind}; write "
                    f"{section}.kind={fitting[0].model_fields['kind'].default}"
                )
        return self

    @model_validator(mode="after")
    def _varied_or_encoded(self) -> Self:
        if self.encoding is not None and self.augment.wanted:
            raise ValueError(
                "augment varies images, and with an encoding the model sees codes that were made "
                "once; write augment.flip=false augment.crop=0"
            )
        return self

    @model_validator(mode="after")
    def _prior_of_the_codes_it_sees(self) -> Self:
        if not isinstance(self.model, CodePrior):
            return self
        codec = self.model.codec
        if self.encoding is None or self.encoding.form != "codes":
            raise ValueError(
                "a prior over codes sees the data through their codec; write encoding.form=codes "
                f"encoding.codec.path={codec.path}"
            )
        seen = self.encoding.codec
        if (seen.path, seen.average) != (codec.path, codec.average):
            raise ValueError(
                f"model.codec names {codec.path} {codec.average}".rstrip()
                + f" and encoding.codec {seen.path} {seen.average}".rstrip()
                + "; a prior is of the codes that it sees: give both the same path and average"
            )
        return self

    def fitted(self, info: DataInfo, farthest: Measure | None = None) -> Self:
        """The recipe with what it left to the data filled in: parts of the model, and then what
        follows from its noise levels.

        info: in native values. farthest: measures the largest distance between two training
        samples, in native values. Raises: ConfigError where that is needed and not given, and
        where sequences are given to a model of single samples.
        """
        if info.kind == "sequence" and isinstance(self.model, Diffusion | Autoencoder):
            raise ConfigError(
                f"data {info.name!r} are sequences of frames, and a model of the kind "
                f"{self.model.kind!r} is of single samples; train td_vae or state_space on them"
            )
        scaled, filled = self.at_model_scale(info), {}
        model: Any = self.model
        if isinstance(model, Fitted):
            scale, _ = info.affine(self.objective.range)
            measure = farthest and (lambda: abs(scale) * farthest())
            filled["model"] = model = model.fitted(scaled, measure)
        levels, trained = getattr(self.objective, "levels", None), None
        if isinstance(levels, Gridded):
            with of_section("objective"):
                levels = levels.fitted(model.process, scaled)
            filled["objective"] = self.objective.model_copy(update={"levels": levels})
            trained = levels.steps
        for name in ("generation", "preview"):
            if isinstance(how := getattr(self, name), Sampling):
                with of_section(name):
                    filled[name] = how.fitted(model.process, scaled, trained)
        return self.model_copy(update=filled)

    def at_model_scale(self, info: DataInfo) -> DataInfo:
        """The data as the objective receives it."""
        return info.scaled(self.objective.range)

    def learner(self, info: DataInfo, load: Load) -> Learner:
        """The untrained model and its objective; initial weights depend on `seed` only."""
        import torch

        from ornstein.noise import Noise
        from ornstein.training import Learner

        scaled = self.at_model_scale(info)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(
                int(Noise.of(self.seed, "initial weights", 1).bits(0, 1))
            )
            model: Any = self.model.build(scaled, load)
            with of_section("objective"):
                objective = self.objective.build(model, scaled, load)
            return Learner(model, objective)

    def key(self) -> str:
        """Eight hex digits that tell runs apart: what may change in a run does not count."""
        kept = chosen(self)
        for name in ("generation", "preview"):
            kept.pop(name, None)
        for name in ("samples", "minutes", "micro_batch", "recompute", "shard", "snapshots"):
            kept.get("optim", {}).pop(name, None)
        text = json.dumps(kept, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def run_name(self) -> str:
        """`<recipe>-<data>-<key>`: the folder of its run, unless another name is given."""
        return f"{self.name}-{self.data_name()}-{self.key()}"

    def data_name(self) -> str:
        """What the data is called in the name of a folder."""
        source = getattr(self.data, "path", None) or getattr(self.data, "name", self.data.kind)
        return re.sub(r"[^\w.-]+", "-", Path(str(source)).stem)[:40].strip("-.") or "data"

    def yaml(self) -> str:
        """The recipe as a file that `train` takes back."""
        return to_yaml(self)

    def stored(self) -> bytes:
        """`yaml` as a run keeps it: the last line says how many settings there are."""
        return f"{self.yaml()}# {len(flatten(self))} settings\n".encode()


RecipeT = TypeVar("RecipeT", bound=Recipe)


def stored(schema: type[RecipeT], folder: Path) -> RecipeT:
    """The recipe that the run in a folder was made with.

    A setting that did not exist when the run was made has its default, which is what it did then.
    Raises: CheckpointError where the file is damaged, cut short or lacks a line.
    """
    path = folder / "recipe.yaml"
    try:
        resolved = resolve(schema, {}, path)
        last = path.read_text(encoding="utf-8").splitlines()[-1]
    except (ConfigError, IndexError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}); restore it, or train afresh with --fresh"
        ) from error
    missing = [key for key, source in resolved.provenance.items() if source == "default"]
    if missing and last != f"# {len(resolved.provenance) - len(missing)} settings":
        raise CheckpointError(
            f"{path} is damaged: it has no {missing[0]}; restore it, or train afresh with --fresh"
        )
    return resolved.value


def named(name: str) -> Recipe:
    """The recipe `ornstein.recipes.<name>`.

    Raises: ConfigError for an unknown name, with the nearest known one.
    """
    if name not in names():
        raise ConfigError(f"there is no recipe {name!r}{nearest(name, names())}")
    recipe = importlib.import_module(f"ornstein.recipes.{name}").RECIPE
    assert isinstance(recipe, Recipe)
    return recipe


def names() -> tuple[str, ...]:
    """The names of all recipes."""
    package = importlib.import_module("ornstein.recipes")
    return tuple(sorted(module.name for module in pkgutil.iter_modules(package.__path__)))


def about(name: str) -> str:
    """What a recipe is, in the first sentence of its module."""
    text = importlib.import_module(f"ornstein.recipes.{name}").__doc__ or ""
    return text.strip().split("\n\n")[0].replace("\n", " ")
