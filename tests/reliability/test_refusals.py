"""A disk that is full, broken or read-only, at every operation of a whole training.

Making a run, its lock, log, checkpoints, pictures and notes: each operation is refused once, and
in another round that one and all later ones. What must happen is the same everywhere: training
goes on without what could not be written and says so, or stops with StorageError (exit code 5) in
one sentence; a save that fails is tried again after the next interval, and the third failure in a
row ends the training; and once there is room again, the same call ends bit for bit as if nothing
had been, with each update in the log once.

    python -m pytest tests/reliability/test_refusals.py -s
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil

import pytest

from ornstein import checkpoint
from ornstein import run as run_module
from ornstein.errors import StorageError
from ornstein.log import locked
from ornstein.run import Run
from tests.reliability.disk import NEEDS_ROOM, Disk, failing
from tests.reliability.test_operations import points
from tests.reliability.zygote import Zygote

UPDATES = 4


@pytest.fixture(autouse=True)
def settings(monkeypatch, caplog):
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setattr(run_module, "PREVIEW_SHARE", 1e9)  # a picture after each update


def recipe():
    whole = points()
    return whole.model_copy(
        update={"optim": whole.optim.model_copy(update={"samples": 20 * UPDATES})}
    )


def train(folder):
    """Make or open the run, and train it with a save after each update; the steps of it."""
    run = Run.create(recipe(), folder / "runs", "job")
    return [event.step for event in run.train(save_every=1e-9)]


def outcome(folder):
    """The manifest of the last checkpoint, but for where the log ends, and the logged steps."""
    found = checkpoint.latest(folder / "runs" / "job" / "ckpt")
    files = {n: f["sha256"] for n, f in found.manifest["files"].items() if n != "state.json"}
    log = (folder / "runs" / "job" / "metrics.jsonl").read_text().splitlines()
    return found.state["step"], files, [json.loads(line)["step"] for line in log]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The end of an undisturbed training, and its operations that need room."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch, Disk(folder) as disk:
        patch.setattr(run_module, "PREVIEW_SHARE", 1e9)
        train(folder)
    return outcome(folder), [o for o in disk.done if o.kind in NEEDS_ROOM]


def refused(folder, k, number, lasting):
    """The error of a training whose k-th operation is refused, or None."""
    found = None
    try:
        with Disk(folder, failing(k, number, lasting)):
            train(folder)
    except StorageError as error:
        found = error
    if found is not None:
        assert found.code == 5
        assert "\n" not in str(found)
        assert "; " in str(found), "no remedy"
    return found


def goes_on(folder, undisturbed):
    """With room again, the end is the undisturbed one and nothing is left over."""
    train(folder)
    assert outcome(folder) == undisturbed
    assert not list(folder.glob("**/.tmp-*"))


def may_fail(operation):
    """Whether training goes on without this operation: a picture, a save that is not the last."""
    last = f"{UPDATES:08d}"
    return operation.path.startswith(("runs/job/ckpt/", "runs/job/previews/")) and (
        "previews" in operation.path or last not in f"{operation.path} {operation.data}"
    )


@pytest.mark.parametrize(
    ("number", "every"),
    [(errno.ENOSPC, 1), (errno.EDQUOT, 9), (errno.EFBIG, 9), (errno.EIO, 5), (errno.EROFS, 9)],
    ids=lambda v: errno.errorcode.get(v) if v > 20 else "",
)
def test_each_operation_refused_once(number, every, undisturbed, memory):
    end, operations = undisturbed
    went_on = 0
    for k in range(0, len(operations), every):
        folder = memory / str(k)
        folder.mkdir()
        error = refused(folder, k, number, lasting=False)
        went_on += error is None
        if may_fail(operations[k]):
            assert error is None, operations[k]
        goes_on(folder, end)
        shutil.rmtree(folder)
    tried = len(range(0, len(operations), every))
    print(f"\n{tried} refusals ({errno.errorcode[number]}): {went_on} trainings went on at once")


@pytest.mark.parametrize(("number", "every"), [(errno.ENOSPC, 3), (errno.EROFS, 7)])
def test_refused_from_some_operation_on(number, every, undisturbed, memory):
    end, operations = undisturbed
    final = next(
        k for k, o in enumerate(operations) if str(o.data).endswith(f"/step-{UPDATES:08d}")
    )
    for k in range(0, final, every):
        folder = memory / str(k)
        folder.mkdir()
        before = {o.path for o in operations[:k] if o.kind == "rename"}
        error = refused(folder, k, number, lasting=True)
        assert error is not None
        path = folder / "runs" / "job"
        if any("/ckpt/.tmp-" in p for p in before):  # what had been saved is still whole
            assert checkpoint.latest(path / "ckpt") is not None
        goes_on(folder, end)
        shutil.rmtree(folder)
    print(f"\n{len(range(0, final, every))} disks that stay so ({errno.errorcode[number]})")


def notes(folder):
    path = folder / "runs" / "job" / "notes.log"
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


class Full:
    """The folder of checkpoints is full, from one update to another."""

    def __init__(self, part):
        self.part, self.full = part, False

    def __call__(self, _k, operation):
        if self.full and self.part in operation.path and operation.kind in NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("part", ["ckpt", "metrics.jsonl"])
def test_the_third_save_in_a_row_that_fails_ends_training(part, memory):
    """Of checkpoints and of the log alike; until then the last good one is kept."""
    whole = points()  # six updates
    run, full = Run.create(whole, memory / "runs", "job"), Full(part)
    steps = []

    def training():
        for event in run.train(save_every=1e-9):
            steps.append(event.step)
            full.full = True

    with Disk(memory, full), pytest.raises(StorageError, match=f"{part}.*free some space"):
        training()
    assert steps == [1, 2, 3]  # the third failure came after update 4
    told = [line for line in notes(memory) if "was not saved" in line]
    assert len(told) == 2
    assert "update 2 was not saved, the next will be" in told[0]
    assert Run.open(run.path).samples == 20
    again = [event.step for event in Run.open(run.path).train(save_every=1e-9)]
    assert again == [2, 3, 4, 5, 6]
    assert outcome(memory)[2] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("part", ["ckpt", "metrics.jsonl"])
def test_a_disk_that_has_room_again_in_time_costs_nothing(part, memory):
    run, full = Run.create(points(), memory / "runs", "job"), Full(part)
    with Disk(memory, full):
        for event in run.train(save_every=1e-9):
            full.full = event.step in (1, 2)  # the saves after updates 2 and 3 fail
    assert outcome(memory)[2] == [1, 2, 3, 4, 5, 6]
    assert len([line for line in notes(memory) if "was not saved" in line]) == 2
    straight = Run.create(points(), memory / "straight", "job")
    for _ in straight.train():
        pass
    assert straight.weights("none") == run.weights("none")


def test_a_failure_is_forgotten_after_a_save(memory):
    """Three in a row are too many, three in all are not."""
    run, full = Run.create(points(), memory / "runs", "job"), Full("ckpt")
    with Disk(memory, full):
        for event in run.train(save_every=1e-9):
            full.full = event.step in (1, 2, 4)
    assert run.finished


# --- a folder that goes away ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_the_folder_goes_away_while_training(how, undisturbed, memory):
    """It is not made again as half a run, and another's files are not touched."""
    run = Run.create(recipe(), memory / "runs", "job")
    aside = memory / "aside"

    def training():
        for event in run.train(save_every=1e-9):
            if event.step == 1:
                shutil.rmtree(run.path) if how == "removed" else run.path.rename(aside)
                if how == "replaced":
                    run.path.mkdir()
                    (run.path / "lock").write_text("another")

    with pytest.raises(StorageError, match="was removed or replaced while it was trained; put it"):
        training()
    if how == "replaced":
        assert sorted(p.name for p in run.path.iterdir()) == ["lock"]
        shutil.rmtree(run.path)
    assert not run.path.exists()
    if how != "removed":
        aside.rename(run.path)
    goes_on(memory, undisturbed[0])


