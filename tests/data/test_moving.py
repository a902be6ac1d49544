"""Moving pictures: every frame is the one before, moved, and the factors say by how much."""

from __future__ import annotations

import hashlib
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from ornstein.data import moving as module
from ornstein.data import shapes
from ornstein.data.digits import digits
from ornstein.data.moving import NAMES, Factors, draw, enlarged, factors, moving
from ornstein.data.sources import Moving, MovingName, apart, held, recognise
from ornstein.errors import ConfigError, DataError
from ornstein.metrics.motion import direction, displacements


def rolled(x, by):
    """Each of N images moved by its own number of columns to the right."""
    return np.stack([np.roll(one, shift, -1) for one, shift in zip(x, by, strict=True)])


@pytest.mark.parametrize(("size", "speed", "frames"), [(16, 1, 20), (13, 2, 9), (8, 3, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_a_frame_is_the_one_before_moved_on_a_ring(name, size, speed, frames):
    x, _ = moving(name, 50, frames, size, speed, seed=3)
    found = factors(name, 50, size, speed, seed=3)
    assert x.dtype == np.uint8
    assert x.shape == (50, frames, 1 if name == "moving_digits" else 3, size, size)
    for t in range(frames - 1):
        np.testing.assert_array_equal(x[:, t + 1], rolled(x[:, t], found.direction * speed))
    # A whole turn later all is as it was.
    turn, _ = moving(name, 3, size + 1, size, 1, seed=3)
    np.testing.assert_array_equal(turn[:, 0], turn[:, size])


def test_frame_0_is_the_digit_that_is_named_at_its_start():
    x, label = moving("moving_digits", 200, 2, 16)
    found = factors("moving_digits", 200, 16)
    known, names = digits()
    np.testing.assert_array_equal(label, names[found.identity])
    middle = rolled(x[:, 0], -found.start)
    np.testing.assert_array_equal(middle, enlarged(known[found.identity], 16))
    # It is in the middle, where an eighth of the side is left bare all around.
    assert not middle[..., :2].any()
    assert not middle[..., -2:].any()
    assert not middle[..., :2, :].any()
    assert not middle[..., -2:, :].any()
    assert middle.any((1, 2, 3)).all()


@pytest.mark.parametrize("size", [8, 11, 16, 32, 63, 64])
def test_digits_are_enlarged_between_the_centres_of_their_pixels(size):
    """Against numpy's own interpolation, one axis after the other, in float64."""
    x = digits()[0][:30]
    side = 3 * size // 4
    place = (np.arange(side) + 0.5) * 8 / side - 0.5
    known = np.arange(8.0)
    rows = np.apply_along_axis(lambda v: np.interp(place, known, v), 3, x.astype(float))
    both = np.apply_along_axis(lambda v: np.interp(place, known, v), 2, rows) * 255 / 16
    before = (size - side) // 2
    inside = enlarged(x, size)[:, :, before : before + side, before : before + side]
    assert np.abs(inside - both).max() <= 0.5 + 1e-9
    assert enlarged(x, size).sum() == inside.sum()
    assert enlarged(np.full((1, 1, 8, 8), 16, np.uint8), size).max() == 255


def test_frame_0_is_the_shape_that_is_named_at_its_start():
    x, label = moving("moving_shapes", 100, 2, 24)
    found = factors("moving_shapes", 100, 24)
    middle = rolled(x[:, 0], -found.start)
    for i in range(100):
        of = shapes.Factors(*(column[i : i + 1] for column in found.shape))
        assert of.x[0, 0] == 0.5
        np.testing.assert_array_equal(middle[i], shapes.draw(of, 24)[0])
        colour, form = list(shapes.COLOURS)[of.colour[0, 0]], list(shapes.SHAPES)[of.shape[0, 0]]
        assert shapes.CLASSES[label[i]] == f"{colour} {form}"
    # What is not the place is as in the still images of the same numbers.
    still = shapes.factors(100)
    for field in ("shape", "colour", "y", "size", "rotation", "background"):
        np.testing.assert_array_equal(getattr(found.shape, field), getattr(still, field))


@pytest.mark.parametrize("name", NAMES)
def test_a_sequence_depends_on_the_seed_and_its_number_only(name):
    few, many = factors(name, 5, seed=7), factors(name, 9, seed=7)
    for a, b in zip(few[:4], many[:4], strict=True):
        np.testing.assert_array_equal(a, b[:5])
    one = factors(name, [4], seed=7)
    assert [int(v[0]) for v in one[:4]] == [int(v[4]) for v in many[:4]]
    np.testing.assert_array_equal(moving(name, 9, seed=7)[0][:5], moving(name, 5, seed=7)[0])
    assert (factors(name, 50, seed=8).identity != factors(name, 50, seed=7).identity).any()
    # Drawn in parts or at once, it is the same.
    whole = moving(name, 40, 6)[0]
    part = factors(name, range(30, 40))
    np.testing.assert_array_equal(draw(part, 6, 16), whole[30:])


def test_drawing_by_parts_changes_nothing(monkeypatch):
    whole, told = moving("moving_shapes", 33, 4)[0], []
    monkeypatch.setattr(module, "_CHUNK", 7 * 4 * 3 * 16**2)
    parts = moving("moving_shapes", 33, 4, progress=lambda *done: told.append(done))[0]
    np.testing.assert_array_equal(parts, whole)
    assert told == [(7, 33), (14, 33), (21, 33), (28, 33), (33, 33)]


@pytest.mark.parametrize("name", NAMES)
def test_factors_are_uniform_and_independent(name):
    count, size = 20_000, 16
    found = factors(name, count, size)
    right = found.direction == 1
    assert set(found.direction.tolist()) == {-1, 1}
    assert set(found.speed.tolist()) == {1}
    kinds = 48 if name == "moving_shapes" else 1797
    for column, many in ((found.start, size), (found.identity, kinds)):
        counts = np.bincount(column, minlength=many)
        assert len(counts) == many
        expected = count / many
        chi = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi - (many - 1)) < 5 * np.sqrt(2 * (many - 1))
        # Of each half of its values, as many go right as left.
        for half in (column < many // 2, column >= many // 2):
            assert abs(right[half].mean() - 0.5) < 5 * 0.5 / np.sqrt(half.sum())
    both = np.corrcoef(found.start, found.identity)[0, 1]
    assert abs(both) < 5 / np.sqrt(count)


@pytest.mark.parametrize(("size", "speed"), [(16, 1), (8, 1), (8, 3), (13, 2), (32, 3)])
@pytest.mark.parametrize("name", NAMES)
def test_its_direction_is_told_without_exception(name, size, speed):
    x, _ = moving(name, 400, 4, size, speed)
    found = factors(name, 400, size, speed)
    np.testing.assert_array_equal(direction(x, speed), found.direction)
    if speed == 1:  # from two frames
        np.testing.assert_array_equal(direction(x[:, 1:3]), found.direction)
    moved = displacements(x)
    assert (moved == (found.direction * speed)[:, None]).mean() > 0.999


@pytest.mark.parametrize("name", NAMES)
def test_its_direction_is_told_through_noise_and_blur(name):
    x, _ = moving(name, 150)
    truth = factors(name, 150).direction
    rng = np.random.default_rng(0)
    contrast = x - x.mean((1, 2, 3, 4), keepdims=True)
    # As much noise as there is picture: some shapes are nearly of the colour of their ground.
    noisy = contrast + x.std((1, 2, 3, 4), keepdims=True) * rng.normal(size=x.shape)
    assert (direction(noisy) == truth).all()
    blurred = sum(np.roll(contrast, k, -1) for k in range(-2, 3)) / 5
    blurred = sum(np.roll(blurred, k, -2) for k in range(-2, 3)) / 5
    assert (direction(blurred) == truth).all()
    # Faint, on a ground that is not black, and both at once.
    assert (direction(np.clip(200 + 0.05 * blurred, 0, 255).astype(np.float32)) == truth).all()


def test_the_same_bytes_on_every_machine():
    """By definition: another digest needs another VERSION."""
    digest = hashlib.sha256()
    for name in NAMES:
        digest.update(moving(name, 20, 5, 16, 1)[0].tobytes())
        digest.update(moving(name, 20, 5, 24, 2, seed=1)[0].tobytes())
    assert (module.VERSION, digest.hexdigest()[:16]) == (1, "df3e765ae89eb499")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"name": "moving_cats"}, "moving_digits or moving_shapes"),
        ({"ids": -1}, "0 or more"),
        ({"size": 7}, "at least 8"),
        ({"speed": 4}, "1 to 3"),
        ({"speed": 0}, "1 to 3"),
    ],
)
def test_what_cannot_be_drawn_is_said(words, says):
    with pytest.raises(ConfigError, match=says):
        factors(**{"name": "moving_digits", "ids": 3, **words})


