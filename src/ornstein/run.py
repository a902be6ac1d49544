"""A run: a folder that holds everything about one training, and the four verbs of every family.

    runs/NAME/  recipe.yaml       the resolved recipe, which `train` takes back
                request.yaml      what was asked for, before data and clock filled in the rest
                provenance.json   where each value came from, and every later change
                data.json         what is known of the data (`DataInfo`)
                encoded.json      the same of their codes, where those are what it is trained on
                metrics.jsonl     one line per update
                ckpt/             checkpoints, see `ornstein.checkpoint`
                averages/         power averages set aside, where optim.snapshots asks for them
                previews/         pictures at fixed seeds
                scores.json       what `evaluate` found
                tuned/            samplers that `tune` has fitted, by evaluations

    run.train()   run.generate(n, seed)   run.likelihood(batch)   run.preview()   run.scores(n)

The folder is the whole truth: a run is opened from it alone, by whatever family it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ornstein import checkpoint as checkpoints
from ornstein import fsops, memory, pictures, ranks
from ornstein import plan as plans
from ornstein import scores as records
from ornstein.autoencoders.codec import Codec
from ornstein.averages import Recombined, recombined, sources
from ornstein.choice import Choice, RunRef, pinned, references
from ornstein.data.distances import farthest
from ornstein.data.images import cache_folder
from ornstein.data.info import DataInfo, Dataset, Measure
from ornstein.data.stream import Stream
from ornstein.drift import FREE, Change, changes, refused
from ornstein.encoding import Trained, encoded
from ornstein.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NumericsError,
    OrnsteinError,
    OutOfMemory,
    ProcessLost,
    StorageError,
    nearest,
    quote,
)
from ornstein.log import Log, cut, locked
from ornstein.nats import Likelihood, Nats
from ornstein.noise import Noise, permutation
from ornstein.optim import WIDTHS
from ornstein.prepare import check, concrete, default_device, doubts, measured
from ornstein.recipe import Generation, Latent, Recipe, Reconstructs, stored
from ornstein.scores import Made, Scores, Split
from ornstein.settings import difference, resolve
from ornstein.trackers import Following, Tracker
from ornstein.training import Event, Learner, TrainState, reshard, train
from ornstein.tuned import Tuned
from ornstein.tuned import read as read_tuned
from ornstein.yamltree import show

UNLIKE = 0.1  # the share of an average's weighting that may be missing when it is made of others
_WIDTH = re.compile(r"power-(\d+\.?\d*|\.\d+)")
MISSES = 3  # saves in a row that may fail before training stops
PREVIEW_SHARE = 0.03
PREVIEW_SEED = 0


class Run:
    """A run folder. Make one with `Run.create`, or open one with `Run.open`.

    recipe: the resolved recipe. info: the data, in native values. seen: the same of what the model
    sees of it, where that is its codes (see `encoding`). stopped: what `train` was stopped with, 0
    for nothing. On several ranks every one calls each verb alike; all of them get the whole
    result, and the lead alone writes to the folder.
    """

    def __init__(
        self, path: Path, recipe: Recipe, info: DataInfo, seen: DataInfo | None = None
    ) -> None:
        self.path = path
        self.recipe = recipe
        self.info = info
        self.seen = seen or info
        self.device = default_device()
        self.stopped = 0
        self._models: dict[tuple[str, int], Learner] = {}
        self._held: checkpoints.Checkpoint | None = None
        self._dataset: Dataset | None = None
        self._codes: Dataset | None = None
        self._codec: Trained | None = None

    # Making and opening

    @classmethod
    def create(
        cls,
        recipe: Recipe,
        runs: Path = Path("runs"),
        name: str | None = None,
        provenance: Mapping[str, str] | None = None,
        allow: tuple[str, ...] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> Run:
        """The run of this recipe: a new folder, or the one that exists already.

        Its name is `<recipe>-<data>-<key>` unless it is given. If the run exists, what the recipe
        changes is accepted, noted or refused, see `changes`. `allow` lists keys that may change
        all the same; `progress` is called while data is read.
        Raises: ConfigError, DataError, CheckpointError (a refused change).
        """
        run = cls.plan(recipe, runs, name, allow, progress)
        text = run.recipe.stored() + run.info.fingerprint.encode() + bytes([run.exists])
        if not _alike(hashlib.sha256(text).hexdigest()):
            raise ranks.told_by_lead(
                ConfigError(
                    "the processes see different data or other runs; they must share both: choose "
                    "folders that all of them see with --data and --runs"
                )
            )
        if run.recipe.optim.samples is None:
            run.recipe = measured(run.recipe, run.training_data, loader(type(recipe)))
        with ranks.alike():
            if not ranks.leads():
                pass
            elif run.exists:
                run._record(recipe)
            else:
                run._make(recipe, provenance or {})
        return run

    @classmethod
    def plan(
        cls,
        recipe: Recipe,
        runs: Path = Path("runs"),
        name: str | None = None,
        allow: tuple[str, ...] = (),
        progress: Callable[[int, int], None] | None = None,
    ) -> Run:
        """What `create` would return, but no run is written, and a length in minutes that has to
        be measured is not: `recipe.optim.samples` is None then. Raises: as `create`."""
        # The lead reads the data first, so that others find what it has kept of it.
        return ranks.in_turn(lambda: cls._plan(recipe, Path(runs), name, allow, progress))

    @classmethod
    def _plan(
        cls,
        recipe: Recipe,
        runs: Path,
        name: str | None,
        allow: tuple[str, ...],
        progress: Callable[[int, int], None] | None,
    ) -> Run:
        path = runs / (recipe.run_name() if name is None else checked_name(name))
        dataset = recipe.data.load(progress)
        schema = type(recipe)
        if (path / "recipe.yaml").exists():
            run = cls.open(path, schema=schema)
            run._check_data(dataset.info)
            run._dataset = dataset
            run.recipe = run._adopted(recipe, allow)
        else:
            codec, data = None, dataset
            if recipe.encoding is not None:
                encoding = pinned(recipe.encoding, pinner(schema))
                recipe = recipe.model_copy(update={"encoding": encoding})
                codec = codec_of(encoding.codec, schema)
                data = encoded(dataset, codec, encoding, cache_folder(), progress)
            resolved = concrete(recipe, data.info, loader(schema), pinner(schema), _farthest(data))
            run = cls(path, resolved, dataset.info, data.info)
            run._dataset, run._codes, run._codec = dataset, data, codec
        return run

    @property
    def exists(self) -> bool:
        """Whether the run has a folder; one that is only planned has none."""
        return (self.path / "recipe.yaml").is_file()

    @classmethod
    def open(
        cls, path: Path | str, runs: Path = Path("runs"), schema: type[Recipe] = Recipe
    ) -> Run:
        """The run in a folder, or the run of that name below `runs`.

        Raises: ConfigError where there is none, with the nearest name.
        """
        if str(path).startswith(plans.MARK):
            raise ConfigError(
                f"this recipe builds on a stage {str(path).removeprefix(plans.MARK)!r} of a plan; "
                "train a plan (`ornstein recipes` lists them), or write the path of a run, such as "
                f"encoding.codec.path=runs/NAME, wherever the recipe says {path}"
            )
        runs = Path(runs)
        for place in (Path(path), runs / path):
            path = plans.result(place) or path  # the run that a plan is for
        found = next((p for p in (Path(path), runs / path) if (p / "recipe.yaml").is_file()), None)
        if found is None:
            known = [str(path.relative_to(runs)) for path in run_folders(runs)]
            hint = nearest(str(path), known) or f"; there are no runs in {runs} yet"
            if path and Path(path).is_dir():
                raise ConfigError(f"{path} is not a run: it has no recipe.yaml{hint}")
            raise ConfigError(f"there is no run {str(path)!r}{hint}")
        recipe = stored(schema, found)
        infos = []
        for name in ("data.json", "encoded.json")[: 1 + (recipe.encoding is not None)]:
            try:
                infos.append(DataInfo.model_validate(fsops.read_json(found / name)))
            except ValueError as error:
                raise CheckpointError(
                    f"{found / name} is missing or damaged; restore it, or train afresh"
                ) from error
        return cls(found, recipe, *infos)

    def _make(self, request: Recipe, provenance: Mapping[str, str]) -> None:
        """Write the folder of a new run under another name, then give it its own."""
        filled = dict.fromkeys(difference(request, self.recipe), "measured")
        files = {
            "recipe.yaml": self.recipe.stored(),
            "request.yaml": request.stored(),
            "provenance.json": _json({"from": {**provenance, **filled}, "changes": []}),
            "data.json": self.info.model_dump_json(indent=1).encode(),
        }
        if self.recipe.encoding is not None:
            files["encoded.json"] = self.seen.model_dump_json(indent=1).encode()
        temporary = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex[:8]}.tmp")
        fsops.make_folder(temporary)
        try:
            for name, content in files.items():
                fsops.write(temporary / name, content)
            fsops.flush_folder(temporary)
            fsops.rename(temporary, self.path)
        except StorageError as error:
            if self.path.exists():
                raise StorageError(
                    f"{self.path} exists and is not a run; choose another name with --run, "
                    "or another folder with --runs"
                ) from error
            raise
        finally:
            if temporary.exists():
                fsops.remove(temporary)
        for doubt in doubts(self.recipe, self.seen):
            self._note(doubt)

    # Training

    @property
    def total(self) -> int:
        """How many samples the run is to use."""
        assert self.recipe.optim.samples is not None  # filled in by `create`
        return self.recipe.optim.samples

    @property
    def samples(self) -> int:
        """How many samples had been used at the last whole checkpoint."""
        found = self._latest()
        return 0 if found is None else int(found.state["samples"])

    @property
    def finished(self) -> bool:
        """Whether training has used all its samples."""
        return self.samples >= self.total

    @property
    def dataset(self) -> Dataset:
        """The run's data, read again if need be. Raises: DataError where it has changed."""
        if self._dataset is None:
            dataset = self.recipe.data.load()
            self._check_data(dataset.info)
            self._dataset = dataset
        return self._dataset

    @property
    def training_data(self) -> Dataset:
        """What the model is trained on: the data, or their codes.

        Raises: DataError where the data has changed, CheckpointError where the codec has.
        """
        if self.recipe.encoding is None:
            return self.dataset
        if self._codes is None:
            codes = encoded(self.dataset, self.codec, self.recipe.encoding, cache_folder())
            if codes.info.fingerprint != self.seen.fingerprint:
                raise CheckpointError(
                    f"run {self.path.name} was trained on other codes than its codec "
                    f"{self.codec.name} gives now; put the old codec back, or train afresh"
                )
            self._codes = codes
        return self._codes

    @property
    def codec(self) -> Trained:
        """The codec through which the model sees the data; only for runs with an encoding.

        Raises: CheckpointError where it has other weights than the run was made with.
        """
        assert self.recipe.encoding is not None
        if self._codec is None:
            self._codec = codec_of(self.recipe.encoding.codec, type(self.recipe))
        return self._codec

    def check_references(self) -> None:
        """Raises: CheckpointError where a run that this one builds on is not as it was then."""
        for reference in references(self.recipe):
            _referred(reference, type(self.recipe))

    def source(self) -> Stream:
        """The stream of training samples, as the objective receives them."""
        recipe = self.recipe
        return Stream(self.training_data, recipe.seed, recipe.objective.range, recipe.augment)

    def untrained(self) -> Learner:
        """The learner as it is before training."""
        return self.recipe.learner(self.seen, loader(type(self.recipe)))

    def state(self) -> TrainState:
        """The training state at the last whole checkpoint, or at the start; it only reads."""
        return self._state(checkpoints.latest(self.path / "ckpt"))

    def _state(self, found: checkpoints.Checkpoint | None) -> TrainState:
        state = TrainState(self.untrained(), self.recipe.optim, self.device)
        if found is not None:
            checkpoints.restore(found, state)
        return state

    def train(
        self,
        *,
        save_every: float = 60.0,
        previews: bool = True,
        stop: Callable[[], int] = lambda: 0,
        trackers: Sequence[type[Tracker]] = (),
    ) -> Iterator[Event]:
        """Train to the end, from the last checkpoint on, yielding an event after each update.

        Saves every `save_every` seconds, at the end, and when it is stopped: by the caller, who
        stops iterating, or because `stop`, asked after each update, returns a number other than 0
        on any rank. (Several ranks have to be stopped that way, since all must stop alike; the
        number is that of a signal, say, and `stopped` says what it was.) Bit for bit, the end
        does not depend on where or how often training was interrupted (same machine type, torch
        build, thread and device count).
        A save that fails is tried again after the next interval, three times in all.
        trackers: other programs that show what is logged, see `ornstein.trackers`.
        Raises: StorageError where another process trains this run, or where it cannot be saved;
        and what `train` raises.
        """
        if not save_every > 0:
            raise ConfigError(f"save_every must be a number of seconds above 0, got {save_every}")
        self.stopped = 0
        with contextlib.ExitStack() as held:
            check_folder: Callable[[], None] | None = None
            with ranks.alike():
                if ranks.leads():
                    check_folder = held.enter_context(locked(self.path))
                    for name in ("ckpt", "averages"):
                        for sentence in checkpoints.repair(self.path / name):
                            self._note(sentence)
            with ranks.alike():
                found = checkpoints.latest(self.path / "ckpt")
            self._same_for_all(found)
            try:
                state = self._state(found)
            except CheckpointError as error:  # of what all of them have read
                raise ranks.told_by_lead(error) from error
            log: Log | None = None
            with ranks.alike():
                if ranks.leads():
                    if found is not None:
                        cut(self.path / "metrics.jsonl", int(found.state["metrics_bytes"]))
                    elif self._log_of_lost_checkpoints():
                        self._note(
                            "there are no checkpoints; the old metrics are kept beside the new"
                        )
                    followers = [
                        held.enter_context(Following(self.path, kind, self._note))
                        for kind in trackers
                    ]
                    log = held.enter_context(Log(self.path / "metrics.jsonl", followers))
            with ranks.alike():
                source = self.source()

            def save() -> None:
                extra = {"seed": self.recipe.seed, "data": self.info.fingerprint}
                with ranks.alike():
                    if check_folder is not None and log is not None:
                        check_folder()
                        extra |= {"metrics_bytes": log.sync()}
                checkpoints.save(self.path / "ckpt", state, extra)

            yield from self._updates(state, source, log, save, save_every, previews, stop)

    def _updates(
        self,
        state: TrainState,
        source: Stream,
        log: Log | None,
        save: Callable[[], None],
        save_every: float,
        previews: bool,
        stop: Callable[[], int],
    ) -> Iterator[Event]:
        due = _PreviewClock()
        missed, saved_at, saved_step = 0, time.monotonic(), state.step
        seen = state.samples
        try:
            for event in train(state, source, self.recipe.optim, self.total, self.recipe.seed):
                if log is not None:
                    log.add(event)
                if event.micro_batch != self.recipe.optim.micro_batch:
                    self._halved(event)
                count = self.recipe.optim.snapshots
                if state.samples * count // self.total > seen * count // self.total:
                    self._set_aside(state)
                seen = state.samples
                # The lead's clock counts, and a signal to any of the ranks.
                leads, last = ranks.leads(), state.samples >= self.total
                late = time.monotonic() - saved_at > save_every
                self.stopped, saves, draws = ranks.agreed(
                    stop(), leads and late, leads and previews and due.after(event)
                )
                if saves or last or self.stopped:
                    try:
                        save()
                        missed, saved_step = 0, state.step
                    except StorageError as error:  # a full disk may have room again by then
                        missed += 1
                        if missed == MISSES or last or self.stopped or not self.exists:
                            raise
                        self._note(f"update {state.step} was not saved, the next will be: {error}")
                    saved_at = time.monotonic()
                    (self.stopped,) = ranks.agreed(self.stopped or stop())  # during the save
                if draws:
                    previews = self._try_preview(state)
                    due.done()
                yield event
                if self.stopped:
                    return
        except GeneratorExit:
            if state.step > saved_step and ranks.world() == 1:
                save()
            raise
        if previews and state.step > 0:
            self._try_preview(state)

    # The four verbs

    @torch.no_grad()
    def generate(
        self,
        n: int,
        seed: int = 0,
        *,
        generation: Generation | None = None,
        average: str = "",
        batch: int = 64,
        first: int = 0,
    ) -> np.ndarray:
        """`n` samples in the data's native values, [n, *shape], in its own type of number.

        Sample i depends on (seed, first + i) only: not on n, and on `batch` to rounding.
        generation: how, if not as the recipe says. average: which average of the weights; empty
        for the first of the recipe, "none" for the last weights.
        """
        for what, count in (("number of samples", n), ("batch", batch)):
            if count < 1:
                raise ConfigError(f"the {what} must be at least 1, got {count}")
        # At least: the parts, a byte or four a value, and the array that they are joined to.
        needed = 2 * n * math.prod(self.info.shape) * (4 if self.info.bins is None else 1)
        if needed > memory.free(torch.device("cpu")):
            raise OutOfMemory(
                f"{n:,} samples of this size take at least {needed / 2**30:,.1f} GiB, more than is "
                "free here; draw fewer, or in parts with other seeds"
            )
        found, learner = self._load(average)
        self._same_for_all(found)
        model = learner.model
        ids, how = range(first, first + n), generation or self.recipe.generation
        return self._drawn(model, how, ids, seed, batch)

    @torch.no_grad()
    def states(
        self,
        n: int,
        seed: int = 0,
        *,
        generation: Generation | None = None,
        average: str = "",
    ) -> list[np.ndarray]:
        """All states of the generation of `n` samples, in native values, from the start on."""
        if n < 1:
            raise ConfigError(f"the number of samples must be at least 1, got {n}")
        model = self.learner(average).model
        states = self._states(model, generation or self.recipe.generation, range(n), seed)
        return [self.native(x) for x in states]

    def _drawn(self, model: Any, how: Generation, ids: range, seed: int, batch: int) -> np.ndarray:
        """The samples `ids` in native values, of which each rank draws some."""
        drawn = []
        own = _share(ids, batch)
        with ranks.alike():
            for part in own or [ids[:1]]:  # where networks are sharded, all ranks must call them
                try:
                    *_, last = self._states(model, how, part, seed)
                except RuntimeError as error:
                    if not memory.ran_out(error):
                        raise
                    raise OutOfMemory(
                        f"out of memory with {len(part)} samples at a time; draw fewer"
                    ) from error
                drawn.append(self.native(last))
        kept = np.concatenate(drawn)[: sum(map(len, own))]
        return ranks.gathered(torch.from_numpy(kept)).numpy()

    def _states(
        self, model: Any, generation: Generation, ids: range, seed: int
    ) -> Iterator[Tensor]:
        """The states of the generation of the samples `ids`, at the model's scale."""
        noise = Noise.of(seed, "generate", torch.tensor(ids, device=self.device))
        states = generation(model, self.recipe.at_model_scale(self.seen), noise)
        return states if self.recipe.encoding is None else map(self._decoded, states)

    def _decoded(self, x: Tensor) -> Tensor:
        """What the codec says of codes [B, *] at the model's scale: x at the codec's scale."""
        if x.shape[1:] != self.seen.shape:
            raise ConfigError(
                f"run {self.path.name} draws {x[0].numel()} of the {self.seen.shape[0]} codes of a "
                "sample, and pictures need all; draw with the run of the finest level"
            )
        a, b = self.seen.affine(self.recipe.objective.range)
        assert self.recipe.encoding is not None
        return self.codec.decode((x - b) / a, self.recipe.encoding.form)

    def likelihood(
        self,
        x: np.ndarray,
        seed: int = 0,
        *,
        generation: Generation | None = None,
        average: str = "",
        batch: int = 64,
    ) -> np.ndarray:
        """−log p(x) in nats per sample, float64 [n], or a bound on it, for native values x.

        p is the law of the samples that `generation` draws (the recipe's, unless given): the
        probability of whole numbers where the data has bins, a density of native values elsewhere.
        Sample i's bound depends on the seed, i and x[i]. Raises: ConfigError where this way of
        generating has no law that can be computed.
        """
        return self.nats(x, seed, generation=generation, average=average, batch=batch).total.numpy()

    @torch.no_grad()
    def nats(
        self,
        x: np.ndarray,
        seed: int = 0,
        *,
        generation: Generation | None = None,
        average: str = "",
        batch: int = 64,
    ) -> Nats:
        """`likelihood` with the parts that it is the sum of, by name, each float64 [n]."""
        how = generation or self.recipe.generation
        if not isinstance(how, Likelihood):
            raise ConfigError(f"runs that generate by {_kind(how)!r} offer no likelihood")
        self._check_shape(x, batch, "a likelihood is of native values", self.info.shape)
        checkpoint, learner = self._load(average)
        self._same_for_all(checkpoint)
        model: Any = learner.model
        scaled = self.recipe.at_model_scale(self.seen)
        a, b = self.info.affine(self._range)
        found: list[Nats] = []
        own = _share(range(len(x)), batch)
        with ranks.alike():
            for part in own or [range(1)]:
                values = self._values(x[part.start : part.stop])
                ids = torch.tensor(part, device=self.device)
                noise = Noise.of(seed, "likelihood", ids)
                seen, given = values * a + b, dict[str, Tensor]()
                if self.recipe.encoding is not None:
                    seen, given = self.codec.law(seen, self.recipe.encoding.form, noise)
                nats = how.likelihood(model, scaled, seen, noise)
                if given:  # by way of one code, of which the sample may have others
                    nats = nats._replace(parts={**nats.parts, **given}, exact=False)
                found.append(nats)
        count = sum(map(len, own))

        def whole(of_part: list[Tensor]) -> Tensor:
            return ranks.gathered(torch.cat([t.double().cpu() for t in of_part])[:count])

        parts = {name: whole([nats.parts[name] for nats in found]) for name in found[0].parts}
        errors = [nats.error for nats in found if nats.error is not None]
        if self.info.bins is None and a != 1:  # a density per native value
            change = -np.prod(self.info.shape) * np.log(abs(a))
            parts["scale"] = torch.full((len(x),), float(change), dtype=torch.float64)
        return Nats(parts, found[0].exact, whole(errors) if errors else None)

    def encode(
        self,
        x: np.ndarray,
        *,
        generation: Generation | None = None,
        average: str = "",
        batch: int = 64,
    ) -> np.ndarray:
        """The latents float32 [n, *latent] of native values x, where generation has any: the noise
        from which it draws them, N(0, I) for samples of the model's own, or their codes. `decode`
        undoes it.

        Raises: ConfigError where this way of generating has no latents.
        """
        model: Any = self.pixel_model(average)
        how = generation or self.recipe.generation
        if not isinstance(how, Latent):
            raise ConfigError(f"runs that generate by {_kind(how)!r} have no latents")
        self._check_shape(x, batch, "encoded are native values", self.info.shape)
        info = self.recipe.at_model_scale(self.info)
        a, b = self.info.affine(self.recipe.objective.range)
        found = []
        for start in range(0, len(x), batch):
            part = self._values(x[start : start + batch])
            found.append(how.encode(model, info, part * a + b).cpu().numpy())
        return np.concatenate(found)

    def decode(
        self,
        z: np.ndarray,
        *,
        generation: Generation | None = None,
        average: str = "",
        batch: int = 64,
    ) -> np.ndarray:
        """What is drawn from latents z [n, *latent], in the data's native values; see `encode`."""
        model: Any = self.pixel_model(average)
        how = generation or self.recipe.generation
        if not isinstance(how, Latent):
            raise ConfigError(f"runs that generate by {_kind(how)!r} have no latents")
        info = self.recipe.at_model_scale(self.info)
        self._check_shape(z, batch, "decoded are latents", how.latent(model, info))
        found = []
        for start in range(0, len(z), batch):
            part = self._values(z[start : start + batch])
            found.append(self.native(how.decode(model, info, part)))
        return np.concatenate(found)

    def reconstruct(
        self,
        x: np.ndarray,
        *,
        generation: Generation | None = None,
        average: str = "",
        batch: int = 64,
    ) -> np.ndarray:
        """What the model says back of native values x [n, *shape], in native values.

        Raises: ConfigError where it is no autoencoder.
        """
        model: Any = self._load(average)[1].model
        how = generation or self.recipe.generation
        if not isinstance(how, Reconstructs):
            raise ConfigError(f"runs that generate by {_kind(how)!r} reconstruct nothing")
        self._check_shape(x, batch, "reconstructed are native values", self.info.shape)
        return np.concatenate(
            [
                self._reconstructed(model, how, x[start : start + batch])
                for start in range(0, len(x), batch)
            ]
        )

    def _reconstructed(self, model: Any, how: Reconstructs, x: np.ndarray) -> np.ndarray:
        """One batch of `reconstruct`."""
        a, b = self.info.affine(self.recipe.objective.range)
        values = self._values(x) * a + b
        return self.native(how.reconstruct(model, self.recipe.at_model_scale(self.info), values))

    def _values(self, x: np.ndarray) -> Tensor:
        """A copy on the run's device; what is mapped from a file must not be written to."""
        return torch.tensor(x, dtype=torch.float32, device=self.device)

    def _check_shape(self, x: np.ndarray, batch: int, what: str, shape: tuple[int, ...]) -> None:
        if tuple(x.shape[1:]) != shape or len(x) < 1 or batch < 1:
            raise ConfigError(
                f"{what} [n, {', '.join(map(str, shape))}], in batches of 1 or more; got "
                f"{list(x.shape)} in batches of {batch}"
            )

    def _same_for_all(self, found: checkpoints.Checkpoint | None) -> None:
        """Refuse to go on from different checkpoints. Raises: CheckpointError on all ranks."""
        if not _alike("0" if found is None else found.digest):
            raise ranks.told_by_lead(
                CheckpointError(
                    f"the processes see different checkpoints in {self.path / 'ckpt'}; they must "
                    "share this folder, and a run that is trained saves now and then: try again"
                )
            )

    def preview(self, n: int = 16) -> Path:
        """Draw `n` samples of the last checkpoint at the fixed preview seed into `previews/`."""
        found = checkpoints.latest(self.path / "ckpt")
        step = 0 if found is None else int(found.state["step"])
        x = self.generate(n, PREVIEW_SEED, generation=self.recipe.preview)
        with ranks.alike():
            return self._write_preview(x, step)

    def scores(
        self,
        n: int = 1000,
        seed: int = 0,
        *,
        generation: Generation | None = None,
        average: str = "",
        extractor: str = "",
        split: Split = "train",
        likelihood: int = 256,
    ) -> Scores:
        """Generate `n` samples and score them against a split of the data; see `evaluation`.

        extractor: whose features: "classifier", "pixels" or a safetensors file with the weights
        of the FID network; empty for a classifier where there are classes, else pixels.
        likelihood: on how many held-out samples, at most, −log p is measured; 0 for none. There is
        none either where `generation` has no law or nothing is held out. The scores are added to
        the run's `scores.json`.
        """
        if n < 2:
            raise ConfigError(f"a score needs at least 2 samples, got {n}; write --number 1000")
        if likelihood < 0:
            raise ConfigError(f"a likelihood cannot be of {likelihood} samples; write 0 for none")
        from ornstein.evaluation import bound_of, reconstruction_of, reference_for, score
        from ornstein.features.select import extractor_for

        path, cache = self.path / "scores.json", cache_folder()
        how = generation or self.recipe.generation

        with self.still(average):
            with ranks.alike():
                if ranks.leads():  # what can be refused is refused before the work
                    records.read(path)
                    eye = extractor_for(self.dataset, 0, cache, extractor, self.device)
                    reference = reference_for(
                        self.dataset, eye, seed, count=n, split=split, cache=cache
                    )
            started = time.monotonic()
            samples = self.generate(n, seed, generation=generation, average=average, batch=250)
            seconds = (time.monotonic() - started) / n
            made = Made(
                weights=self.weights(average),
                average=self._average(average),
                samples_trained=self.samples,
                generation=how.model_dump(mode="json")
                if isinstance(how, Choice)
                else {"kind": _kind(how)},
                evaluations=getattr(how, "evaluations", None),
                seconds=seconds,
            )
            unseen = self.dataset.held_out
            bound = None
            if likelihood and len(unseen) and isinstance(how, Likelihood) and how.no_law is None:
                chosen = permutation(0, "likelihood", 0, len(unseen))[:likelihood].numpy()
                x = self.dataset.x[np.sort(unseen[chosen])]
                nats = self.nats(x, seed, generation=how, average=average, batch=250)
                bound = bound_of(nats, self.info.shape, "held_out")
            said = None
            if isinstance(how, Reconstructs) and len(unseen) and self.info.kind == "image":
                chosen = permutation(0, "reconstruction", 0, len(unseen))[:n].numpy()
                x = self.dataset.x[np.sort(unseen[chosen])]
                said = x, self.reconstruct(x, generation=how, average=average, batch=250)
        text = ""
        with ranks.alike():
            if ranks.leads():
                result = score(self.dataset, samples, eye, seed, reference, split=split, made=made)
                found = None if said is None else reconstruction_of(*said, self.info)
                result = result.model_copy(update={"likelihood": bound, "reconstruction": found})
                records.add(path, result)
                text = result.model_dump_json()
        told = ranks.text_from_lead(text)
        return result if ranks.leads() else Scores.model_validate_json(told)

    def tuned(self, evaluations: int) -> Tuned | None:
        """What `ornstein tune` has kept for so many evaluations, if it has; see `tuning`.

        Raises: CheckpointError where the record is damaged.
        """
        return read_tuned(self.path, evaluations)

    # Parts

    def learner(self, average: str = "") -> Learner:
        """The trained learner, ready to use, with an average of its weights (see `generate`)."""
        return self._load(average)[1]

    def pictured(self, average: str = "") -> bool:
        """Whether what the model draws makes whole samples; a prior of a coarse level does not."""
        whole = self.seen.shape[0]
        return bool(getattr(self.learner(average).model, "places", whole) == whole)

    def pixel_model(self, average: str = "") -> Any:
        """The trained model, for what works on the data themselves at the model's scale.

        Raises: ConfigError where the model sees codes of them.
        """
        if self.recipe.encoding is not None:
            raise ConfigError(
                f"run {self.path.name} was trained on codes of the data, and this works on the "
                "data themselves; name a run without an encoding"
            )
        return self.learner(average).model

    @contextlib.contextmanager
    def still(self, average: str = "") -> Iterator[None]:
        """Within, the run is as at its last whole checkpoint now, though another process trains
        it: all that is drawn or said with this average is of the same weights.

        Raises: CheckpointError where there is no checkpoint.
        """
        before = self._held
        self._held = before or self._load(average)[0]
        try:
            yield
        finally:
            self._held = before

    def _latest(self) -> checkpoints.Checkpoint | None:
        return self._held or checkpoints.latest(self.path / "ckpt")

    def _load(self, average: str) -> tuple[checkpoints.Checkpoint, Learner]:
        """The checkpoint that is meant, and the learner with an average of its weights."""
        found = self._latest()
        if found is None:
            raise CheckpointError(f"the run {self.path.name} has no checkpoint yet; train it first")
        name = self._average(average)
        newest = checkpoints.newest(self.path / "ckpt")
        # A process that trains this run may have saved since; then the newest is not damaged.
        if newest not in (found.folder.name, None) and self._latest() == found != self._held:
            logging.getLogger(__name__).warning(
                "the newest checkpoint of %s is damaged; this is %s",
                *(self.path.name, found.folder.name),
            )
        key = (name or average, int(found.state["step"]))
        if key not in self._models:
            learner = self.untrained()
            try:
                if name is None:
                    learner.load_state_dict(self._made(found, average).tensors())
                else:
                    checkpoints.load_weights(found, name, learner)
            except FileNotFoundError as error:
                if self._held is not None:
                    raise CheckpointError(
                        f"{found.folder} has been replaced by a newer checkpoint; try again"
                    ) from error
                return self._load(average)  # pruned meanwhile by the process that trains this run
            self._models = {key: learner.to(self.device).requires_grad_(False).eval()}
        return found, self._models[key]

    def weights(self, average: str = "") -> str:
        """SHA-256 of the weights that `learner(average)` would load."""
        found = self._latest()
        if found is None:
            raise CheckpointError(f"the run {self.path.name} has no checkpoint yet; train it first")
        name = self._average(average)
        return self._made(found, average).sha256() if name is None else found.sha256(name)

    def native(self, x: Tensor) -> np.ndarray:
        """Model-scale values as the data's own: scaled back, clipped and rounded where the data
        has a range and bins. Raises: NumericsError where they are not finite."""
        info = self.info
        a, b = info.affine(self._range)
        values = (x.detach().cpu().double().numpy() - b) / a
        if not np.isfinite(values).all():
            raise NumericsError(
                f"what run {self.path.name} draws is not finite; try another step or grid, "
                "an earlier average, or training with a lower optim.lr"
            )
        if info.range is None:
            return np.asarray(values, dtype=np.float32)
        low, high = info.range
        values = np.clip(values, low, high)
        if info.bins is None:
            return np.asarray(values, dtype=np.float32)
        width = (high - low) / (info.bins - 1)
        values = np.rint((values - low) / width) * width + low
        whole = width == 1 and low == int(low) and low >= 0 and high <= 255
        return np.asarray(values, dtype=np.uint8 if whole else np.float32)

    @property
    def _range(self) -> tuple[float, float] | None:
        """To which native values are taken on their way to the model, or to its codec."""
        encoded = self.recipe.encoding is not None
        return self.codec.range if encoded else self.recipe.objective.range

    def _average(self, asked: str) -> str | None:
        """The name of the file of weights that is meant; None for an average that is to be made
        of those that were set aside."""
        names = [average.name for average in self.recipe.optim.averages]
        if asked == "none" or (not asked and not names):
            return "model"
        if not asked or asked in names:
            return f"average-{asked or names[0]}"
        if _WIDTH.fullmatch(asked) and (self.path / "averages").is_dir():
            return None
        hint = nearest(asked, [*names, "none"])
        if _WIDTH.fullmatch(asked):
            hint += "; any width can be made of averages that were set aside, which training does "
            hint += "with optim.snapshots=32, say"
        raise ConfigError(f"run {self.path.name} keeps no average {asked!r}{hint}")

    def _made(self, found: checkpoints.Checkpoint, asked: str) -> Recombined:
        """The power average `asked`, made of those that were set aside."""
        width = float(asked.removeprefix("power-"))
        low, high = WIDTHS
        if not low < width < high:
            raise ConfigError(
                f"{quote(asked)}: the width of a power average lies between {low} and {high}"
            )
        kept = sources(self.path / "averages", found, self.recipe.optim.averages)
        result = recombined(kept, width)
        if result.left > UNLIKE:
            raise ConfigError(
                f"the {len(kept)} averages that run {self.path.name} has set aside cannot make "
                f"{asked!r}: {result.left:.0%} of it would be missing; ask for another width"
            )
        return result

    def _try_preview(self, state: TrainState) -> bool:
        """A picture that cannot be drawn or written must not end a training; whether the next one
        may be tried."""
        try:
            self._preview_of(state)
        except ProcessLost:
            raise
        except (OrnsteinError, RuntimeError) as error:
            if ranks.world() > 1 and not isinstance(error, OrnsteinError):
                raise  # the others would wait for this one
            if isinstance(error, ConfigError):  # which training does not change
                self._note(f"no previews: {error}")
                return False
            self._note(f"no preview after update {state.step}: {error}")
        return True

    @torch.no_grad()
    def _preview_of(self, state: TrainState, n: int = 16) -> None:
        """Draw a preview with the first average of a training in progress."""
        learner = next(iter(state.averages.values()), state.learner)
        modes = [(module, module.training) for module in learner.modules()]
        learner.eval()
        how = self.recipe.preview or self.recipe.generation
        if state.sharded and getattr(how, "evaluations", 0) is None:
            raise ConfigError(
                "ranks that share the weights must ask the network alike, which "
                f"{_kind(getattr(how, 'step', how))!r} does not; write preview.step=multistep"
            )
        try:
            x = self._drawn(learner.model, how, range(n), PREVIEW_SEED, n)
            columns = None
            if isinstance(how, Reconstructs) and self.info.kind == "image" and not state.sharded:
                x, columns = np.concatenate([self._seen_and_said(learner.model, how, n), x]), n
        finally:
            for module, training in modes:
                module.training = training
            reshard(learner)
        with ranks.alike():
            self._write_preview(x, state.step, columns)

    def _seen_and_said(self, model: Any, how: Reconstructs, n: int) -> np.ndarray:
        """`n` samples of the data, held out where some are, and then their reconstructions."""
        unseen = self.dataset.held_out if len(self.dataset.held_out) else self.dataset.train
        x = self.dataset.x[unseen[:n]]
        return np.concatenate([x, self._reconstructed(model, how, x)])

    def _write_preview(self, x: np.ndarray, step: int, columns: int | None = None) -> Path:
        path = self.path / "previews" / f"step-{step:08d}.png"
        if ranks.leads():
            fsops.make_inside(path.parent)
            fsops.replace(path, pictures.png(pictures.picture(x, self.info, columns)))
        return path

    def _log_of_lost_checkpoints(self) -> bool:
        """Set aside the log of updates that no checkpoint holds; whether there was one."""
        path = self.path / "metrics.jsonl"
        if not path.exists() or path.stat().st_size == 0:
            return False
        # The clock may have been set back, so the time alone does not make a new name.
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
        fsops.rename(path, path.with_name(f"metrics-{stamp}.jsonl"))
        return True

    def _set_aside(self, state: TrainState) -> None:
        """Averages that cannot be written must not end a training: others are near."""
        try:
            checkpoints.set_aside(self.path / "averages", state, self.recipe.optim.powers)
        except StorageError as error:
            self._note(f"the averages at update {state.step} were not set aside: {error}")

    def _halved(self, event: Event) -> None:
        """Keep the micro-batch with which training goes on after memory ran out."""
        self._note(
            f"out of memory before update {event.step}: from there on {event.micro_batch} samples "
            f"at a time; the batch stays at {self.recipe.optim.batch}"
        )
        optim = self.recipe.optim.model_copy(update={"micro_batch": event.micro_batch})
        self.recipe = self.recipe.model_copy(update={"optim": optim})
        fsops.replace(self.path / "recipe.yaml", self.recipe.stored())

    def _note(self, sentence: str) -> None:
        """Tell the user, and keep the sentence in `notes.log`; the lead does."""
        if not ranks.leads():
            return
        logging.getLogger(__name__).warning("%s", sentence)
        line = f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {sentence}\n"
        with contextlib.suppress(StorageError):
            fsops.append_line(self.path / "notes.log", line.encode())

    def _check_data(self, info: DataInfo) -> None:
        if info.fingerprint != self.info.fingerprint:
            same = info.count == self.info.count
            counts = f"{self.info.count:,} samples then, {info.count:,} now"
            raise DataError(
                f"the data of run {self.path.name} has changed since it was made "
                f"({'as many samples, but others' if same else counts}); "
                "train under another name with --run, or put the data back"
            )

    def _changes(self, request: Recipe) -> tuple[Change, ...]:
        """What a request changes in what was asked for when the run was made."""
        try:
            stored = resolve(type(request), {}, self.path / "request.yaml").value
        except ConfigError as error:
            raise CheckpointError(
                f"{self.path / 'request.yaml'} is missing or damaged; copy recipe.yaml in its "
                "place, or train afresh with --fresh"
            ) from error
        return changes(stored, request)

    def _adopted(self, request: Recipe, allow: tuple[str, ...]) -> Recipe:
        """The recipe with what may change in an existing run taken over; the rest is refused."""
        found = self._changes(request)
        if not found:
            return self.recipe
        for change in refused(found, allow):
            raise CheckpointError(
                f"run {self.path.name} was made with {change.key}={show(change.old)}, "
                f"not {show(change.new)}; "
                "choose another name with --run, or insist with "
                f"--allow-change {change.key}"
            )
        if allow:
            if any(change.key.startswith("encoding") for change in found):
                raise CheckpointError(
                    f"run {self.path.name} keeps the encoding that it was made with; choose "
                    "another name with --run"
                )
            request = request.model_copy(update={"encoding": self.recipe.encoding})
            fitted = request.fitted(self.seen, _farthest(self.training_data))
            adopted: Recipe = pinned(fitted, pinner(type(request)))
        else:
            # What was measured or pinned when the run was made stays as it is.
            taken = {name: getattr(request, name) for name in ("optim", *FREE)}
            adopted = self.recipe.model_copy(update=taken).fitted(self.seen)
        check(adopted, self.seen, loader(type(adopted)))
        length = {"optim.minutes", "optim.samples"}
        if adopted.optim.samples is None and not length & {change.key for change in found}:
            optim = adopted.optim.model_copy(update={"samples": self.total})
            adopted = adopted.model_copy(update={"optim": optim})
        return adopted

    def _record(self, request: Recipe) -> None:
        """Keep the adopted recipe, and note what it changes."""
        found = self._changes(request)
        if not found:
            return
        path = self.path / "provenance.json"
        record = fsops.read_json(path)
        if not isinstance(record, dict) or not isinstance(record.get("changes"), list):
            raise CheckpointError(f"{path} is missing or damaged; restore it, or train afresh")
        record["changes"] += [
            {"samples": self.samples, "key": change.key, "from": change.old, "to": change.new}
            for change in found
        ]
        with locked(self.path):
            fsops.replace(self.path / "recipe.yaml", self.recipe.stored())
            fsops.replace(path, _json(record))
            # Last, since what it says is compared with the next request.
            fsops.replace(self.path / "request.yaml", request.stored())