# --- as a command ---------------------------------------------------------------------------------

WORDS = ["train", "edm", "--data", "moons", "--run", "job", "--samples", "96", "optim.batch=16"]
WORDS += ["model.network=mlp", "model.network.width=8", "model.network.depth=1"]
WORDS += ["generation.steps=2", "--save-every", "0.000001"]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    with Zygote(tmp_path_factory.mktemp("zygote")) as process:
        yield process


def command(zygote, folder, *refusals, words=WORDS, **more):
    arguments = [*words, "--runs", str(folder / "runs")]
    more = {"signals": [], **more}
    return zygote("command", arguments=arguments, folder=folder, refusals=refusals, **more)


CASES = {
    "a file of a new run": [("write", "provenance.json", errno.ENOSPC)],
    "the folder of a new run": [("mkdir", "runs", errno.EACCES)],
    "the lock": [("write", "lock", errno.ENOSPC)],
    "the log cannot be made": [("create", "metrics.jsonl", errno.EDQUOT)],
    "the log": [("write", "metrics.jsonl", errno.ENOSPC)],
    "a checkpoint": [("write", "ckpt", errno.EFBIG)],
    "a flush": [("fsync", "ckpt", errno.EIO)],
    "the name of a checkpoint": [("rename", "ckpt", errno.EIO)],
    "read-only": [("", "job", errno.EROFS)],
    "the pictures": [("write", "previews", errno.ENOSPC)],
    "pictures and notes": [("", "previews", errno.ENOSPC), ("create", "notes", errno.ENOSPC)],
}


@pytest.mark.parametrize("case", CASES)
def test_exit_code_and_one_sentence(case, zygote, tmp_path):
    ended = command(zygote, tmp_path, *CASES[case])
    told = [line for line in ended.output.splitlines() if line.startswith("ornstein: ")]
    assert "Traceback" not in ended.output
    if "pictures" in case:
        assert (ended.code, told) == (0, [])
        assert "no preview after update" in ended.output
    else:
        assert (ended.code, len(told)) == (5, 1), ended.output
        assert told[0] == ended.output.splitlines()[-1]
        assert "; " in told[0], "no remedy"
    ended = command(zygote, tmp_path)
    assert ended.code == 0, ended.output
    log = (tmp_path / "runs" / "job" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2, 3, 4, 5, 6]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write it")
def test_a_folder_that_is_really_read_only(zygote, tmp_path):
    (tmp_path / "runs").mkdir(mode=0o555)
    ended = command(zygote, tmp_path)
    assert ended.code == 5
    assert "choose a folder that you may write with --runs" in ended.output


def test_two_processes_on_one_run(zygote, tmp_path):
    """The second one is refused at once, and the first is not disturbed."""
    assert command(zygote, tmp_path).code == 0
    path = tmp_path / "runs" / "job"
    longer = [*WORDS[:7], "960", *WORDS[8:]]
    with locked(path):
        ended = command(zygote, tmp_path, words=longer)
        assert ended.code == 5, ended.output
        assert f"is being trained by process {os.getpid()} on" in ended.output
        assert ended.seconds < 2
    assert Run.open(path).samples == 96
    assert command(zygote, tmp_path, words=longer).code == 0
    assert Run.open(path).samples == 960
