"""What is kept in the cache is whole, and is what was asked for."""

import pytest
import torch

from ornstein.errors import StorageError
from ornstein.features.stored import Stored, digest, kept


def test_it_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return Stored({"a": torch.arange(6.0).view(2, 3).T}, {"mean": 0.1 + 0.2, "none": None})

    about = {"of": "this"}
    first = kept(tmp_path / "new", "kind", about, make)
    again = kept(tmp_path / "new", "kind", about, make)
    assert len(made) == 1
    assert torch.equal(again.tensors["a"], first.tensors["a"])
    assert again.values == first.values  # to the last bit
    (path,) = (tmp_path / "new").iterdir()
    assert path.name.startswith("kind-")
    kept(tmp_path / "new", "kind", {"of": "that"}, make)
    kept(tmp_path / "new", "other", about, make)
    assert len(made) == 3
    kept(None, "kind", about, make)
    assert len(made) == 4
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_values_alone_can_be_kept(tmp_path):
    for _ in range(2):
        found = kept(tmp_path, "kind", {}, lambda: Stored({}, {"mean": 1 / 3}))
        assert found == Stored({}, {"mean": 1 / 3})


def test_damage_is_noticed(tmp_path):
    def make(value=1.0):
        return Stored({"a": torch.full((3,), value)}, {})

    kept(tmp_path, "kind", {}, make)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-5] ^= 1  # safetensors alone would not notice
    for bad in (b"", b"\xff" * 100, good[:-7], good[:100], bytes(flipped)):
        path.write_bytes(bad)
        assert kept(tmp_path, "kind", {}, lambda: make(2.0)).tensors["a"][0] == 2
        path.write_bytes(good)
        assert kept(tmp_path, "kind", {}, lambda: make(2.0)).tensors["a"][0] == 1


def test_a_file_that_was_made_from_something_else_is_as_good_as_none(tmp_path):
    for value in (1.0, 2.0):
        about = {"value": value}
        kept(tmp_path, "kind", about, lambda v=value: Stored({"a": torch.tensor(v)}, {}))
    one, other = sorted(tmp_path.iterdir())
    one.write_bytes(other.read_bytes())
    found = {
        float(
            kept(tmp_path, "kind", {"value": v}, lambda: Stored({"a": -torch.ones(())}, {}))[0]["a"]
        )
        for v in (1.0, 2.0)
    }
    assert -1 in found
    assert len(found) == 2


def test_the_digest_tells_names_and_values_apart():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, -2.0])
    found = {digest(t) for t in ({"a": a}, {"b": a}, {"a": b}, {"a": a, "b": b})}
    assert len(found) == 4
    assert digest({"a": a, "b": b}) == digest({"b": b, "a": a})


def test_a_folder_that_cannot_be_written_is_an_error_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")

    def never():
        raise AssertionError("made although it cannot be kept")

    with pytest.raises(StorageError, match=r"file cannot be written .*ORNSTEIN_CACHE"):
        kept(tmp_path / "file", "kind", {}, never)