def run_folders(runs: Path) -> list[Path]:
    """The folders of all runs, those of a plan's stages too, in the order of their names."""
    staged = (path.parent.glob("*/recipe.yaml") for path in runs.glob(f"*/{plans.FILE}"))
    found = (path.parent for path in sorted([*runs.glob("*/recipe.yaml"), *chain(*staged)]))
    return [path for path in found if not path.name.endswith(".tmp")]  # those are half-made


def checked_name(name: str) -> str:
    """A name for a run, which is one for a folder. Raises: ConfigError for one that is not."""
    plain = name.strip(" .") and name.isprintable() and not set(name) & {"/", "\\"}
    if not plain:
        raise ConfigError(f"a run's name must be a plain name, not {name!r}; write --run NAME")
    if len(os.fsencode(name)) > 235:
        raise ConfigError(
            f"the name {name[:20]}... is too long for a folder; write a shorter --run"
        )
    return name


def pinner(schema: type[Recipe]) -> Callable[[RunRef], RunRef]:
    """What fills in the absolute path and the weights of a reference to a run."""

    def pin(reference: RunRef) -> RunRef:
        if reference.weights:
            return reference
        run = Run.open(reference.path, schema=schema)
        filled = {"path": str(run.path.resolve()), "weights": run.weights(reference.average)}
        return reference.model_copy(update=filled)

    return pin


