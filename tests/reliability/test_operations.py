"""A death, or a refusal, at every file operation of a save and of the removal of an old checkpoint.

The operations are not listed by hand: they are recorded (`disk.Disk`), and an audit hook of the
interpreter shows that the record leaves nothing out and that all of it comes from `fsops`. A child
then dies by SIGKILL before each of them in turn, and in the middle of each write; and in another
round each of them fails as a disk that is full, slow to answer or read-only makes it fail.

    python -m pytest tests/reliability/test_operations.py -s
"""

from __future__ import annotations

import errno
import shutil
import sys
from pathlib import Path

import pytest

from ornstein import checkpoint, fsops
from ornstein import run as run_module
from ornstein.data.sources import Toy
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.sampling import Sampling
from ornstein.errors import StorageError
from ornstein.nn.networks import MLP
from ornstein.optim import HalfLife, Optim
from ornstein.recipe import Recipe
from ornstein.run import Run
from tests.reliability import small
from tests.reliability.disk import NEEDS_ROOM, Disk, contents, failing
from tests.reliability.small import NEW, NEXT, OLD, leftovers
from tests.reliability.zygote import Zygote


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder with two checkpoints."""
    folder = tmp_path_factory.mktemp("pair")
    small.save(folder, 2, 4)
    return folder


@pytest.fixture(scope="module")
def operations(pair, tmp_path_factory):
    """What the third save does, the removal of the first checkpoint included."""
    folder = shutil.copytree(pair, tmp_path_factory.mktemp("recorded") / "ckpt")
    with Disk(folder) as disk:
        small.save(folder, 6)
    return disk.done


def commit(operations):
    """The number of the operation that makes a save count: its folder gets its name."""
    return operations.index(next(o for o in operations if (o.kind, o.data) == ("rename", NEXT)))


def test_a_save_is_what_it_is_said_to_be(operations):
    """Every file is flushed before the folder, the folder before its name, and only then is the
    old checkpoint touched: first its name, so that no half of it can look damaged."""
    told = [(o.kind, Path(o.path).name) for o in operations]
    hidden = told[0][1]
    assert hidden.startswith(".tmp-00000006-")
    written = [("create", "write", "fsync")] * len(small.FILES)
    assert told[:2] == [("mkdir", hidden), ("fsync", "")]
    kinds = [kind for kind, _ in told[2 : 2 + 3 * len(written)]]
    assert kinds == [kind for three in written for kind in three]
    assert told[4][1] == "model.safetensors"
    assert told[1 + 3 * len(written)] == ("fsync", "manifest.json")
    assert told[2 + 3 * len(written)] == ("fsync", hidden)
    assert commit(operations) == 3 + 3 * len(written)
    assert told[4 + 3 * len(written)] == ("fsync", "")
    rest = told[5 + 3 * len(written) :]
    assert [kind for kind, _ in rest] == ["rename", "fsync", *["unlink"] * 6, "rmdir"]
    assert rest[0][1] == OLD


def test_a_death_at_every_operation(pair, operations, memory):
    """Old before the rename, new after it, bit for bit; and the next start clears up."""
    died = 0
    with Zygote(memory) as zygote:
        for k, operation in enumerate(operations):
            for torn in (False, True) if operation.kind == "write" else (False,):
                folder = shutil.copytree(pair, memory / f"{k}{torn}")
                before = contents(folder)
                ended = zygote("saving", folder=folder, k=k, torn=torn)
                assert ended.code == -9, ended.output
                died += 1
                new = k > commit(operations)
                expected = checkpoint.latest(folder)
                assert expected.state["step"] == (6 if new else 4), operation
                kept = [NEW] if new else [OLD, NEW]
                after = contents(folder)
                assert all(after[p] == before[p] for p in before if Path(p).parts[0] in kept)
                assert checkpoint.repair(folder) == (), "a killed save must not look like damage"
                assert not leftovers(folder)
                assert checkpoint.latest(folder) == expected
                small.save(folder, 6)
                assert {p.name for p in folder.iterdir()} - {OLD} == {NEW, NEXT}
                shutil.rmtree(folder)
    print(f"\n{died} deaths at {len(operations)} operations of a save")


# Numbers of a disk that is full, over a quota, out of file size, broken, or has become read-only.
REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)


@pytest.mark.parametrize("number", REFUSALS, ids=errno.errorcode.get)
def test_a_refusal_at_every_operation(number, pair, operations, memory):
    """One sentence with the file and the remedy; what was there is there; the next save works."""
    for k, operation in enumerate(operations):
        folder = shutil.copytree(pair, memory / str(k))
        before = contents(folder)
        kinds = (operation.kind,)
        nth = sum(o.kind == operation.kind for o in operations[:k])
        with Disk(folder, failing(nth, number, kinds=kinds)):
            if k <= commit(operations) + 1:  # the flush after the rename belongs to the save
                with pytest.raises(StorageError, match=f"cannot write .*{folder}.*; ") as caught:
                    small.save(folder, 6)
                assert caught.value.code == 5
                assert "\n" not in str(caught.value)
                assert not leftovers(folder)
            else:  # an old one that cannot be removed does no harm
                small.save(folder, 6)
        after = contents(folder)
        if k <= commit(operations) + 1:
            assert {path: after[path] for path in before} == before
        new = k > commit(operations)
        assert checkpoint.latest(folder).state["step"] == (6 if new else 4)
        assert checkpoint.repair(folder) == ()
        small.save(folder, 6)
        assert checkpoint.latest(folder).state["step"] == 6
        assert not leftovers(folder)


def test_a_disk_that_stays_full_keeps_the_last_good_one(pair, operations, memory):
    """The disk is full from the k-th operation on, so that clearing up can fail as well."""
    for k in range(sum(o.kind in NEEDS_ROOM for o in operations[: commit(operations)])):
        folder = shutil.copytree(pair, memory / str(k))
        before = contents(folder)
        with (
            Disk(folder, failing(k, lasting=True)),
            pytest.raises(StorageError, match="free some space"),
        ):
            small.save(folder, 6)
        assert contents(folder) == before
        assert checkpoint.latest(folder).state["step"] == 4


def test_too_little_space_is_told_before_anything_is_written(pair, tmp_path, monkeypatch):
    folder = shutil.copytree(pair, tmp_path / "ckpt")
    before = contents(folder)
    monkeypatch.setattr(fsops, "free_bytes", lambda path: 1234)
    with pytest.raises(StorageError, match=r"needs [\d,]+ bytes in .* and 1,234 are free"):
        small.save(folder, 6)
    assert contents(folder) == before
    assert not leftovers(folder)


def test_a_reader_does_not_disturb_a_save(pair, tmp_path):
    """`sample` or `runs` in another process, at every moment of a save."""
    folder, seen = shutil.copytree(pair, tmp_path / "ckpt"), []

    def look(_k, _operation):
        if not disk.busy:
            seen.append(checkpoint.latest(folder).state["step"])

    with Disk(folder, look) as disk:
        small.save(folder, 6)
    assert seen == sorted(seen)
    assert set(seen) == {4, 6}


# --- nothing but fsops ----------------------------------------------------------------------------

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.symlink"}
CHANGES |= {"shutil.rmtree", "shutil.move", "shutil.copyfile"}


class Audit:
    """What the interpreter reports of changes below a folder, while one is watched. A hook cannot
    be removed, so that there is one, and it looks at `watched`."""

    def __init__(self) -> None:
        self.watched: tuple[str, Disk] | None = None
        self.through: list[str] = []
        self.beside: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event, arguments):
        if self.watched is None or not (event == "open" or event in CHANGES):
            return
        path = arguments[0]
        root, disk = self.watched
        if not isinstance(path, str | Path) or not str(path).startswith(root):
            return
        if event == "open":
            mode, flags = arguments[1:]
            reads = set(mode) <= set("rbt") if mode else not flags & (fsops._NEW | fsops._GROWING)
            if reads:
                return
        frame, files = sys._getframe(1), []
        while frame is not None:
            files.append(Path(frame.f_code.co_filename).name)
            frame = frame.f_back
        whole = disk.busy and "fsops.py" in files
        (self.through if whole else self.beside).append(f"{event} {path}")


AUDIT = None


def test_all_that_a_run_changes_goes_through_fsops(tmp_path, monkeypatch):
    """Making it, training with previews, resuming from a damaged checkpoint, a changed setting and
    scores; and each of these changes is in the record."""
    global AUDIT
    AUDIT = AUDIT or Audit()
    monkeypatch.setattr(run_module, "PREVIEW_SHARE", 1e9)
    recipe = points()
    with Disk(tmp_path) as disk:
        AUDIT.watched = (str(tmp_path), disk)
        try:
            run = Run.create(recipe, tmp_path / "runs", "job")
            for event in run.train(save_every=1e-9):
                if event.step == 4:
                    break
            newest = run.path / "ckpt" / "step-00000004" / "model.safetensors"
            AUDIT.watched = None
            newest.write_bytes(b"")
            AUDIT.watched = (str(tmp_path), disk)
            slower = recipe.optim.model_copy(update={"lr": 1e-4})
            run = Run.create(recipe.model_copy(update={"optim": slower}), tmp_path / "runs", "job")
            for _ in run.train(save_every=1e-9):
                pass
        finally:
            AUDIT.watched = None
    assert AUDIT.beside == []
    kinds = {o.kind for o in disk.done}
    assert kinds == {*NEEDS_ROOM, "unlink", "rmdir", "truncate"}
    made = [o for o in disk.done if o.kind not in ("write", "fsync")]
    assert len(AUDIT.through) >= len(made)
    touched = {Path(o.path).parts[2] for o in disk.done if len(Path(o.path).parts) > 2}
    assert touched >= {"ckpt", "previews", "metrics.jsonl", "notes.log", "lock"}
    print(f"\n{len(disk.done)} operations of a training, none beside fsops")


def points():
    """Six updates on points in the plane, with an average and previews."""
    return Recipe(
        name="points",
        data=Toy(name="moons", count=100),
        model=Diffusion(network=MLP(width=8, depth=1)),
        optim=Optim(batch=20, samples=120, warmup=0, averages=(HalfLife(samples=60),)),
        generation=Sampling(steps=2),
    )
