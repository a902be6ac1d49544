"""A checkpoint is whole or it is not there, whatever happens to the disk or to its bytes."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from ornstein import checkpoint, fsops
from ornstein.data.info import Batch
from ornstein.errors import CheckpointError, StorageError
from ornstein.noise import Noise
from ornstein.objectives.base import Loss
from ornstein.optim import HalfLife, Optim, Power
from ornstein.training import Learner, TrainState, train

OPTIM = Optim(batch=4, samples=10**6, warmup=0, averages=(HalfLife(samples=30), Power(width=0.1)))
OLD, NEW = "step-00000002", "step-00000004"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.again = self.last  # the same weights under two names

    def forward(self, x):
        return self.again(self.last(self.norm(x)).sum(1, keepdim=True).expand(-1, 3))


class Squares:
    range = None

    def __call__(self, model, batch, context):
        return Loss((model(batch.x) - 1).square().mean(1))


class Points:
    def at(self, position, count):
        ids = torch.arange(position, position + count)
        return Batch(Noise.of(0, "points", ids).normal(0, (3,)), ids)


def fresh(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TrainState(Learner(Net(), Squares()), OPTIM)


def trained(steps, state=None):
    state = state or fresh()
    for _ in train(state, Points(), OPTIM, 4 * steps, 0):
        pass
    return state


def saved(folder, *steps):
    """Checkpoints of one training at these steps."""
    state = fresh()
    for step in steps:
        checkpoint.save(folder, trained(step, state), {"metrics_bytes": step})
    return state


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def leftovers(folder):
    return list(folder.glob(".tmp-*"))


def numbers(state):
    """Every number of a training state, by name."""
    found = {"step": torch.tensor(state.step), "samples": torch.tensor(state.samples)}
    for name, module in {"model": state.learner, **state.averages}.items():
        found |= {f"{name}/{k}": v.clone() for k, v in module.state_dict().items()}
    for i, values in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer/{i}/{k}": v.clone() for k, v in values.items()}
    return found


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    """Weights, buffers, averages, optimizer and counters; and the next updates are the same."""
    state = saved(tmp_path, 5)
    assert checkpoint.repair(tmp_path) == ()
    found = checkpoint.latest(tmp_path)
    back = fresh(seed=1)
    assert not equal(numbers(back), numbers(state))
    checkpoint.restore(found, back)
    assert equal(numbers(back), numbers(state))
    assert equal(numbers(trained(9, back)), numbers(trained(9, state)))
    assert found.state["metrics_bytes"] == 5
    assert {p.name for p in found.folder.iterdir()} == {
        "model.safetensors",
        "average-half-life-30.safetensors",
        "average-power-0.1.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    }


def test_its_hashes_are_those_of_its_files(tmp_path):
    saved(tmp_path, 2)
    found = checkpoint.latest(tmp_path)
    for name in ("model", "average-power-0.1", "optimizer"):
        file = found.folder / f"{name}.safetensors"
        assert found.sha256(name) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_where_there_never_was_one_there_is_none(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert checkpoint.latest(folder) is None
        assert checkpoint.repair(folder) == ()


def test_two_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 3, 12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000012"]
    found = checkpoint.latest(tmp_path)
    assert found.state["step"] == 12


def test_saving_the_same_step_again_changes_nothing(tmp_path):
    state = saved(tmp_path, 2)
    before = contents(tmp_path)
    assert checkpoint.save(tmp_path, state, {"metrics_bytes": 2}) == tmp_path / OLD
    assert contents(tmp_path) == before


def test_a_step_beyond_eight_digits_is_later(tmp_path):
    state = saved(tmp_path, 2)
    for step in (99_999_999, 100_000_000):
        state.step = step
        checkpoint.save(tmp_path, state, {})
    found = checkpoint.latest(tmp_path)
    assert found.folder.name == "step-100000000"


# --- damage ---------------------------------------------------------------------------------------

FILES = (
    "model.safetensors",
    "average-half-life-30.safetensors",
    "average-power-0.1.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)


def truncated(path, randomly):
    content = path.read_bytes()
    path.write_bytes(content[: randomly.randrange(len(content))])


def flipped(path, randomly):
    content = bytearray(path.read_bytes())
    start = content.index(b",") if path.name == "manifest.json" else 0  # see the next test but one
    content[randomly.randrange(start, len(content))] ^= 1 << randomly.randrange(8)
    path.write_bytes(bytes(content))


def zeroed(path, randomly):
    path.write_bytes(bytes(path.stat().st_size))


def emptied(path, randomly):
    path.write_bytes(b"")


def lengthened(path, randomly):
    path.write_bytes(path.read_bytes() + b"\0")


def deleted(path, randomly):
    path.unlink()


def swapped(path, randomly):
    """The file of the older checkpoint in the newer one's place."""
    path.write_bytes((path.parent.parent / OLD / path.name).read_bytes())