def loader(schema: type[Recipe]) -> Callable[[RunRef], Any]:
    """What turns a reference to a run into the model behind it, frozen."""

    def load(reference: RunRef) -> Any:
        return _referred(reference, schema)[0].learner(reference.average).model

    return load


def codec_of(reference: RunRef, schema: type[Recipe] = Recipe) -> Trained:
    """The trained codec that a reference means.

    Raises: ConfigError where it is no autoencoder, CheckpointError where its weights are others
    than the reference names.
    """
    run, weights = _referred(reference, schema)
    model = run.learner(reference.average).model
    if not isinstance(model, Codec):
        raise ConfigError(
            f"{reference.path} is no autoencoder, so it cannot encode data; name a run of "
            "vae, vq_vae or another autoencoder"
        )
    return Trained(model, run.info, run.recipe.objective.range, weights, run.path.name)


def _referred(reference: RunRef, schema: type[Recipe]) -> tuple[Run, str]:
    """The run that a reference means, and the SHA-256 of its weights."""
    run = Run.open(reference.path, schema=schema)
    found = run.weights(reference.average)
    if reference.weights and found != reference.weights:
        raise CheckpointError(
            f"{reference.path} has other weights ({found[:12]}...) than the recipe names "
            f"({reference.weights[:12]}...); put the old ones back, or train afresh"
        )
    return run, found


