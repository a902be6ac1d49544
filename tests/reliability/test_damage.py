"""Damage to checkpoints, at random and of every kind we know: noticed, named, set aside.

safetensors notices a file that is too short but not a flipped bit, so that every byte of a
checkpoint is covered by a SHA-256: its files by the manifest, the manifest by a digest of its own
and by the one way in which it may be written. Two checkpoints are damaged, some thousand times
over, in one to three places at once. Each time it must be known which of the two is damaged; a
reader uses the other, or refuses if none is left; and the start of a training moves the damaged
one to `quarantine/`, with every byte of it, and says so.

    python -m pytest tests/reliability/test_damage.py -s               2,000 mutations
    python -m pytest tests/reliability/test_damage.py -s -m slow       10,000 more
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections import Counter

import pytest

from ornstein import checkpoint
from ornstein.errors import CheckpointError
from tests.reliability import small
from tests.reliability.disk import contents
from tests.reliability.small import FILES, NEW, NEXT, OLD, equal, fresh, numbers

MUTATIONS, MORE = 2000, 10_000


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two checkpoints, the numbers of the older, and the bytes of both."""
    folder = tmp_path_factory.mktemp("pair")
    small.save(folder, 2, 4)
    return folder, numbers(small.at(2)), contents(folder)


# Each kind takes the checkpoints' folder, the name of one, a file in it and a source of choices,
# and returns the names of what it has damaged.


def truncated(folder, name, file, randomly):
    path = folder / name / file
    content = path.read_bytes()
    path.write_bytes(content[: randomly.randrange(len(content))])
    return {name}


def extended(folder, name, file, randomly):
    """By noise, by zeros, or by blanks, which a reader of JSON would pass over."""
    more = randomly.choice([randomly.randbytes(9), bytes(512), b"\n", b"    "])
    with (folder / name / file).open("ab") as opened:
        opened.write(more)
    return {name}


def flipped(folder, name, file, randomly):
    """One bit."""
    path = folder / name / file
    content = bytearray(path.read_bytes())
    content[randomly.randrange(len(content))] ^= 1 << randomly.randrange(8)
    path.write_bytes(bytes(content))
    return {name}


def zeroed(folder, name, file, randomly):
    """A block of the disk, of which files of this size have one or two."""
    path = folder / name / file
    content = bytearray(path.read_bytes())
    size = randomly.choice([16, 64, 512])
    start = randomly.randrange(0, len(content), size)
    part = content[start : start + size]
    if not any(part):
        return set()
    content[start : start + size] = bytes(len(part))
    path.write_bytes(bytes(content))
    return {name}


def exchanged(folder, name, file, randomly):
    """A file of one checkpoint for that of the other."""
    a, b = folder / OLD / file, folder / NEW / file
    x, y = a.read_bytes(), b.read_bytes()
    a.write_bytes(y)
    b.write_bytes(x)
    return {OLD, NEW} if x != y else set()


def deleted(folder, name, file, randomly):
    (folder / name / file).unlink()
    return {name}


def duplicated(folder, name, file, randomly):
    """A file in the place of another of the same checkpoint."""
    other = folder / name / randomly.choice([n for n in FILES if n != file])
    content = (folder / name / file).read_bytes()
    same = other.read_bytes() == content
    other.write_bytes(content)
    return set() if same else {name}


def doubled(folder, name, file, randomly):
    """A whole checkpoint a second time, as if it were of a later step."""
    if not (folder / NEXT).exists():
        shutil.copytree(folder / name, folder / NEXT)
    return {NEXT}


def made_a_folder(folder, name, file, randomly):
    (folder / name / file).unlink()
    (folder / name / file).mkdir()
    return {name}


KINDS = (truncated, extended, flipped, zeroed, exchanged, deleted, duplicated, doubled)
KINDS += (made_a_folder,)


def reset(folder, pristine):
    """Both checkpoints as they were."""
    for entry in folder.iterdir():
        if entry.name not in (OLD, NEW):
            shutil.rmtree(entry)
    for name, content in pristine.items():
        path = folder / name
        if path.is_dir():
            path.rmdir()
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def mutate(pair, count, seed, tmp_path):
    """Damage and judge so many times; how often each kind was used."""
    source, older, pristine = pair
    folder, used, randomly = shutil.copytree(source, tmp_path / "ckpt"), Counter(), None
    for i in range(count):
        randomly = random.Random(f"{seed} {i}")
        damaged, told, at_once = set(), [], randomly.choice([1, 1, 1, 2, 3])
        for _ in range(at_once):
            kind, name = randomly.choice(KINDS), randomly.choice([OLD, NEW])
            file = randomly.choice(FILES)
            before = contents(folder)
            try:
                damaged |= kind(folder, name, file, randomly)
            except (OSError, ValueError):  # the file has just been deleted, or emptied
                continue
            if contents(folder) != before or kind is made_a_folder:
                used[kind.__name__] += 1
                told.append(f"{kind.__name__} {name}/{file}")
        # Two that cancel out, such as the same file exchanged twice, leave nothing to be found.
        damaged = {n for n in damaged if n == NEXT or state_of(folder, n) != state_of(source, n)}
        judge(folder, damaged, older, f"mutation {i}: {told}")
        reset(folder, pristine)
    return used


