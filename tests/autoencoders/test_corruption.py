"""Corruption: how often, of what, and the same in any batch."""

import itertools

import pytest
import torch
from pydantic import TypeAdapter

from ornstein.autoencoders.corruption import Corruption, GaussianNoise, Masking, SaltAndPepper
from ornstein.data.info import DataInfo
from ornstein.errors import ConfigError
from ornstein.noise import Noise

IMAGES = DataInfo(
    name="x",
    kind="image",
    shape=(3, 8, 5),
    range=(-1.0, 1.0),
    bins=256,
    count=9,
    mean=0.0,
    std=0.5,
    fingerprint="",
)
VECTORS = IMAGES.but(kind="vector", shape=(6,), range=None, bins=None)
B, PIXELS = 400, 40
ALL = [Masking(p=0.3), GaussianNoise(std=0.4), SaltAndPepper(p=0.3)]
of_all = pytest.mark.parametrize("corruption", ALL, ids=lambda choice: choice.kind)


def data(info=IMAGES, count=B):
    """Samples well within the range, so that a changed number is seen to be one."""
    return Noise.of(0, "data", count).uniform(0, info.shape) - 0.5


def noise(count=B):
    return Noise.of(1, "corruption", count)


def assert_binomial(count, n, p):
    """Neither tail of Bin(n, p) beyond `count` is below 1e-5."""
    law = torch.distributions.Binomial(n, torch.tensor(p, dtype=torch.float64))
    mass = law.log_prob(torch.arange(n + 1, dtype=torch.float64)).exp()
    assert mass[: count + 1].sum() > 1e-5, (count, n * p)
    assert mass[count:].sum() > 1e-5, (count, n * p)


def assert_independent(hit, p):
    """Pixels hit [B, PIXELS], each with probability p: counts by sample and by place spread as
    binomial ones do, Σ (count − n p)² / (n p (1 − p)) ~ χ² to a good approximation."""
    for n, counts in ((PIXELS, hit.sum(1)), (B, hit.sum(0))):
        chi2 = ((counts - n * p).square() / (n * p * (1 - p))).sum()
        freedom = len(counts)
        assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("p", [0.05, 0.5, 0.9])
def test_a_pixel_is_masked_with_its_chance(p):
    x = data()
    hit = Masking(p=p)(x, noise(), IMAGES) != x
    assert torch.equal(hit, hit[:, :1].expand_as(hit)), "channels of a pixel go together"
    hit = hit[:, 0].flatten(1).double()
    assert_binomial(int(hit.sum()), B * PIXELS, p)
    assert_independent(hit, p)


def test_a_masked_pixel_is_black_and_the_others_are_left_alone():
    x = data()
    out = Masking(p=0.3)(x, noise(), IMAGES)
    assert ((out == -1) | (out == x)).all()
    assert not (out == x).all()
    grey = Masking(p=0.3, value=0.25)(x, noise(), IMAGES)
    assert torch.equal(grey == 0.25, out == -1)


def test_without_a_range_a_masked_number_is_the_mean():
    x = data(VECTORS)
    out = Masking(p=0.3)(x, noise(), VECTORS)
    assert ((out == 0) | (out == x)).all()
    assert_binomial(int((out == 0).sum()), x.numel(), 0.3)  # each number by itself


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_salt_and_pepper_are_the_ends_half_each(p):
    x = data()
    out = SaltAndPepper(p=p)(x, noise(), IMAGES)
    assert torch.equal(out != x, (out != x)[:, :1].expand_as(x))
    assert ((out == -1) | (out == 1) | (out == x)).all()
    for end in (-1, 1):
        hit = (out[:, 0] == end).flatten(1).double()
        assert_binomial(int(hit.sum()), B * PIXELS, p / 2)
        assert_independent(hit, p / 2)


def test_salt_and_pepper_refuses_data_without_ends():
    for act in (
        lambda: SaltAndPepper().check(VECTORS),
        lambda: SaltAndPepper()(data(VECTORS), noise(), VECTORS),
    ):
        with pytest.raises(ConfigError, match=r"write corruption\.kind=masking"):
            act()
    ranged = VECTORS.but(range=(0.0, 2.0))
    SaltAndPepper().check(ranged)
    out = SaltAndPepper(p=1)(data(VECTORS), noise(), ranged)
    assert set(out.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("info", [IMAGES, VECTORS], ids=["images", "vectors"])
def test_gaussian_noise_has_its_moments(info):
    x = data(info)
    eps = ((GaussianNoise(std=0.4)(x, noise(), info) - x) / 0.4).double()
    n = eps.numel()
    assert abs(eps.mean()) < 5 / n**0.5
    assert abs(eps.square().mean() - 1) < 5 * (2 / n) ** 0.5
    flat = eps.flatten(1)
    covariance = flat.T @ flat / B
    assert (covariance - covariance.diag().diag()).abs().max() < 5.5 / B**0.5  # channels, too


@of_all
def test_a_sample_is_the_same_in_any_batch_and_another_at_each_step(corruption):
    x, keyed = data(), noise()
    whole = corruption(x, keyed, IMAGES)
    for cuts in ([1, 3, 150], [200], list(range(1, B))):
        edges = [0, *cuts, B]
        parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
        split = [corruption(x[part], keyed.of_samples(part), IMAGES) for part in parts]
        assert torch.equal(torch.cat(split), whole)
    assert not torch.equal(corruption(x, keyed.at(1), IMAGES), whole)


@of_all
def test_nothing_is_done_at_no_strength(corruption):
    x = data()
    none = corruption.but(**{"std" if corruption.kind == "gaussian" else "p": 0})
    assert torch.equal(none(x, noise(), IMAGES), x)
    assert not torch.equal(corruption(x, noise(), IMAGES), x)


@of_all
def test_it_is_chosen_by_its_kind(corruption):
    adapter = TypeAdapter(Corruption)
    assert adapter.validate_python(corruption.model_dump()) == corruption
    corruption.check(IMAGES)
