"""Factors of shapes: what the images show of them, and the scores of a run's codes."""

import numpy as np
import pytest
import torch

from ornstein.autoencoders.codec import Codec
from ornstein.autoencoders.decoding import Decoding
from ornstein.autoencoders.model import Autoencoder
from ornstein.data import shapes
from ornstein.data.sources import Digits, Shapes
from ornstein.disentangling import FACTORS, LEVELS, disentanglement, drawn, encoded, images
from ornstein.errors import ConfigError
from ornstein.metrics.disentanglement import mig
from ornstein.nn.codecnets import Dense
from ornstein.noise import Noise
from ornstein.objectives.autoencoding import Autoencoding
from ornstein.optim import Optim
from ornstein.recipe import Recipe
from ornstein.run import Run


def recipe(**changed):
    fields = {
        "name": "codes",
        "data": Shapes(size=16, count=200),
        "model": Autoencoder(nets=Dense(hidden=(8,)), units=3),
        "objective": Autoencoding(),
        "optim": Optim(samples=200, batch=50),
        "generation": Decoding(),
        **changed,
    }
    return Recipe(**fields)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = Run.create(recipe(), tmp_path_factory.mktemp("runs"), "codes")
    for _ in run.train(previews=False):
        pass
    return run


def noise(count, seed=0):
    return Noise.of(seed, "images", count)


def test_images_show_their_factors():
    """Ground, colour, place and size, read off the pixels."""
    v = drawn(400, 0)
    v[:, 0] = list(shapes.SHAPES).index("circle")
    x = images(v, noise(400), 64).astype(np.int64)
    grounds = np.array(list(shapes.BACKGROUNDS.values()))[v[:, 2]]
    colours = np.array(list(shapes.COLOURS.values()))[v[:, 1]]
    np.testing.assert_array_equal(x[:, :, 0, 0], grounds)
    # The share of each pixel that is covered, from the channel in which they differ most.
    channel = np.abs(colours - grounds).argmax(1)
    rows = np.arange(400)
    cover = x[rows, channel] - grounds[rows, channel, None, None]
    cover = cover / (colours - grounds)[rows, channel, None, None]
    area = cover.sum((1, 2))
    middles = (np.arange(64) + 0.5) / 64
    low, high = shapes.FREEDOM[1]
    edge = (high + shapes.MARGIN) / shapes.GRID
    for k, axis in ((3, 1), (4, 2)):
        centre = (cover.sum(axis) * middles).sum(1) / area
        expected = edge + (1 - 2 * edge) * v[:, k].numpy() / (LEVELS - 1)
        np.testing.assert_allclose(centre, expected, atol=0.02 / 8)
    radius = (low + (high - low) * v[:, 5].numpy() / (LEVELS - 1)) / shapes.GRID
    np.testing.assert_allclose(np.sqrt(area / np.pi) / 64, radius, rtol=0.01)


def test_the_noise_turns_shapes_and_does_nothing_else():
    v = drawn(64, 1)
    v[:, 0] = torch.arange(64) % 2  # circles and crosses
    one, other = images(v, noise(64), 32), images(v, noise(64, 1), 32)
    same = (one == other).all(axis=(1, 2, 3))
    assert same[::2].all()
    assert not same[1::2].any()
    np.testing.assert_array_equal(images(v[:9], noise(64).of_samples(slice(9)), 32), one[:9])


def test_the_scores_of_a_run(run):
    found = disentanglement(run, n=300, seed=2, votes=60, pairs=4)
    values = drawn(300, 2)
    x = images(values, Noise.of(2, "disentangling/images", 300), 16)
    codes = encoded(run.learner().model, torch.from_numpy(x) / 127.5 - 1)
    assert codes.shape == (300, 3)
    assert found.mig == mig(codes, values)
    assert found.dci.importance.shape == (3, len(FACTORS))
    for score in (found.mig, found.sap, found.dci.informativeness, found.beta_vae):
        assert 0 <= score.low <= score.value <= score.high <= 1
    again = disentanglement(run, n=300, seed=2, votes=60, pairs=4)
    assert again.beta_vae == found.beta_vae
    assert torch.equal(again.dci.importance, found.dci.importance)


def test_codes_are_the_likeliest_ones_laid_flat(run):
    model = run.learner().model
    assert isinstance(model, Codec)
    x = 2 * noise(700).uniform(0, (3, 16, 16)) - 1
    with torch.no_grad():
        torch.testing.assert_close(encoded(model, x), model.encode(x).mean.flatten(1))


def test_a_run_without_known_factors_or_without_codes_is_refused(run, tmp_path):
    for data in (Digits(), Shapes(size=16, count=50, objects=2)):
        other = Run.create(recipe(data=data), tmp_path)
        with pytest.raises(ConfigError, match="single shapes: train with --data shapes"):
            disentanglement(other)
    small = Optim(samples=2, batch=2)
    diffusion = Run.create(Recipe(name="demo", data=run.recipe.data, optim=small), tmp_path)
    for _ in diffusion.train(previews=False):
        pass
    with pytest.raises(ConfigError, match="no codes to be disentangled"):
        disentanglement(diffusion)