def _alike(digest: str) -> bool:
    """Whether all ranks have the same digest, in hex digits."""
    mark = int(digest[:15], 16)
    highest, lowest = ranks.agreed(mark, -mark)
    return highest == -lowest


def _farthest(dataset: Dataset) -> Measure:
    """What measures the largest distance between two training samples, in native values."""
    return lambda: farthest(dataset).distance


def _share(ids: range, batch: int) -> list[range]:
    """The batches of `ids` that are this rank's to work on: a run of them, of the same number of
    batches as every other rank's, or one more."""
    rank, world = ranks.rank(), ranks.world()
    size = min(batch, -(-len(ids) // world))  # smaller ones, rather than idle ranks
    parts = [ids[start : start + size] for start in range(0, len(ids), size)]
    return parts[len(parts) * rank // world : len(parts) * (rank + 1) // world]


class _PreviewClock:
    """Lets previews take no more than their share of the time."""

    def __init__(self) -> None:
        self._started = self._asked = time.monotonic()
        self._spent = self._last = 0.0

    def after(self, event: Event) -> bool:
        """Whether a preview can be afforded now."""
        self._asked = time.monotonic()
        # Before the first one its cost is unknown; it waits for a time that can pay for a few.
        expected = self._last or 20 * event.seconds
        return self._spent + expected <= PREVIEW_SHARE * (self._asked - self._started)

    def done(self) -> None:
        """A preview has been drawn since the last question."""
        self._last = time.monotonic() - self._asked
        self._spent += self._last


def _kind(choice: Any) -> str:
    return str(getattr(choice, "kind", type(choice).__name__))


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, default=str).encode()