def test_none_are_drawn_where_none_are_asked_for():
    assert len(factors("moving_digits", 0).start) == 0


# As a source


def test_what_the_words_name():
    assert get_args(MovingName) == NAMES
    for name in NAMES:
        assert recognise(name) == Moving(name=name)
    assert recognise("Moving-Digits") == Moving(name="moving_digits")
    with pytest.raises(DataError, match="did you mean 'moving_digits'"):
        recognise("moving_digit")


def test_digits_as_data():
    data = Moving(name="moving_digits", count=500, frames=6, size=12, seed=2).load()
    info = data.info
    assert (info.name, info.kind, info.shape) == ("moving_digits", "sequence", (6, 1, 12, 12))
    assert (info.range, info.bins, info.classes) == ((0.0, 255.0), 256, tuple("0123456789"))
    assert info.count == 500 == len(data.train) + info.held_out
    np.testing.assert_array_equal(data.x, moving("moving_digits", 500, 6, 12, seed=2)[0])
    assert info.mean == pytest.approx(data.x[data.train].mean(dtype=np.float64))
    assert info.std == pytest.approx(data.x[data.train].astype(np.float64).std())
    batch = data.batch(data.train[:3], (-1.0, 1.0))
    assert batch.x.shape == (3, 6, 1, 12, 12)
    assert -1 <= float(batch.x.min()) < float(batch.x.max()) <= 1


