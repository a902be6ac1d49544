"""Shapes: what a person or a ruler reads from the pixels is what the factors say."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ornstein.data import shapes as module
from ornstein.data.shapes import (
    BACKGROUNDS,
    CLASSES,
    COLOURS,
    FREEDOM,
    GRID,
    SHAPES,
    Factors,
    captions,
    draw,
    factors,
    period,
    shapes,
)
from ornstein.data.sources import Data, Shapes, recognise
from ornstein.errors import ConfigError, DataError
from ornstein.recipe import Recipe
from ornstein.settings import resolve

NAMES = list(SHAPES)
RGB, GROUND = np.array(list(COLOURS.values())), np.array(list(BACKGROUNDS.values()))
SIZES = st.integers(16, 128)


def one(shape, x=0.5, y=0.5, size=0.25, rotation=0.0, colour=0, background=0):
    """The factors of one image of one object."""
    columns = [[[v]] for v in (NAMES.index(shape), colour, x, y, size, rotation)]
    return Factors(*map(np.array, columns), background=np.array([background]))


def covers(found, size):
    """The share of each pixel that the only object takes, from the colours: [N, H, W]."""
    image = draw(found, size).astype(float)
    ground = GROUND[found.background][:, :, None, None]
    ink = RGB[found.colour[:, 0]][:, :, None, None] - ground
    return ((image - ground) * ink).sum(1) / (ink**2).sum(1)


def corners(shape, rotation):
    """The corners [K, 2] of a polygon of radius 1, to the right and down; none of round ones."""
    turns = {"square": 4, "triangle": 3, "star": 10, "cross": 12}.get(shape, 0)
    if not turns:
        return np.empty((0, 2))
    if shape == "cross":
        half = math.asin(0.32)
        angles = [k * math.pi / 2 + s for k in range(4) for s in (-half, half, math.pi / 4)]
        lengths = [1, 1, 0.32 * math.sqrt(2)] * 4
    else:
        first = math.pi / 4 if shape == "square" else 0.0
        angles = [first + 2 * math.pi * k / turns for k in range(turns)]
        lengths = [1, 0.45] * 5 if shape == "star" else [1] * turns
    angle = np.array(angles) + math.radians(rotation)
    return np.stack((-np.sin(angle), -np.cos(angle)), 1) * np.array(lengths)[:, None]


def area(shape):
    """In squares of the radius; by the shoelace formula for polygons."""
    if shape in ("circle", "ring"):
        return math.pi * (1 if shape == "circle" else 1 - 0.55**2)
    x, y = corners(shape, 0).T
    return abs((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def inside(found, k, i, side):
    """Whether points of a fine raster are in object k of image i, by crossing edges: [side]²."""
    place = (np.arange(side) + 0.5) / side
    x = (place[None, :] - found.x[i, k]) / found.size[i, k]
    y = (place[:, None] - found.y[i, k]) / found.size[i, k]
    shape = NAMES[found.shape[i, k]]
    if shape in ("circle", "ring"):
        r = np.hypot(x, y)
        return (r <= 1) & (r >= (0.55 if shape == "ring" else 0))
    points = corners(shape, found.rotation[i, k])
    crossed = np.zeros((side, side), bool)
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
        if y0 != y1:
            crossed ^= ((y < y0) != (y < y1)) & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return crossed


# Factors from pixels


@pytest.mark.parametrize("size", [16, 32, 57, 128])
@pytest.mark.parametrize("shape", NAMES)
def test_place_area_and_colours_are_read_back(shape, size):
    found = factors(3000)
    found = Factors(*(column[found.shape[:, 0] == NAMES.index(shape)][:60] for column in found))
    cover, image = covers(found, size), draw(found, size)
    total = cover.sum((1, 2))
    middle = np.arange(size) + 0.5
    x, y = (cover.sum(1) @ middle) / total, (cover.sum(2) @ middle) / total
    assert np.abs(x - size * found.x[:, 0]).max() < 0.12
    assert np.abs(y - size * found.y[:, 0]).max() < 0.12
    share = total / (area(shape) * (size * found.size[:, 0]) ** 2)
    assert np.abs(share - 1).max() < 1.8 / size  # what corners have more or less, of R² ~ size²/20
    # The deepest pixel has the very colour, the corners of the image the very ground.
    flat = image.reshape(len(image), 3, -1)
    deepest = cover.reshape(len(cover), -1).argmax(1)
    if size >= 32:
        np.testing.assert_array_equal(flat[range(len(flat)), :, deepest], RGB[found.colour[:, 0]])
    for corner in (0, size - 1, -size, -1):
        np.testing.assert_array_equal(flat[:, :, corner], GROUND[found.background])


@pytest.mark.parametrize("shape", ["square", "triangle", "star", "cross"])
def test_rotation_is_read_back(shape):
    """By the phase of the n-fold moment Σ r^n e^{−inφ} about the centre, φ from the first tip."""
    n = SHAPES[shape].axes
    found = factors(4000)
    found = Factors(*(column[found.shape[:, 0] == NAMES.index(shape)][:80] for column in found))
    size = 64
    cover = covers(found, size)
    middle = np.arange(size) + 0.5
    right = middle[None, None, :] - size * found.x[:, :, None]
    down = middle[None, :, None] - size * found.y[:, :, None]
    z = -down - 1j * right  # up is 0, and angles grow anticlockwise
    moment = (cover * z**n).sum((1, 2))
    tip = {"square": 180 / n}.get(shape, 0.0)  # level edges: the tips lie between
    angle = np.degrees(np.angle(moment)) / n - tip
    error = (angle - found.rotation[:, 0] + 180 / n) % (360 / n) - 180 / n
    assert np.abs(error).max() < 2.5
    assert found.rotation.max() > 0.9 * 360 / n


def test_edges_agree_with_points_in_polygons():
    """An independent rasteriser, 16 × 16 points a pixel."""
    size, fine = 32, 16
    found = factors(60)
    cover = covers(found, size)
    for i in range(60):
        truth = inside(found, 0, i, size * fine).reshape(size, fine, size, fine).mean((1, 3))
        error = np.abs(cover[i] - truth)
        assert error.max() < 0.37  # at a sharp tip
        assert error.sum() < 0.04 * truth.sum()


@given(SIZES, st.integers(0, 10**6), st.sampled_from(list(FREEDOM)))
def test_nothing_is_cut_off(size, first, objects):
    """The same scene in a frame of twice the side is the same image amid plain ground."""
    found = factors(range(first, first + 12), objects)
    wide = found._replace(x=found.x / 2 + 0.25, y=found.y / 2 + 0.25, size=found.size / 2)
    half = size // 2
    odd = (size % 2) / (4 * size)  # so that whole pixels are moved by
    wide = wide._replace(x=wide.x - odd, y=wide.y - odd)
    image = draw(wide, 2 * size)
    inner = image[:, :, half : half + size, half : half + size]
    np.testing.assert_array_equal(inner, draw(found, size))
    image[:, :, half : half + size, half : half + size] = GROUND[found.background][..., None, None]
    assert (image == GROUND[found.background][..., None, None]).all()


def test_from_32_pixels_on_the_border_is_bare():
    for objects in FREEDOM:
        found = factors(300, objects)
        image, ground = draw(found, 32), GROUND[found.background][:, :, None]
        assert (image[:, :, [0, -1]].reshape(300, 3, -1) == ground).all()
        assert (image[:, :, :, [0, -1]].reshape(300, 3, -1) == ground).all()


# Laws


@pytest.mark.parametrize("shape", ["square", "triangle", "star", "cross"])
@pytest.mark.parametrize("rotation", [0.0, 7.03125, 45.0])
def test_a_period_leaves_the_image_as_it_is(shape, rotation):
    turn = period(NAMES.index(shape))
    assert turn == 360 / SHAPES[shape].axes
    place = {"x": 0.46875, "y": 0.578125, "size": 0.2265625}
    first = draw(one(shape, rotation=rotation, **place), 40)
    again = draw(one(shape, rotation=rotation + turn, **place), 40)
    np.testing.assert_array_equal(first, again)
    part = draw(one(shape, rotation=rotation + turn / 3, **place), 40)
    assert (first != part).any()


@given(st.integers(0, 10**6), SIZES)
def test_turning_the_image_turns_its_factors(number, size):
    found = factors([number])
    turned = found._replace(x=found.y, y=1 - found.x, rotation=found.rotation + 90)
    expected = np.rot90(draw(found, size), axes=(2, 3))  # anticlockwise
    np.testing.assert_array_equal(draw(turned, size), expected)
    mirrored = found._replace(x=1 - found.x, rotation=-found.rotation)
    np.testing.assert_array_equal(draw(mirrored, size), draw(found, size)[:, :, :, ::-1])


@given(st.integers(0, 10**6), st.integers(16, 64), st.sampled_from([1, 2, 4]))
def test_a_larger_image_is_the_same_drawn_finer(number, size, objects):
    found = factors([number], objects)
    fine = draw(found, 2 * size).reshape(3, size, 2, size, 2).mean((2, 4))
    error = np.abs(fine - draw(found, size)[0])
    # They differ at corners only, so that less of a larger image does.
    assert error.mean() < 30 * objects**0.5 / size
    assert np.quantile(error, 0.9) < 10


@given(st.integers(2, 12), st.integers(1, 4), st.integers(0, 3))
def test_a_larger_set_begins_with_the_smaller(count, objects, seed):
    x, label = shapes(count, 16, objects, seed)
    more, labels = shapes(13, 16, objects, seed)
    assert x.dtype == np.uint8
    assert x.shape == (count, 3, 16, 16)
    np.testing.assert_array_equal(x, more[:count])
    if objects == 1:
        np.testing.assert_array_equal(label, labels[:count])
    else:
        assert label is labels is None


def test_an_image_does_not_depend_on_its_neighbours(monkeypatch):
    x, _ = shapes(50, 24, 3, 5)
    found = factors([49, 7], 3, 5)
    np.testing.assert_array_equal(draw(found, 24), x[[49, 7]])
    seen = []
    monkeypatch.setattr(module, "_CHUNK", 7 * 24**2)
    parts, _ = shapes(50, 24, 3, 5, lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(parts, x)
    assert seen == [(min(done, 50), 50) for done in range(7, 57, 7)]
    assert (shapes(50, 24, 3, 6)[0] != x).any(axis=(1, 2, 3)).all()  # another seed
    assert len(np.unique(x.reshape(50, -1), axis=0)) == 50


# Every machine draws the same


def test_no_direction_is_near_a_rounding_tie():
    """A last bit of a sine cannot move it: ties are a hundred thousand last bits away."""
    for form in SHAPES.values():
        turns = (np.arange(module.TURNS * form.axes) / module.TURNS + form.first) / (form.axes or 1)
        for wave in (np.sin, np.cos):
            scaled = wave(2 * np.pi * turns) * 2**15
            assert (np.abs(scaled - np.floor(scaled) - 0.5) > 1e-6).all()
        for face in form.faces:
            for value in face:
                assert abs((value * 2**15) % 1 - 0.5) > 1e-6


@pytest.mark.parametrize("shape", NAMES)
def test_coverage_is_what_exact_arithmetic_says(shape):
    """In fractions, with a square root of forty digits: not a bit is lost in float64."""
    size, form, digits = 127, SHAPES[shape], 10**40
    found = factors(2000)
    i = int(np.flatnonzero(found.shape[:, 0] == NAMES.index(shape))[3])
    cover = module._coverage(module._part(found, slice(i, i + 1)), 0, size)[0]
    turn = round(found.rotation[i, 0] * form.axes * 256 / 360)
    radius = size * Fraction(found.size[i, 0])
    rng = np.random.default_rng(0)
    edge = np.argwhere((cover > 0) & (cover < 256))
    for row, column in rng.choice(edge, 60):
        right = Fraction(2 * int(column) + 1, 2) - size * Fraction(found.x[i, 0])
        down = Fraction(2 * int(row) + 1, 2) - size * Fraction(found.y[i, 0])
        square = right**2 + down**2
        r = Fraction(math.isqrt(int(square * digits**2)), digits)
        u, v = r, Fraction(0)
        for j in range(form.axes):
            angle = 2 * math.pi * ((turn + 256 * j) / 256 + form.first) / form.axes
            e = Fraction(round(-math.sin(angle) * 2**15), 2**15)
            f = Fraction(round(-math.cos(angle) * 2**15), 2**15)
            along, off = right * e + down * f, abs(right * f - down * e)
            u, v = (along, off) if j == 0 or along > u else (u, v)
        d = r - radius
        for a, b, c in form.faces:
            a, b, c = (Fraction(round(value * 2**15), 2**15) for value in (a, b, c))
            d = max(d, a * u + b * v - c * radius)
        exact = math.floor(min(max(Fraction(1, 2) - d, 0), 1) * 256 + Fraction(1, 2))
        assert cover[row, column] == exact


def test_these_bytes_are_version_1():
    """Whoever changes the images gives them another version, or runs would not notice."""
    digest = hashlib.sha256()
    for objects in FREEDOM:
        digest.update(shapes(200, 32, objects)[0].tobytes())
        digest.update(shapes(20, 67, objects, 9)[0].tobytes())
    assert (module.VERSION, digest.hexdigest()[:16]) == (1, "3e6e6462606f6301")


# Factors


def test_factors_are_uniform_and_independent():
    """All pairs of coarse factors: counts within five standard errors of even ones."""
    n = 40_000
    found = factors(n)
    low, high = FREEDOM[1]
    turn = np.array([max(period(s), 1) for s in range(len(NAMES))])[found.shape[:, 0]]
    near, far = (high + 32) / GRID, 1 - (high + 32) / GRID
    assert (found.x.min(), found.x.max()) == (near, far)
    assert (found.y.min(), found.y.max()) == (near, far)
    assert (found.size.min() * GRID, found.size.max() * GRID) == (low, high)
    round_ = period(0) == 0 and np.isin(found.shape[:, 0], [0, NAMES.index("ring")])
    assert (found.rotation[round_] == 0).all()
    assert (found.rotation[:, 0] < turn).all()
    steps = (high - low + 1) // 11, (GRID - 2 * (high + 32) + 1) // 5
    columns = {
        "shape": (found.shape[:, 0], 6),
        "colour": (found.colour[:, 0], 8),
        "background": (found.background, 4),
        "size": (((found.size[:, 0] * GRID - low) // steps[0]).astype(int), 11),
        "x": ((found.x[:, 0] * GRID - high - 32).astype(int) // steps[1], 5),
        "y": ((found.y[:, 0] * GRID - high - 32).astype(int) // steps[1], 5),
    }
    for a in columns:
        for b in columns:
            if a < b:
                (u, m), (v, k) = columns[a], columns[b]
                counts = np.bincount(u * k + v, minlength=m * k)[: m * k]
                assert np.abs(counts - n / (m * k)).max() < 5.5 * (n / (m * k)) ** 0.5, (a, b)
    part = found.rotation[:, 0] / turn
    assert abs(part[~round_].mean() - 0.5) < 0.01
    assert abs(np.corrcoef(part[~round_], found.size[~round_, 0])[0, 1]) < 0.03


def test_of_several_only_the_places_are_chosen():
    """Shapes, sizes and rotations stay uniform, whatever was drawn anew."""
    n, (low, high) = 1500, FREEDOM[4]
    found = factors(n, 4)
    for column, kinds in ((found.shape, 6), (found.colour, 8)):
        counts = np.bincount(column.ravel())
        assert np.abs(counts - 4 * n / kinds).max() < 5 * (4 * n / kinds) ** 0.5
    spread = (high - low) / 12**0.5
    assert abs(found.size.mean() * GRID - (low + high) / 2) < 5 * spread / (4 * n) ** 0.5


@pytest.mark.parametrize("objects", [2, 3, 4])
def test_several_objects_are_seen(objects):
    """Two thirds of each, counted on points of 128 × 128 by an independent rasteriser."""
    found = factors(60, objects)
    lowest = []
    for i in range(60):
        assert len(set(found.colour[i])) == objects
        taken = np.zeros((128, 128), bool)
        for k in reversed(range(objects)):
            mask = inside(found, k, i, 128)
            lowest.append((mask & ~taken).sum() / mask.sum())
            taken |= mask
    assert min(lowest) > 2 / 3 - 0.05
    assert min(lowest) < 0.8  # there is overlap


def test_later_objects_hide_earlier_ones():
    found = factors(40, 3)
    for i, image in enumerate(draw(found, 64)):
        top = np.full((64, 64), -1)
        sure = np.ones((64, 64), bool)
        for k in range(3):
            fine = inside(found, k, i, 256).reshape(64, 4, 64, 4)
            whole = fine.all((1, 3))
            sure &= whole | ~fine.any((1, 3))
            top[whole] = k
        # Away from edges by a pixel, where neither rasteriser mixes.
        calm = sure.copy()
        for step in np.ndindex(3, 3):
            near = (step[0] - 1, step[1] - 1)
            calm &= np.roll(sure, near, (0, 1)) & (np.roll(top, near, (0, 1)) == top)
        ground = GROUND[found.background[i]]
        table = np.concatenate((RGB[found.colour[i]], ground[None]))
        expected = table[top].transpose(2, 0, 1)
        assert calm.mean() > 0.4
        np.testing.assert_array_equal(image[:, calm], expected[:, calm])


def test_colours_are_far_apart():
    """In CIELAB (D65), where 2.3 is a difference that can just be seen."""
    linear = np.concatenate((RGB, GROUND)) / 255
    linear = np.where(linear > 0.04045, ((linear + 0.055) / 1.055) ** 2.4, linear / 12.92)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    t = linear @ np.array(to_xyz).T / [0.95047, 1.0, 1.08883]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    lab = np.stack((116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])), 1)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    assert distance[np.triu_indices(len(lab), 1)].min() > 20
    assert distance[: len(RGB)][distance[: len(RGB)] > 0].min() > 35


# Words


def test_captions():
    assert captions(one("star", 0.3, 0.35, FREEDOM[1][1] / GRID, colour=6, background=3)) == (
        "a large red star at the top left, on white",
    )
    assert captions(one("circle", size=FREEDOM[1][0] / GRID, colour=3)) == (
        "a small orange circle in the middle, on black",
    )
    assert captions(one("ring", 0.65, 0.5, 228 / GRID, colour=3, background=1)) == (
        "an orange ring at the right, on dark grey",
    )
    back, front = one("cross", 0.5, 0.7, 0.2), one("square", 0.7, 0.3, 0.2, colour=7)
    both = [np.concatenate(pair, 1) for pair in zip(back[:-1], front[:-1], strict=True)]
    middle = sum(FREEDOM[2]) / 2 / GRID
    two = Factors(*both, back.background)._replace(size=np.full((1, 2), middle))
    assert captions(two) == (
        "a yellow square at the top right and a blue cross at the bottom, on black",
    )


@pytest.mark.parametrize("objects", [1, 2, 3, 4])
def test_captions_name_what_is_there(objects):
    found = factors(300, objects)
    texts = captions(found)
    for i, text in enumerate(texts):
        words = Counter(text.replace(",", "").split())
        for k in range(objects):
            assert f"{list(COLOURS)[found.colour[i, k]]} {NAMES[found.shape[i, k]]}" in text
        assert sum(words[name] for name in NAMES) == objects
        assert words["and"] == (objects > 1)
        assert text.endswith(f", on {list(BACKGROUNDS)[found.background[i]]}")
    assert len({text.split(" at ")[0].split(" in ")[0] for text in texts}) > 80
    sizes = Counter(word for text in texts for word in text.split() if word in ("large", "small"))
    assert all(0.2 < n / 300 / objects < 0.47 for n in sizes.values())


# The source


def test_the_source():
    data = Shapes(count=2000, size=16).load()
    info = data.info
    assert (info.name, info.kind, info.shape) == ("shapes", "image", (3, 16, 16))
    assert (info.range, info.bins, info.count, info.held_out) == ((0.0, 255.0), 256, 2000, 200)
    assert info.classes == CLASSES == tuple(sorted(CLASSES))
    assert len(CLASSES) == 48
    found = factors(2000)
    pairs = zip(found.colour[:, 0], found.shape[:, 0], strict=True)
    named = [f"{list(COLOURS)[colour]} {NAMES[shape]}" for colour, shape in pairs]
    assert [info.classes[k] for k in data.label] == named
    np.testing.assert_array_equal(data.x, draw(found, 16))
    several = Shapes(count=50, objects=2).load()
    assert several.label is None
    assert several.info.classes == ()


def test_the_fingerprint_is_of_the_definition(monkeypatch):
    base = Shapes(count=20)
    first = base.load().info.fingerprint
    assert base.load().info.fingerprint == first
    others = [base.but(**change) for change in ({"count": 21}, {"size": 33}, {"objects": 2})]
    assert len({first, *(s.load().info.fingerprint for s in [*others, base.but(seed=1)])}) == 5
    assert base.but(held_out=0.5).load().info.fingerprint == first
    monkeypatch.setattr(module, "VERSION", 2)
    assert base.load().info.fingerprint != first


def test_a_word_names_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recognise(" Shapes ") == Shapes()
    with pytest.raises(DataError, match="did you mean 'shapes'"):
        recognise("shape")
    with pytest.raises(DataError, match="'shapes'"):
        recognise("./nothing.xyz")
    adapter = TypeAdapter(Data)
    assert adapter.validate_json(adapter.dump_json(Shapes(objects=3))) == Shapes(objects=3)


@pytest.mark.parametrize(
    "fields", [{"size": 15}, {"size": 129}, {"objects": 0}, {"objects": 5}, {"count": 1}]
)
def test_settings_that_cannot_work(fields):
    with pytest.raises(ValidationError):
        Shapes(**fields)


def test_too_many_for_memory_is_one_sentence():
    """A million at 16 and 26 pixels fit; at 32 the sentence says how many do."""
    Shapes(count=1_000_000, size=16)
    Shapes(count=1_000_000, size=26)
    Shapes(count=699_050, size=32)
    with pytest.raises(ConfigError) as caught:
        resolve(Recipe, {"name": "x"}, None, ["data.kind=shapes", "data.count=1000000"])
    assert str(caught.value) == (
        "data: 1,000,000 images of 32×32 take 2.9 GiB of memory and the limit is 2 GiB; "
        "write a count of at most 699050, or a smaller size (command line)"
    )
