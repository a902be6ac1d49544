"""Trackers: other programs that show a run, TensorBoard and Weights & Biases.

    metrics.jsonl, previews/  ->  Following  ->  Tracker

`metrics.jsonl` is the truth. A tracker is told its lines and nothing else, a few seconds after they
were written and at most ten of a second of training, each with the preview of the same update if
there is one, which is told in any case; so is the last line. What it surely has is noted
in `followed.json` beside what it wrote, so that a run that goes on shows each update once, also
where it was killed and has to make some of them again: a tracker that can take back what it was
told (`rewinds`) is told anew, another one is not told again. Without that file it is told all from
the start. A tracker that fails is noted and left out from then on; it never ends a training.

    for event in run.train(trackers=(TensorBoard,)):
        ...
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ornstein import fsops
from ornstein.errors import CheckpointError, ConfigError, clip, nearest, quote
from ornstein.settings import load_yaml

EVERY = 10.0  # seconds between two times that a tracker is told something
APART = 0.1  # seconds of training between lines that it is told: nobody sees more of them


class Tracker(Protocol):
    """What shows a run. It is made with the run's folder and the first update that will come.

    name: also that of the folder, within the run's, where it keeps what it writes.
    rewinds: whether it forgets, when it is made, what it was told of the first update and later.
    """

    name: ClassVar[str]
    rewinds: ClassVar[bool]

    def __init__(self, run: Path, first: int) -> None: ...

    def log(self, step: int, values: Mapping[str, float], picture: bytes | None) -> None:
        """The values of an update, and its preview, a PNG file; updates come in their order."""

    def flush(self) -> bool:
        """Let what was told be seen; whether it would outlive this process, killed now."""

    def close(self) -> None:
        """Keep all that was told; nothing more will come."""


class TensorBoard:
    """Event files in the run's `tensorboard/`: `tensorboard --logdir runs` shows all runs."""

    name: ClassVar[str] = "tensorboard"
    rewinds: ClassVar[bool] = True

    def __init__(self, run: Path, first: int) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(run / self.name), flush_secs=int(EVERY))
        # At the start of a session TensorBoard drops what older files say of later steps.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(first, session_log=start)

    def log(self, step: int, values: Mapping[str, float], picture: bytes | None) -> None:
        value = self._summary.Value
        shown = [value(tag=tag, simple_value=number) for tag, number in values.items()]
        if picture is not None:
            width, height = (int.from_bytes(picture[i : i + 4]) for i in (16, 20))  # of its header
            image = self._summary.Image(width=width, height=height, encoded_image_string=picture)
            shown.append(value(tag="preview", image=image))
        self._write(step, summary=self._summary(value=shown))

    def _write(self, step: int, **content: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, **content))

    def flush(self) -> bool:
        self._writer.flush()
        return True

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases: always the same run for a run's folder, in the project that WANDB_PROJECT
    names, or "ornstein". With WANDB_MODE=offline all stays in `wandb/` until `wandb sync`; then
    what was told since the last start, and lost to a kill, is told again (in part, perhaps, twice).
    """

    name: ClassVar[str] = "wandb"
    rewinds: ClassVar[bool] = False

    def __init__(self, run: Path, first: int) -> None:
        import wandb

        self._picture = wandb.Image
        place = run / self.name / "id"
        if not place.exists():
            fsops.replace(place, uuid.uuid4().hex[:8].encode())
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ornstein"),
            id=place.read_text(encoding="ascii"),
            resume="allow",
            name=run.name,
            dir=str(run),
            config=load_yaml(run / "recipe.yaml"),
            # Neither code nor what is written to the terminal belongs to what it is told.
            settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
        )
        self._first = int(self._run.step)  # what the server knows is not told again

    def log(self, step: int, values: Mapping[str, float], picture: bytes | None) -> None:
        from PIL import Image

        if step < self._first:
            return
        content: dict[str, Any] = dict(values)
        if picture is not None:
            content["preview"] = self._picture(Image.open(io.BytesIO(picture)))
        self._run.log(content, step=step, commit=True)

    def flush(self) -> bool:
        """Another process sends it by and by, and ends with this one."""
        return False

    def close(self) -> None:
        self._run.finish()


TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB}


def chosen(names: str) -> tuple[type[Tracker], ...]:
    """The trackers of these names, with commas between.

    Raises: ConfigError for an unknown one, or where its package is not installed.
    """
    found = []
    for name in dict.fromkeys(word.strip() for word in names.split(",") if word.strip()):
        if name not in TRACKERS:
            raise ConfigError(f"there is no tracker {quote(name)}{nearest(name, TRACKERS)}")
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:  # a folder of that name is no package
            raise ConfigError(
                f"{name} is not installed: write pip install 'ornstein[{name}]', or leave "
                f"--track {name} out; metrics.jsonl is written in any case"
            )
        found.append(TRACKERS[name])
    return tuple(found)


class Following:
    """One tracker of a run in training, told what the log says. A context manager.

    note: tells the user a sentence.
    """

    def __init__(self, run: Path, kind: type[Tracker], note: Callable[[str], None]) -> None:
        self._log, self._previews = run / "metrics.jsonl", run / "previews"
        self._place = run / kind.name / "followed.json"
        self._name, self._note = kind.name, note
        self._asked = time.monotonic()
        self._unseen = APART  # seconds of training since the last line that was told
        self._tracker: Tracker | None = None
        with self._guarded():
            fsops.make_inside(self._place.parent)
            told = _told(self._place)
            self._end, last = _after(self._log, told)
            self._step = last if kind.rewinds else told  # the last update that it was told
            self._remember(self._step)  # before it is taken back: a kill may come between
            self._tracker = kind(run, self._step + 1)

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        self._tell(last=True)
        with self._guarded():
            if self._tracker is not None:
                self._tracker.close()
                self._remember(self._step)

    def follow(self) -> None:
        """Tell what has been logged since the last time; it is soon enough every few seconds."""
        if time.monotonic() - self._asked > EVERY:
            self._tell()
            self._asked = time.monotonic()

    def _tell(self, last: bool = False) -> None:
        with self._guarded():
            if self._tracker is None:
                return
            untold = None
            drawn = {path.name: path for path in self._previews.glob("step-*.png")}
            for line in self._lines(last):
                self._end += len(line)
                values = json.loads(line)
                step = int(values.pop("step"))
                if step <= self._step:
                    continue
                self._step = step
                place = drawn.get(f"step-{step:08d}.png")
                self._unseen += values["seconds"]
                if self._unseen < APART and place is None:
                    untold = values
                    continue
                self._tracker.log(step, values, place.read_bytes() if place else None)
                self._unseen, untold = 0.0, None
            if last and untold is not None:
                self._tracker.log(self._step, untold, None)
            if self._tracker.flush():
                self._remember(self._step)

    def _lines(self, last: bool) -> Iterator[bytes]:
        """Whole lines that are new. One waits for the next, before which its preview is written,
        unless there will be no next one."""
        if not self._log.exists():
            return
        with self._log.open("rb") as file:
            file.seek(self._end)
            held = b""
            for line in file:
                if held:
                    yield held
                held = line if line.endswith(b"\n") else b""
            if held and last:
                yield held

    def _remember(self, step: int) -> None:
        fsops.replace(self._place, json.dumps({"step": step}).encode())

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Whatever another program's code raises is noted, and ends its part only."""
        try:
            yield
        except Exception as error:
            self._tracker = None
            reason = clip(" ".join(f"{type(error).__name__}: {error}".split()), 200)
            self._note(
                f"{self._name} shows no more of this run ({reason}); metrics.jsonl has all, and "
                "the next training with --track goes on from where it was"
            )


def _told(place: Path) -> int:
    """The last update that a tracker was told; 0 where nothing is known."""
    if not place.exists():
        return 0
    try:
        return int(fsops.read_json(place)["step"])
    except (CheckpointError, TypeError, KeyError, ValueError):
        return 0


def _after(log: Path, told: int) -> tuple[int, int]:
    """Where in the log the updates after `told` begin, in bytes, and the last one before."""
    end = last = 0
    if told and log.exists():
        with log.open("rb") as file:
            for line in file:
                step = int(json.loads(line)["step"])
                if step > told:
                    break
                end, last = end + len(line), step
    return end, last
