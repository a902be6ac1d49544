"""Sequences from files: arrays of five axes, and folders of frames."""

from __future__ import annotations

import time
import zipfile
from random import Random

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from ornstein.cli import run
from ornstein.cli.request import request
from ornstein.data.arrays import read_arrays
from ornstein.data.inspection import inspect, sheet
from ornstein.data.sequences import Windows, natural, read_frames
from ornstein.data.sources import Arrays, Frames, Moving, recognise
from ornstein.errors import DataError
from ornstein.features.pixels import Pixels
from ornstein.metrics.frechet import fit, frechet

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / ".cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def frames_of(folder, names, first=0, size=(8, 8)):
    """One image a name, all of one grey: the number of the name, from `first` on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names, first):
        Image.new("L", size, i).save(folder / name)
    return folder


def greys(x):
    """Which frames sequences [N, T, C, H, W] are made of, by their grey."""
    assert (x == x[:, :, :1, :1, :1]).all()
    return x[:, :, 0, 0, 0].tolist()


# Arrays


@pytest.mark.parametrize(
    ("shape", "read"),
    [
        ((6, 5, 8, 9, 3), (6, 5, 3, 8, 9)),
        ((6, 5, 3, 8, 9), (6, 5, 3, 8, 9)),
        ((6, 5, 1, 8, 9), (6, 5, 1, 8, 9)),
        ((6, 5, 8, 9, 4), (6, 5, 3, 8, 9)),  # opacity is laid over white
        ((6, 2, 8, 9, 1), (6, 2, 1, 8, 9)),
        ((6, 3, 3, 4, 4), (6, 3, 3, 4, 4)),  # the square reading
        ((6, 5, 8, 9), (6, 5, 1, 8, 9)),  # grey, where neither end can be channels
    ],
)
def test_sequences_have_channels_before_rows(here, shape, read):
    x = RNG.integers(0, 256, shape, dtype=np.uint8)
    np.save(here / "a.npy", x)
    found = read_arrays(here / "a.npy")
    assert found.kind == "sequence"
    assert (found.range, found.bins) == ((0.0, 255.0), 256)
    assert found.x.shape == read
    assert found.x.dtype == np.uint8
    # Each frame is what it would be as an image alone.
    for t in range(shape[1]):
        np.save(here / "b.npy", x[:, t])
        np.testing.assert_array_equal(found.x[:, t], read_arrays(here / "b.npy").x)


def test_labels_floats_and_booleans(here):
    x, y = RNG.uniform(size=(9, 4, 1, 5, 6)).astype(np.float32), np.arange(9) % 3
    np.savez(here / "a.npz", x=x, y=y)
    data = Arrays(path="a.npz").load()
    assert (data.info.kind, data.info.shape) == ("sequence", (4, 1, 5, 6))
    assert (data.info.range, data.info.bins, data.info.classes) == ((0.0, 1.0), None, tuple("012"))
    np.testing.assert_array_equal(data.x, x)
    np.savez_compressed(here / "b.npz", x=x > 0.5)
    data = Arrays(path="b.npz").load()
    assert (data.info.range, data.info.bins) == ((0.0, 1.0), 2)
    assert recognise("a.npz") == Arrays(path="a.npz")


def test_a_large_file_is_read_in_place(here, monkeypatch):
    x = RNG.integers(0, 256, (6, 5, 8, 9, 3), dtype=np.uint8)
    np.save(here / "a.npy", x)
    monkeypatch.setattr("ornstein.data.arrays.IN_MEMORY", 100)
    read = read_arrays(here / "a.npy").x
    base = read
    while base.base is not None and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)
    np.testing.assert_array_equal(read, x.transpose(0, 1, 4, 2, 3))


BAD = [
    (np.zeros((9, 1, 8, 8, 3), np.uint8), "sequences need at least 2 frames"),
    (np.zeros((9, 4, 8, 8, 2), np.uint8), "channels must come first or last"),
    (np.zeros((9, 4, 8, 8, 3), complex), "complex128"),
    (np.zeros((9, 4, 1, 8, 8), np.int32) - 1, "from -1 to -1"),
    (np.zeros((9, 4, 1, 8, 8)) + 2, "scale them to"),
    (np.zeros((9, 4, 1, 8, 8)) + np.nan, "in row 0 "),
    (np.zeros((1, 4, 1, 8, 8), np.uint8), "at least 2 are needed"),
    (np.zeros((9, 4, 1, 8, 8), np.uint8), "all values of a are 0"),
    (np.zeros((9, 0, 1, 8, 8), np.uint8), "is empty"),
    (np.zeros((9, 4, 8, 8, 3, 2), np.uint8), r"sequences \[N, T, H, W, C\]"),
    (np.array([[["a"] * 8] * 8] * 9), "vectors are"),
]


@pytest.mark.parametrize(("x", "says"), BAD)
def test_what_is_no_sequence_is_said(here, x, says, capsys):
    np.save(here / "a.npy", x)
    with pytest.raises(DataError, match=says):
        Arrays(path="a.npy").load()
    assert run(["inspect", "a.npy"]) == DataError.code == 3
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert len(told.strip().splitlines()) == 1


def test_the_first_sequence_that_is_not_finite_is_named(here):
    x = np.zeros((9, 4, 1, 5, 5), np.float32)
    x[6, 3, 0, 2, 2] = np.inf
    np.save(here / "a.npy", x)
    with pytest.raises(DataError, match="in row 6 "):
        read_arrays(here / "a.npy")


def test_bombs_and_lies_are_refused_before_they_are_unpacked(here, capsys):
    def member(shape, size):
        head = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
        head = head.ljust(117) + "\n"
        return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head.encode() + bytes(size)

    # A header that claims more than is there, one that claims more than may be, and a zip bomb.
    (here / "short.npy").write_bytes(member((50, 20, 3, 64, 64), 1000))
    (here / "huge.npy").write_bytes(member((10**6, 20, 3, 64, 64), 1000))
    bomb = zipfile.ZipFile(here / "bomb.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with bomb as archive, archive.open("x.npy", "w") as out:
        out.write(member((300, 1024, 1, 32, 32), 0))
        for _ in range(300):
            out.write(bytes(1 << 20))
    for name, says in (("short", "is truncated"), ("huge", "limit is 8 GiB"), ("bomb", "unpack")):
        path = here / f"{name}.np{'z' if name == 'bomb' else 'y'}"
        started = time.monotonic()
        with pytest.raises(DataError, match=says):
            read_arrays(path)
        assert run(["inspect", str(path)]) == 3
        assert says in capsys.readouterr().err
        assert time.monotonic() - started < 5


# Folders of frames


def test_names_are_sorted_as_a_person_would():
    names = ["a2.png", "A10.png", "a1.png", "a01.png", "b.png", "1.png", "10.png", "2.png"]
    mixed = names[:]
    Random(0).shuffle(mixed)
    assert sorted(mixed, key=natural) == [
        *("1.png", "2.png", "10.png"),
        *("a01.png", "a1.png", "a2.png", "A10.png", "b.png"),
    ]


def test_frames_are_in_their_order_and_long_sequences_are_cut(here):
    films = here / "films"
    frames_of(films / "s10", [f"{i}.png" for i in range(3)], first=50)  # too short for a second
    frames_of(films / "s2", [f"f{i}.png" for i in range(11)])  # f10 after f9
    (films / "notes.txt").write_text("")
    data = Frames(path="films", frames=3).load()
    assert (data.info.kind, data.info.shape) == ("sequence", (3, 1, 8, 8))
    assert (data.info.range, data.info.bins, data.info.name) == ((0.0, 255.0), 256, "films")
    assert greys(data.x[:]) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [50, 51, 52]]
    assert data.names[0] == "s2/f0.png to f2.png"
    assert data.label is None  # folders are sequences, not classes
    assert data.ignored == 1
    found = read_frames(films, 3, stride=1)
    assert len(found.x) == 9 + 1
    assert greys(found.x[7:9]) == [[7, 8, 9], [8, 9, 10]]
    found = read_frames(films, 2, stride=4)
    assert greys(found.x[:]) == [[0, 1], [4, 5], [8, 9], [50, 51]]


def test_no_sequence_reaches_over_a_frame_that_is_missing(here):
    folder = frames_of(here / "films" / "a", [f"{i}.png" for i in range(10)])
    frames_of(here / "films" / "b", ["0.png", "1.png"], first=30)
    (folder / "3.png").write_bytes(b"not an image")
    data = Frames(path="films", frames=2).load()
    assert greys(data.x[:]) == [[0, 1], [4, 5], [6, 7], [8, 9], [30, 31]]
    assert [bad.path for bad in data.bad] == ["a/3.png"]


def test_rows_are_put_together_as_they_are_asked_for():
    frames = RNG.integers(0, 256, (12, 1, 2, 2), dtype=np.uint8)
    x = Windows(frames, np.array([[0, 1, 2], [5, 4, 3], [9, 10, 11]]))
    whole = np.stack([frames[:3], frames[5:2:-1], frames[9:]])
    assert (x.shape, x.dtype, len(x)) == ((3, 3, 1, 2, 2), np.uint8, 3)
    np.testing.assert_array_equal(np.asarray(x), whole)
    np.testing.assert_array_equal(np.asarray(x, np.float32), whole)
    np.testing.assert_array_equal(x[1:], whole[1:])
    np.testing.assert_array_equal(x[np.array([2, 0])], whole[[2, 0]])
    np.testing.assert_array_equal(x[np.array([True, False, True])], whole[[0, 2]])
    np.testing.assert_array_equal(x[1], whole[1])


def test_whole_folders_are_held_out(here):
    for k in range(10):
        frames_of(here / "films" / f"s{k}", [f"{i}.png" for i in range(8)], first=10 * k)
    data = Frames(path="films", frames=2, stride=1, held_out=0.2).load()
    of = np.array(greys(data.x[:]))[:, 0] // 10
    train, rest = set(of[data.train]), set(of[data.held_out])
    assert not train & rest
    assert len(rest) == 2
    data = Frames(path="films", frames=2, held_out=0).load()
    assert len(data.held_out) == 0


def test_the_end_of_a_single_sequence_is_held_out(here):
    frames_of(here / "film", [f"{i}.png" for i in range(40)])
    data = Frames(path="film", frames=4, held_out=0.3).load()
    assert data.held_out.tolist() == [7, 8, 9]


def test_splits_and_classes_of_the_folders_are_kept(here):
    for split, count in (("train", 4), ("test", 2)):
        for kind in ("run", "walk"):
            for k in range(count):
                frames_of(here / "films" / split / kind / f"s{k}", ["1.png", "2.png"], k)
    data = Frames(path="films", frames=2).load()
    assert (len(data.train), len(data.held_out)) == (8, 4)
    assert data.info.classes == ("run", "walk")
    names = [data.info.classes[k] for k in data.label]
    assert [name.split("/")[1] for name in data.names] == names
    assert {data.names[i].split("/")[0] for i in data.held_out} == {"test"}


def test_a_class_that_has_lost_all_its_sequences_is_none(here):
    for kind, frames in (("a", 3), ("b", 1), ("c", 3)):
        for k in range(2):
            frames_of(here / "films" / kind / f"s{k}", [f"{i}.png" for i in range(frames)], k)
    data = Frames(path="films", frames=3).load()
    assert data.info.classes == ("a", "c")
    assert data.label.tolist() == [0, 0, 1, 1]


def test_the_fingerprint_is_that_of_frames_and_cuts(here):
    for k in range(3):
        frames_of(here / "films" / f"s{k}", [f"{i}.png" for i in range(8)], first=10 * k)
    first = Frames(path="films", frames=2).load()
    assert Frames(path="films", frames=2).load().info == first.info
    prints = {first.info.fingerprint}
    for change in ({"frames": 3}, {"stride": 1}, {"size": 12}, {"channels": 3}):
        prints.add(Frames(path="films", **{"frames": 2, **change}).load().info.fingerprint)
    assert len(prints) == 5


def test_the_fingerprint_is_that_of_the_places_too(here):
    """As many sequences as long, which begin elsewhere."""
    for k in range(3):
        frames_of(here / "films" / f"s{k}", [f"{i}.png" for i in range(5)], first=10 * k)
    two, three = (read_frames(here / "films", 2, stride) for stride in (2, 3))
    assert two.x.shape == three.x.shape
    assert two.fingerprint != three.fingerprint


@pytest.mark.parametrize(
    ("count", "frames", "says"),
    [
        (9, 20, r"no sequence of 20 frames .* are 9; write data.frames=4"),
        (9, 9, r"only one sequence of 9 frames .* write data.frames=4"),
        (2, 2, r"only one sequence of 2 frames"),
    ],
)
def test_too_few_frames_are_said(here, count, frames, says, capsys):
    frames_of(here / "film", [f"{i}.png" for i in range(count)])
    with pytest.raises(DataError, match=says):
        Frames(path="film", frames=frames).load()
    code = run(["inspect", "film", "data.kind=frames", f"data.frames={frames}"])
    assert code == 3
    assert "Traceback" not in capsys.readouterr().err


def test_a_single_frame_is_no_sequence():
    for source, more in ((Frames, {"path": "x"}), (Moving, {"name": "moving_digits"})):
        with pytest.raises(ValidationError, match="greater than or equal to 2"):
            source(**more, frames=1)


def test_a_folder_is_read_as_frames_when_that_is_asked_for(here):
    for k in range(2):
        frames_of(here / "films" / f"s{k}", [f"{i}.png" for i in range(4)], first=10 * k)
    assert recognise("films").kind == "folder"
    words = ["data.kind=frames", "data.frames=2"]
    source = request("edm", "films", None, None, words).recipe.data
    assert source == Frames(path="films", frames=2)


# What is said and measured of them


def test_a_report_and_the_command_that_it_proposes(here):
    for k in range(4):
        frames_of(here / "my films" / f"s{k}", [f"{i}.png" for i in range(4)], first=10 * k)
    source = Frames(path="my films", frames=2)
    found = inspect(source, source.load())
    assert found.repeated.exact == ()
    assert found.proposal.command == (
        f"ornstein train td_vae --data '{here}/my films' data.frames=2 data.size=8 data.kind=frames"
    )
    source = Moving(name="moving_shapes", count=50, frames=4)
    data = source.load()
    found = inspect(source, data)
    assert found.proposal.command == (
        "ornstein train td_vae --data moving_shapes data.frames=4 data.count=50"
    )
    ids, columns = sheet(data)
    assert (len(ids), columns) == (24, None)
    assert set(ids) <= set(data.train)


def test_inspect_speaks_of_sequences(here, capsys):
    assert run(["inspect", "moving_digits", "data.count=60", "data.frames=5"]) == 0
    out = capsys.readouterr().out
    assert "moving_digits: 60 sequences" in out
    assert "proposed    5 frames of 16×16, 1 channel" in out
    assert "NCSN" not in out
    with Image.open(here / "inspect-moving_digits.png") as image:  # 24 rows of 5 frames
        assert image.size == (5 * (3 * 16 + 2) + 2, 24 * (3 * 16 + 2) + 2)
    assert run(["inspect", "moving_digits", "data.count=60", "--json"]) == 0


def test_features_of_sequences_see_how_they_move():
    """Those that stand still, or whose frames are out of order, are far from the real ones."""
    data = Moving(name="moving_digits", count=300).load()
    eye = Pixels(data.info)
    assert eye.name == "pixels 4x4 of 8 frames"
    found = eye.features(data.x)
    assert found.shape == (300, 8 * 16)
    # The first and the last frame are among them, in units of the standard deviation.
    flat = found.view(300, 8, 16)
    for place, t in ((0, 0), (-1, -1)):
        cells = data.x[:, t].astype(np.float64).reshape(300, 4, 4, 4, 4).mean((2, 4))
        scaled = (cells.reshape(300, 16) - data.info.mean) / data.info.std
        np.testing.assert_allclose(flat[:, place], scaled, atol=1e-12)
    short = Moving(name="moving_shapes", count=20, frames=2).load()
    assert Pixels(short.info).features(short.x).shape == (20, 2 * 3 * 16)
    more = Moving(name="moving_digits", count=300, seed=1).load().x
    order = np.random.default_rng(0).permuted(np.tile(np.arange(20), (300, 1)), axis=1)
    wrong = [more[np.arange(300)[:, None], order], np.repeat(more[:, :1], 20, axis=1)]
    real, shuffled, still = (frechet(eye.features(x), fit(found)).value for x in (more, *wrong))
    assert real < min(shuffled, still) / 10