def test_held_out_digits_are_others():
    source = Moving(name="moving_digits", count=2000, frames=2, size=8)
    data = source.load()
    identity = factors("moving_digits", 2000, 8).identity
    assert not set(identity[data.train]) & set(identity[data.held_out])
    assert 200 <= len(data.held_out) <= 210  # the last digit may take it a little further
    # So does another set, of the same digits.
    other = source.model_copy(update={"seed": 1}).load()
    others = factors("moving_digits", 2000, 8, seed=1).identity
    shared = set(identity[data.held_out]) & set(others[other.train])
    assert len(shared) < 0.1 * len(set(identity[data.held_out]))


def test_shapes_as_data():
    data = Moving(name="moving_shapes", count=300, frames=3, held_out=0.2).load()
    assert (data.info.shape, data.info.classes) == ((3, 3, 16, 16), shapes.CLASSES)
    assert data.info.held_out == 60


def test_every_setting_but_the_split_is_in_the_fingerprint():
    base = {"name": "moving_digits", "count": 40, "frames": 3, "size": 8}
    changes = [
        {},
        {"name": "moving_shapes"},
        {"count": 41},
        {"frames": 4},
        {"size": 9},
        {"speed": 2},
        {"seed": 1},
    ]
    prints = {Moving(**{**base, **change}).load().info.fingerprint for change in changes}
    assert len(prints) == len(changes)
    assert Moving(**base, held_out=0.5).load().info.fingerprint in prints


def test_what_does_not_fit_in_memory_is_refused():
    with pytest.raises(ValidationError, match="write a count of at most 419430"):
        Moving(name="moving_digits", count=1_000_000)
    assert Moving(name="moving_digits", count=419_430).count == 419_430
    with pytest.raises(ValidationError, match="GiB"):
        Moving(name="moving_shapes", count=140_000)


def test_groups_are_held_out_whole():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 50, 1000)
    sides = apart(group, 0.1)
    assert not set(group[sides]) & set(group[~sides])
    assert held(1000, 0.1) <= sides.sum() < 100 + np.bincount(group).max()
    more = apart(group, 0.3)
    assert more[sides].all()  # a larger share holds out more of the same
    assert apart(group, 0.0) == 0.0
    assert apart(np.zeros(9, np.int64), 0.1) == 0.1  # one group cannot be parted
    two = apart(np.array([0, 1]), 0.1)
    assert two.sum() == 1


def test_factors_without_a_start_stand_in_the_middle():
    none = np.zeros(1, np.int64)
    still = Factors(none, none, none + 1, none)  # of speed 0
    x = draw(still, 3, 16)
    np.testing.assert_array_equal(x[0, 0], x[0, 2])
    np.testing.assert_array_equal(x[0, 0], enlarged(digits()[0][:1], 16)[0])