def made_a_folder(path, randomly):
    path.unlink()
    path.mkdir()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two checkpoints, the numbers of the older, and the bytes of both."""
    folder = tmp_path_factory.mktemp("pair")
    saved(folder, 2, 4)
    return folder, numbers(trained(2)), contents(folder)


DAMAGE = [
    (damage, file, seed) for damage in (truncated, flipped) for file in FILES for seed in "123"
]
DAMAGE += [
    (damage, file, "")
    for damage in (zeroed, emptied, lengthened, deleted, swapped, made_a_folder)
    for file in FILES
]


@pytest.mark.parametrize(
    ("damage", "file", "seed"), DAMAGE, ids=[f"{d.__name__}-{f}{s}" for d, f, s in DAMAGE]
)
def test_damage_is_noticed_and_the_one_before_is_used(damage, file, seed, pair, tmp_path):
    """The damaged one is named, moved to quarantine/, and every byte of it is still there."""
    source, older, pristine = pair
    folder = shutil.copytree(source, tmp_path / "ckpt")
    damage(folder / NEW / file, random.Random(f"{file}{seed}"))
    broken = contents(folder / NEW)
    if damage is not made_a_folder:
        assert broken != contents(source / NEW)

    found = checkpoint.latest(folder)  # a reader passes over it and leaves it where it is
    assert found.state["step"] == 2
    assert contents(folder / NEW) == broken
    (note,) = checkpoint.repair(folder)
    assert checkpoint.latest(folder).state["step"] == 2
    assert f"checkpoint {NEW} is damaged and was moved to" in note
    back = fresh(seed=1)
    checkpoint.restore(found, back)
    assert equal(numbers(back), older)
    (moved,) = (folder / "quarantine").iterdir()
    assert str(moved) in note
    assert contents(moved) == broken
    assert contents(folder / OLD) == {
        k.removeprefix(f"{OLD}/"): v for k, v in pristine.items() if k.startswith(OLD)
    }
    assert checkpoint.repair(folder) == ()  # told once
    # Training goes on, and the same step can be saved again.
    checkpoint.save(folder, trained(4, back), {"metrics_bytes": 4})
    assert contents(folder / NEW) == contents(source / NEW)


def test_one_checkpoint_under_the_name_of_another(pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    (folder / OLD).rename(folder / "aside")
    (folder / NEW).rename(folder / OLD)
    (folder / "aside").rename(folder / NEW)
    assert len(checkpoint.repair(folder)) == 2
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        checkpoint.latest(folder)


@pytest.mark.parametrize("bit", [1, 2, 3])
def test_a_flipped_bit_is_not_taken_for_a_newer_format(bit, pair, tmp_path):
    """`"format": 1` becomes 3, 5 or 9 by one bit; the digest tells that from a newer version."""
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    manifest = folder / NEW / "manifest.json"
    content = bytearray(manifest.read_bytes())
    content[content.index(b"1", content.index(b"format"))] ^= 1 << bit
    manifest.write_bytes(bytes(content))
    assert checkpoint.latest(folder).state["step"] == 2
    assert len(checkpoint.repair(folder)) == 1


@pytest.mark.parametrize(
    "manifest",
    [b"[]", b"null", b"7", b'"x"', b"{}", b'{"format": 1}', b'{"format": "x"}', b"\xff\xfe", b"{"],
)
def test_a_manifest_of_another_shape(manifest, pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    (folder / NEW / "manifest.json").write_bytes(manifest)
    assert checkpoint.latest(folder).state["step"] == 2
    assert len(checkpoint.repair(folder)) == 1


def test_none_left_is_an_error_and_not_a_fresh_start(pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    for name in (OLD, NEW):
        emptied(folder / name / "model.safetensors", None)
    for found in (2, 0):  # and the second time, when only the quarantine is left
        with pytest.raises(CheckpointError, match="no whole checkpoint is left.*--fresh") as caught:
            checkpoint.latest(folder)
        assert caught.value.code == 4
        assert len(checkpoint.repair(folder)) == found
    assert len(list((folder / "quarantine").iterdir())) == 2


def test_a_file_that_changes_between_check_and_use(pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    found = checkpoint.latest(folder)
    flipped(found.folder / "model.safetensors", random.Random(0))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        found.tensors("model")


def test_leftovers_of_a_killed_save_are_removed(pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    half = folder / ".tmp-00000006-0123abcd"
    shutil.copytree(folder / NEW, half)
    (half / "manifest.json").unlink()
    assert checkpoint.latest(folder).state["step"] == 4
    assert checkpoint.repair(folder) == ()
    assert not leftovers(folder)


def rewritten(folder, **changed):
    """A manifest with other values and the digest that belongs to them."""
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_bytes()), **changed}
    del manifest["digest"]
    text = json.dumps(manifest, sort_keys=True).encode()
    manifest["digest"] = hashlib.sha256(text).hexdigest()
    path.write_text(json.dumps(manifest))


def test_a_newer_format_is_refused_and_left_in_place(pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    rewritten(folder / NEW, format=checkpoint.FORMAT + 1)
    for look in (checkpoint.latest, checkpoint.repair):
        with pytest.raises(CheckpointError, match="newer version.*upgrade ornstein"):
            look(folder)
    assert (folder / NEW / "model.safetensors").exists()
    assert not (folder / "quarantine").exists()


def test_a_manifest_cannot_point_elsewhere(pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    ours, theirs = (
        json.loads((folder / name / "manifest.json").read_bytes())["files"] for name in (NEW, OLD)
    )
    ours[f"../{OLD}/model.safetensors"] = theirs["model.safetensors"]
    rewritten(folder / NEW, files=ours)
    assert checkpoint.latest(folder).state["step"] == 2


def test_a_manifest_that_has_lost_a_file_is_damaged(pair, tmp_path):
    """Everything that it still names is whole; its own digest tells."""
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    path = folder / NEW / "manifest.json"
    manifest = json.loads(path.read_bytes())
    del manifest["files"]["optimizer.safetensors"]
    path.write_text(json.dumps(manifest))
    assert checkpoint.latest(folder).state["step"] == 2


def test_weights_of_another_architecture_are_refused_in_a_sentence(tmp_path):
    saved(tmp_path, 2)
    found = checkpoint.latest(tmp_path)
    with pytest.raises(CheckpointError, match="do not fit this model.*its recipe has changed"):
        checkpoint.load_weights(found, "model", nn.Linear(3, 2))
    with pytest.raises(CheckpointError, match="holds no 'average-x'; it has average-half-life-30"):
        checkpoint.load_weights(found, "average-x", nn.Linear(3, 2))


# --- a disk that fails ----------------------------------------------------------------------------


class Failing:
    """Calls of a function, the k-th of which fails as a full disk does."""

    def __init__(self, monkeypatch, owner, name, k):
        self.real, self.k, self.calls = getattr(owner, name), k, 0
        monkeypatch.setattr(owner, name, lambda *args: self(*args))

    def __call__(self, *args):
        self.calls += 1
        if self.calls == self.k:
            if self.real.__name__ == "write":  # some of it got through
                args[0].write_bytes(args[1][: len(args[1]) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.real(*args)


POINTS = [(fsops, "write", 6), (os, "fsync", 8), (Path, "replace", 1), (Path, "open", 6)]


@pytest.mark.parametrize(
    ("owner", "name", "k"),
    [(owner, name, k) for owner, name, count in POINTS for k in range(1, count + 1)],
    ids=lambda v: v if isinstance(v, str) else getattr(v, "__name__", str(v)),
)
def test_a_save_that_fails_leaves_what_was_there(owner, name, k, pair, tmp_path, monkeypatch):
    """At every write, flush and rename: nothing half-done, and the next save succeeds."""
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    before, state = contents(folder), trained(6)
    with monkeypatch.context() as patch:
        failing = Failing(patch, owner, name, k)
        with pytest.raises((StorageError, OSError), match="No space left"):
            checkpoint.save(folder, state, {"metrics_bytes": 6})
        assert failing.calls == k
    assert not leftovers(folder)
    after = contents(folder)
    assert {path: after[path] for path in before} == before
    assert checkpoint.repair(folder) == ()
    assert checkpoint.latest(folder).state["step"] in (4, 6)  # 6: it failed after the rename
    checkpoint.save(folder, state, {"metrics_bytes": 6})
    assert checkpoint.latest(folder).state["step"] == 6


def test_the_points_of_failure_are_all_there_are(pair, tmp_path, monkeypatch):
    folder, state = shutil.copytree(pair[0], tmp_path / "ckpt"), trained(6)
    for owner, name, count in POINTS:
        with monkeypatch.context() as patch:
            failing = Failing(patch, owner, name, -1)
            checkpoint.save(folder, state, {})
            if name != "open":  # reading what is there opens files too
                # Pruning, where there is something to prune, renames and flushes once more.
                assert count <= failing.calls <= count + (name in ("fsync", "replace")), name
        shutil.rmtree(folder / "step-00000006")


@pytest.mark.parametrize("k", range(1, 9))
def test_a_full_disk_is_a_sentence_with_the_remedy(k, pair, tmp_path, monkeypatch):
    folder, state = shutil.copytree(pair[0], tmp_path / "ckpt"), trained(6)
    Failing(monkeypatch, os, "fsync", k)
    with pytest.raises(StorageError, match="free some space") as caught:
        checkpoint.save(folder, state, {})
    assert caught.value.code == 5


def test_too_little_space_is_told_before_anything_is_written(pair, tmp_path, monkeypatch):
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    before = contents(folder)
    monkeypatch.setattr(fsops, "free_bytes", lambda path: 1234)
    with pytest.raises(StorageError, match=r"needs [\d,]+ bytes in .* and 1,234 are free"):
        checkpoint.save(folder, trained(6), {})
    assert contents(folder) == before
    assert not leftovers(folder)


def test_a_failed_deletion_of_an_old_one_does_not_fail_the_save(pair, tmp_path, monkeypatch):
    """RELIABILITY §3.1, rule 4: the new one is whole; a deletion that fails is a warning."""
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")

    def refuse(path):
        raise StorageError(f"cannot write {path}")

    monkeypatch.setattr(fsops, "remove", refuse)
    assert checkpoint.save(folder, trained(6), {}).name == "step-00000006"


def test_a_reader_does_not_disturb_a_save(pair, tmp_path, monkeypatch):
    """`sample` or `runs` in another process while `train` is writing a checkpoint."""
    folder, state = shutil.copytree(pair[0], tmp_path / "ckpt"), trained(6)
    write = fsops.write

    def watched(path, content):
        assert checkpoint.latest(folder).state["step"] == 4
        write(path, content)

    monkeypatch.setattr(fsops, "write", watched)
    checkpoint.save(folder, state, {})
    assert checkpoint.latest(folder).state["step"] == 6


# --- no pickle ------------------------------------------------------------------------------------

SOURCE = Path(__file__).parents[1] / "src" / "ornstein"
MODULES = {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle", "_pickle"}
CALLS = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "__import__"),
}


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(text):
    """What a file does that could run code from a file: module, call or flag, with its line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (f"{node.lineno}: {n}" for n in names if n.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"{node.lineno}: {node.module}"
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            flags = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            safe = flags.get("allow_pickle") is False
            reads = name in ("np.load", "numpy.load") or name.endswith("format.read_array")
            if name in CALLS or name.endswith(".extractall") or (reads and not safe):
                yield f"{node.lineno}: {name}"
            for flag in ("shell", "trust_remote_code", "allow_pickle"):
                if flags.get(flag) is True:
                    yield f"{node.lineno}: {flag}=True"
            if flags.get("weights_only") is False:
                yield f"{node.lineno}: weights_only=False"


def test_no_file_that_is_read_can_run_code():
    found = [
        f"{path.relative_to(SOURCE)}:{offence}"
        for path in sorted(SOURCE.rglob("*.py"))
        for offence in offences(path.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f, weights_only=True)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "eval(f)",
        "run(f, shell=True)",
        "tar.extractall()",
    ],
)
def test_the_scan_sees_what_it_looks_for(text):
    assert list(offences(text))
