"""Flips and crops: numpy's own, half and half, the same however the stream is cut, and only there
where training looks."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ornstein import prepare
from ornstein.data.augment import Augment
from ornstein.data.info import DataInfo, Dataset
from ornstein.data.sources import Digits, Toy, split
from ornstein.data.stream import Stream
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.sampling import Sampling
from ornstein.drift import changes, refused
from ornstein.errors import ConfigError
from ornstein.nn.networks import MLP, UNet
from ornstein.noise import Noise
from ornstein.optim import Optim
from ornstein.recipe import Recipe
from ornstein.run import Run

SIDES = st.integers(2, 9)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / ".cache"))


def dataset(x, limits=(0.0, 255.0)):
    info = DataInfo(
        name="pictures",
        kind="image",
        shape=x.shape[1:],
        range=limits,
        bins=256,
        count=len(x),
        mean=float(x.mean()),
        std=float(x.std()),
        fingerprint=hashlib.sha256(x.tobytes()).hexdigest(),
    )
    return Dataset(info, x, None, *split(len(x), 0.1))


def pictures(count, *shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape), dtype=np.uint8)


def windows(x, crop):
    """Every result that an image [C, H, W] may have, unmirrored: (2 crop + 1)² of them."""
    _, h, w = x.shape
    padded = np.pad(x, ((0, 0), (crop, crop), (crop, crop)), mode="reflect")
    places = [(i, j) for i in range(2 * crop + 1) for j in range(2 * crop + 1)]
    return [padded[:, i : i + h, j : j + w] for i, j in places]


# What happens to an image


@given(SIDES, SIDES, st.integers(0, 8), st.booleans(), st.integers(0, 2**40))
def test_each_image_is_a_window_of_numpys_reflection_mirrored_or_not(h, w, crop, flip, first):
    crop = min(crop, min(h, w) - 1)
    x = np.random.default_rng(first).normal(size=(5, 2, h, w)).astype(np.float32)
    noise = Noise.of(1, "augment", range(first, first + 5))
    got = Augment(flip=flip, crop=crop)(torch.from_numpy(x), noise).numpy()
    for before, after in zip(x, got, strict=True):
        allowed = windows(before, crop)
        allowed += [one[:, :, ::-1] for one in allowed] if flip else []
        assert any(np.array_equal(after, one) for one in allowed)


def test_half_are_mirrored_and_every_shift_is_as_likely():
    """One pixel pattern tells all results apart; 3 000 positions, five standard errors."""
    n, crop = 3000, 1
    x = pictures(1, 1, 4, 5)
    allowed = windows(x[0], crop)
    allowed += [one[:, :, ::-1] for one in allowed]
    number = {one.tobytes(): i for i, one in enumerate(allowed)}
    assert len(number) == 18
    many = torch.from_numpy(np.repeat(x, n, 0))
    got = Augment(flip=True, crop=crop)(many, Noise.of(0, "augment", n)).numpy()
    counts = np.bincount([number[one.tobytes()] for one in got], minlength=18)
    share = n / 18
    assert np.abs(counts - share).max() < 5 * share**0.5
    assert abs(counts[9:].sum() - n / 2) < 5 * (n / 4) ** 0.5
    # Mirroring says nothing of the shift: rows of the table agree with their sum.
    assert np.abs(counts[:9] - counts[9:]).max() < 5 * (2 * share) ** 0.5


@given(st.booleans(), st.integers(0, 3), st.sampled_from([None, (-1.0, 1.0), (0.0, 3.0)]))
def test_scaling_before_or_after_is_the_same(flip, crop, scale):
    """Bit for bit: pixels only move about."""
    data = dataset(pictures(20, 3, 6, 5))
    choice, noise = Augment(flip=flip, crop=crop), Noise.of(3, "augment", range(40, 60))
    varied = choice(torch.from_numpy(data.x), noise).numpy()
    ids = np.arange(20)
    expected = data._replace(x=varied).batch(ids, scale).x
    assert torch.equal(choice(data.batch(ids, scale).x, noise), expected)


def test_what_has_the_symmetry_is_left_alone():
    """A picture that is its own mirror image, and one of a single tone."""
    x = torch.from_numpy(pictures(50, 3, 6, 4)).float()
    noise = Noise.of(0, "augment", 50)
    mirror = torch.cat((x, x.flip(3)), dim=3)
    assert torch.equal(Augment(flip=True)(mirror, noise), mirror)
    tone = x[:, :, :1, :1].expand(50, 3, 7, 7)
    assert torch.equal(Augment(flip=True, crop=6)(tone, noise), tone)


def test_data_closed_under_mirroring_keeps_its_law():
    """Where x and its mirror image are both samples, every epoch consists of samples again."""
    x = pictures(30, 1, 3, 4)
    data = dataset(np.concatenate((x, x[:, :, :, ::-1])))
    data = data._replace(train=np.arange(60), held_out=np.arange(0))
    known = {one.astype(np.float32).tobytes() for one in data.x}
    shown = Stream(data, 0, None, Augment(flip=True)).at(0, 600).x.numpy()
    assert {one.tobytes() for one in shown} == known


# The stream


DATA = dataset(pictures(37, 3, 5, 6))
BOTH = Augment(flip=True, crop=2)
LONG = Stream(DATA, 2, (-1.0, 1.0), BOTH).at(0, 120).x


@given(st.lists(st.integers(0, 45), min_size=1, max_size=5), st.integers(0, 30))
def test_any_part_of_the_stream_is_that_part(parts, position):
    """However it is spread over micro-batches, ranks and restarts; across epochs too."""
    stream = Stream(DATA, 2, (-1.0, 1.0), BOTH)
    for count in parts:
        count = min(count, 120 - position)
        assert torch.equal(stream.at(position, count).x, LONG[position : position + count])
        position += count


def test_each_epoch_varies_a_sample_anew():
    n = len(DATA.train)
    stream = Stream(DATA, 2, None, BOTH)
    shown = {
        stream.at(epoch * n, n).x[np.argmin(stream.ids(epoch * n, n))].numpy().tobytes()
        for epoch in range(12)
    }
    assert len(shown) > 6
    other = Stream(DATA, 3, None, BOTH).at(0, n)
    plain = Stream(DATA, 3).at(0, n).x
    assert torch.equal(other.x, BOTH(plain, Noise.of(3, "augment", n)))
    assert not torch.equal(other.x, BOTH(plain, Noise.of(2, "augment", n)))  # the seed counts


def test_labels_and_names_stay():
    plain, varied = Stream(DATA, 2).at(5, 50), Stream(DATA, 2, None, BOTH).at(5, 50)
    assert torch.equal(plain.ids, varied.ids)
    assert not torch.equal(plain.x, varied.x)


def test_off_is_what_it_was(monkeypatch):
    """The same bytes, and no work: it is not even called."""
    monkeypatch.setattr(Augment, "__call__", None)
    plain = Stream(DATA, 2, (-1.0, 1.0)).at(3, 40)
    off = Stream(DATA, 2, (-1.0, 1.0), Augment()).at(3, 40)
    assert torch.equal(off.x, plain.x)
    assert torch.equal(off.x, DATA.batch(plain.ids.numpy(), (-1.0, 1.0)).x)
    with pytest.raises(TypeError):
        Stream(DATA, 2, None, Augment(crop=1)).at(0, 1)


# A run


def recipe(augment, **changed):
    return Recipe(
        name="pictures",
        data=Digits(),
        augment=augment,
        model=Diffusion(network=UNet(channels=(8,), blocks=1, middle_attention=False)),
        optim=Optim(batch=20, samples=200, warmup=0),
        generation=Sampling(steps=2),
    ).model_copy(update=changed)


def result(run, stop=None):
    for event in run.train(previews=False):
        if event.step == stop:
            break
    last = max((run.path / "ckpt").iterdir())
    weights = {p.name: p.read_bytes() for p in last.glob("*.safetensors")}
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return weights, [json.loads(line)["loss"] for line in lines]


def test_a_run_stopped_and_resumed_sees_the_same(tmp_path):
    choice = Augment(flip=True, crop=1)
    whole = result(Run.create(recipe(choice), tmp_path, "whole"))
    for stop in (2, 7, None):
        parts = result(Run.create(recipe(choice), tmp_path, "parts"), stop)
    assert parts == whole
    off = result(Run.create(recipe(Augment()), tmp_path, "off"))
    assert off[1] != whole[1]


def test_it_names_another_run_and_may_not_change(tmp_path):
    off, flip, crop = (recipe(a) for a in (Augment(), Augment(flip=True), Augment(crop=1)))
    assert len({off.key(), flip.key(), crop.key()}) == 3
    for before, after in ((off, flip), (flip, off), (off, crop)):
        found = changes(before, after)
        assert refused(found) == found != ()
        assert not refused(found, ("augment",))


@pytest.mark.parametrize(
    ("augment", "says"),
    [
        (Augment(flip=True), "augment is for images, and moons holds vector data of shape"),
        (Augment(crop=1), "augment is for images, and moons holds vector data of shape"),
    ],
)
def test_vectors_are_refused_before_there_is_a_run(augment, says, tmp_path):
    network = Diffusion(network=MLP(width=8, depth=1))
    asked = recipe(augment, data=Toy(name="moons", count=200), model=network)
    with pytest.raises(ConfigError, match=says):
        Run.create(asked, tmp_path, "job")
    assert not (tmp_path / "job").exists()


def test_a_crop_as_large_as_the_image_is_refused(tmp_path, monkeypatch):
    def nothing(*_):
        raise AssertionError("a model was built for a recipe that cannot work")

    monkeypatch.setattr(Recipe, "learner", nothing)
    info = Digits().load().info
    with pytest.raises(ConfigError, match=r"augment.crop=8 must be below 8, .* usual is .* 1$"):
        prepare.check(recipe(Augment(crop=8)), info, lambda _: None)
    with pytest.raises(ConfigError, match="crop=8"):
        Run.create(recipe(Augment(crop=8)), tmp_path, "job")
    assert not (tmp_path / "job").exists()
    Augment(crop=7, flip=True).check(info)


def test_only_training_passes_there(tmp_path, monkeypatch):
    """Previews, samples and held-out data of a run make no use of it."""
    run = Run.create(recipe(Augment(flip=True, crop=2)), tmp_path, "job")
    result(run)
    monkeypatch.setattr(Augment, "__call__", None)
    run.preview(4)
    run.generate(2)
    held = run.dataset.batch(run.dataset.held_out).x
    assert torch.equal(held, torch.from_numpy(run.dataset.x[run.dataset.held_out]).float())