def state_of(folder, name):
    """Every file and folder of a checkpoint."""
    return {
        str(p.relative_to(folder / name)): None if p.is_dir() else p.read_bytes()
        for p in (folder / name).rglob("*")
    }


def judge(folder, damaged, older, told):
    whole = [name for name in (OLD, NEW) if name not in damaged]
    remains = {name: state_of(folder, name) for name in damaged}
    if whole:
        found = checkpoint.latest(folder)
        assert found is not None, told
        assert found.folder.name == whole[-1], told
        if whole == [OLD]:
            back = fresh(seed=1)
            checkpoint.restore(found, back)
            assert equal(numbers(back), older), told
    else:
        with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
            checkpoint.latest(folder)
    notes = checkpoint.repair(folder)
    assert len(notes) == len(damaged), told
    for name in damaged:
        (note,) = [note for note in notes if f"checkpoint {name} is damaged" in note]
        (moved,) = (folder / "quarantine").glob(f"{name}-*")
        assert str(moved) in note, told
        assert state_of(moved.parent, moved.name) == remains[name], told
        assert not (folder / name).exists(), told
    assert checkpoint.repair(folder) == (), told


def test_two_thousand_mutations(pair, memory):
    used = mutate(pair, MUTATIONS, 0, memory)
    print(f"\n{sum(used.values())} changes in {MUTATIONS} mutations, all noticed: {dict(used)}")
    assert min(used[kind.__name__] for kind in KINDS) >= 100


@pytest.mark.slow
def test_ten_thousand_mutations(pair, memory):
    used = mutate(pair, MORE, 1, memory)
    print(f"\n{sum(used.values())} changes in {MORE} mutations, all noticed: {dict(used)}")


def test_every_bit_of_the_manifest_counts(pair, memory):
    """It is the one file that no other file vouches for; blanks and line ends count as well."""
    folder = shutil.copytree(pair[0], memory / "ckpt")
    path = folder / NEW / "manifest.json"
    content = path.read_bytes()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(changed))
        assert checkpoint._verified(folder / NEW) is None, bit


def test_training_goes_on_where_the_whole_one_is(pair, tmp_path):
    """And the same step can be saved again, beside the damaged one in quarantine."""
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    (folder / NEW / "model.safetensors").write_bytes(b"")
    checkpoint.repair(folder)
    back = fresh(seed=1)
    checkpoint.restore(checkpoint.latest(folder), back)
    checkpoint.save(folder, small.trained(4, back), {"metrics_bytes": 4})
    assert contents(folder / NEW) == contents(pair[0] / NEW)


def test_one_checkpoint_under_the_name_of_another(pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    (folder / OLD).rename(folder / "aside")
    (folder / NEW).rename(folder / OLD)
    (folder / "aside").rename(folder / NEW)
    assert len(checkpoint.repair(folder)) == 2
    with pytest.raises(CheckpointError, match="no whole checkpoint is left"):
        checkpoint.latest(folder)


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
        (folder / name / "model.safetensors").write_bytes(b"")
    for found in (2, 0):  # and the second time, when only the quarantine is left
        with pytest.raises(CheckpointError, match="no whole checkpoint is left.*--fresh") as caught:
            checkpoint.latest(folder)
        assert caught.value.code == 4
        assert len(checkpoint.repair(folder)) == found
    assert len(list((folder / "quarantine").iterdir())) == 2


def test_a_file_that_changes_between_check_and_use(pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    found = checkpoint.latest(folder)
    flipped(folder, NEW, "model.safetensors", random.Random(0))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        found.tensors("model")


def test_leftovers_of_a_killed_save_are_removed(pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "ckpt")
    half = folder / ".tmp-00000006-0123abcd"
    shutil.copytree(folder / NEW, half)
    (half / "manifest.json").unlink()
    assert checkpoint.latest(folder).state["step"] == 4
    assert checkpoint.repair(folder) == ()
    assert not small.leftovers(folder)


def rewritten(folder, **changed):
    """A manifest with other values and the digest that belongs to them."""
    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_bytes()), **changed}
    del manifest["digest"]
    text = json.dumps(manifest, sort_keys=True).encode()
    manifest["digest"] = hashlib.sha256(text).hexdigest()
    path.write_text(json.dumps(manifest, indent=1))


def test_a_newer_format_is_refused_and_left_in_place(pair, tmp_path):
    """No flipped bit can pass for it: the digest is compared first."""
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
    path.write_text(json.dumps(manifest, indent=1))
    assert checkpoint.latest(folder).state["step"] == 2
