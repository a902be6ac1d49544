"""The power fails after every operation of a training: what the disk may hold then, replayed.

The operations of a whole life are recorded: a run is made, trained with saves, and resumed. After
each of them the power is cut, and what POSIX allows a disk to have kept is put on a real one:

    a file      what was flushed is there; of what was written or cut since, in order, any number
                of operations, and of the next one any blocks (the others are zeros)
    a folder    what was flushed is there; of what has changed in it since, anything: each new,
                changed or removed name by itself. Within one folder a rename is one change,
                between two folders it is two

A name leads to a file and not to its bytes, so that a name may be there and its file be empty.
The verdict is the same everywhere: once `create` had returned the run opens; once a save had
returned, its checkpoint or a newer one is found, with the hashes that it was saved with; the log
holds each update up to it once; and nothing is taken for damage that is not.

    python -m pytest tests/reliability/test_power_cut.py -s             orders by a seed
    python -m pytest tests/reliability/test_power_cut.py -s -m slow     many more, and torn blocks
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest

from ornstein import checkpoint, log
from ornstein import run as run_module
from ornstein.run import Run
from tests.reliability.disk import Disk
from tests.reliability.test_operations import points

BLOCK = 512  # a disk has 4,096, but these files are small


class File:
    """What the disk is sure to hold, and what was done since."""

    def __init__(self):
        self.kept, self.since = b"", []

    def now(self, count=None, blocks=None):
        """The bytes after the first `count` changes, and of the next one the `blocks` chosen."""
        content = bytearray(self.kept)
        count = len(self.since) if count is None else count
        for i, (kind, value) in enumerate(self.since[: count + (blocks is not None)]):
            if kind == "truncate":
                del content[value:]
            elif i < count:
                content += value
            else:
                start = len(content)
                content += value
                for at in range(start - start % BLOCK, len(content), BLOCK):
                    if not blocks(at):
                        a, b = max(at, start), min(at + BLOCK, len(content))
                        content[a:b] = bytes(b - a)
        return bytes(content)


class Folder:
    """The names that the disk is sure to hold, and the changes since: (name, its new file or
    None for a name that is removed), one or two of them at a time."""

    def __init__(self):
        self.kept, self.since = {}, []

    def now(self, chosen=lambda: True):
        names = dict(self.kept)
        for change in self.since:
            if chosen():
                names |= change
        return {name: there for name, there in names.items() if there is not None}


class Machine:
    """A disk that is fed with operations, and from which the power can be taken."""

    def __init__(self):
        self.root = Folder()

    def at(self, path):
        place = self.root
        for part in Path(path).parts:
            place = place.now()[part]
        return place

    def do(self, operation):
        kind, path, data = operation
        folder, name = self.at(Path(path).parent), Path(path).name
        if kind in ("create", "mkdir"):
            folder.since.append({name: File() if kind == "create" else Folder()})
        elif kind in ("write", "truncate"):
            self.at(path).since.append((kind, data))
        elif kind in ("unlink", "rmdir"):
            folder.since.append({name: None})
        elif kind == "rename":
            target, moved = self.at(Path(data).parent), self.at(path)
            if target is folder:
                folder.since.append({name: None, Path(data).name: moved})
            else:
                target.since.append({Path(data).name: moved})
                folder.since.append({name: None})
        elif kind == "fsync":
            there = self.at(path)
            there.kept, there.since = there.now(), []

    def cut(self, randomly, torn):
        """What is left: {path: bytes, or None for a folder}. randomly: None for all that is
        allowed to be lost, else a source of choices."""
        left = {}

        def leave(folder, at):
            keep = (lambda: False) if randomly is None else (lambda: randomly.random() < 0.5)
            for name, there in folder.now(keep).items():
                if isinstance(there, Folder):
                    left[at / name] = None
                    leave(there, at / name)
                    continue
                count = 0 if randomly is None else randomly.randint(0, len(there.since))
                blocks = None
                if torn and count < len(there.since):
                    blocks = lambda _: randomly.random() < 0.5  # noqa: E731
                left[at / name] = there.now(count, blocks)

        leave(self.root, Path())
        return left


def everything(machine):
    """What is left if the disk was quick: all of it."""
    left = {}

    def leave(folder, at):
        for name, there in folder.now().items():
            left[at / name] = None if isinstance(there, Folder) else there.now()
            if isinstance(there, Folder):
                leave(there, at / name)

    leave(machine.root, Path())
    return left


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    """The operations of a run's life, with remarks: when it had been made and what was saved.

    Also the end of it: the hashes of its last checkpoint.
    """
    root = tmp_path_factory.mktemp("life")
    saved, real = {}, checkpoint.save

    def save(folder, state, extra):
        target = real(folder, state, extra)
        found = checkpoint._verified(target)
        saved[state.step] = found.manifest
        disk.remark("saved", state.step)
        return target

    with pytest.MonkeyPatch.context() as patch, Disk(root, torn=False) as disk:
        patch.setattr(checkpoint, "save", save)
        patch.setattr(run_module, "PREVIEW_SHARE", 1e9)
        run = Run.create(points(), root / "runs", "job")
        disk.remark("made", None)
        for event in run.train(save_every=1e-9):
            if event.step == 3:
                break
        for _ in Run.open(run.path).train(save_every=1e-9):
            pass
    return disk.done, saved


def put(left, root):
    for path, content in left.items():
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def judge(root, made, last, saved):
    """Whether what a power cut has left is as it was promised."""
    path = root / "runs" / "job"
    if not made and not (path / "recipe.yaml").is_file():
        return
    run = Run.open(path)
    found = checkpoint.latest(path / "ckpt")
    assert (found is not None and found.state["step"] >= last) or last == 0
    assert checkpoint.repair(path / "ckpt") == (), "what is not finished was taken for damage"
    assert checkpoint.latest(path / "ckpt") == found
    if found is None:
        return
    step = found.state["step"]
    assert step in (last, last + 1)
    if step in saved:
        assert found.manifest == saved[step]
    for name in ("model", "average-half-life-60", "optimizer"):
        content = (found.folder / f"{name}.safetensors").read_bytes()
        assert (
            hashlib.sha256(content).hexdigest()
            == saved[step]["files"][f"{name}.safetensors"]["sha256"]
        )
    log.cut(path / "metrics.jsonl", found.state["metrics_bytes"])
    lines = (path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, step + 1))
    assert run.samples == found.state["samples"]


def cuts(life, orders, torn, tmp_path, go_on_every):
    """Cut the power after each operation, in so many ways; the number of different remains."""
    operations, saved = life
    machine, made, last, seen = Machine(), False, 0, set()
    whole = saved[max(saved)]["files"]["model.safetensors"]
    for k, operation in enumerate(operations):
        if operation.kind == "made":
            made = True
        elif operation.kind == "saved":
            last = operation.data
        else:
            machine.do(operation)
        ways = [everything(machine), machine.cut(None, False)]
        for seed in range(orders):
            randomly = random.Random(f"{k} {seed}")
            ways.append(machine.cut(randomly, torn))
        for left in ways:
            text = repr((sorted(left.items()), made, last)).encode()
            key = hashlib.sha256(text).digest()
            if key in seen:
                continue
            seen.add(key)
            root = tmp_path / f"{len(seen)}"
            root.mkdir()
            put(left, root)
            try:
                judge(root, made, last, saved)
                if made and len(seen) % go_on_every == 0:  # and training ends as it would have
                    run = Run.open(root / "runs" / "job")
                    for _ in run.train(save_every=1e9, previews=False):
                        pass
                    found = checkpoint.latest(run.path / "ckpt")
                    assert found.manifest["files"]["model.safetensors"] == whole
            except BaseException:
                print(f"after operation {k}, {operation.kind} {operation.path}; see {root}")
                raise
            shutil.rmtree(root)
    print(f"\n{len(operations)} operations, {len(seen)} different remains after a power cut")
    return len(seen)


def test_the_machine_keeps_what_the_disk_had(life, memory):
    """Fed with every operation and flushed by nobody, it holds what the real disk held."""
    machine = Machine()
    for operation in life[0]:
        if operation.kind not in ("made", "saved"):
            machine.do(operation)
    put(everything(machine), memory)
    run = Run.open(memory / "runs" / "job")
    assert run.finished
    assert run.samples == 120


def test_a_power_cut_after_every_operation(life, memory):
    assert cuts(life, 3, False, memory, go_on_every=25) > 300


@pytest.mark.slow
def test_power_cuts_with_torn_blocks(life, memory):
    assert cuts(life, 60, True, memory, go_on_every=100) > 2000
