"""A grid is a codebook: one code for each point, and the nearest point for each feature."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ornstein.autoencoders.bottlenecks import FSQ
from ornstein.autoencoders.fsq import FSQModule
from ornstein.errors import ConfigError
from ornstein.noise import Noise

LEVELS = st.lists(st.integers(2, 7), min_size=1, max_size=4).map(tuple)


def grid(levels: int) -> torch.Tensor:
    return torch.linspace(-1, 1, levels)


@given(levels=LEVELS)
def test_codes_and_points_are_one_to_one(levels):
    fsq = FSQModule((len(levels),), levels)
    codes = torch.arange(math.prod(levels))
    assert fsq.codes == len(codes)
    z = fsq.lookup(codes)
    assert len(z.unique(dim=0)) == len(codes)
    for i, count in enumerate(levels):
        torch.testing.assert_close(z[:, i].unique(), grid(count))
    # A feature at a point has its code; tanh is 1 from 10 on.
    code = fsq(z.double().atanh().clamp(-10, 10))
    assert torch.equal(code.indices, codes)
    assert torch.equal(code.z, z)


def test_the_radix_is_mixed():
    """z has the digits of its index, the first counting fastest."""
    fsq = FSQModule((3,), (4, 2, 3))
    digits = [1, 0, 2]
    index = 1 + 0 * 4 + 2 * 4 * 2
    expected = torch.stack([grid(n)[k] for n, k in zip((4, 2, 3), digits, strict=True)])
    torch.testing.assert_close(fsq.lookup(torch.tensor([index]))[0], expected)


@pytest.mark.parametrize("places", [(), (1, 1), (3, 2)])
def test_a_code_is_the_nearest_point_to_the_bounded_feature(places):
    levels = (8, 5, 2)
    fsq = FSQModule((3, *places), levels)
    h = 2 * Noise.of(0, "features", 50).normal(0, (3, *places))
    code = fsq(h)
    for i, count in enumerate(levels):
        near = (h[:, i].tanh().unsqueeze(-1) - grid(count)).abs().argmin(-1)
        torch.testing.assert_close(code.z[:, i], grid(count)[near])
    assert code.indices.shape == (50, *places)
    assert torch.equal(fsq.lookup(code.indices), code.z)
    assert not code.penalties
    assert not code.stats


def test_an_even_number_of_levels_has_all_of_them_around_zero():
    """Both of two levels are as near; by rounding to whole steps alone, one would be out of
    reach."""
    fsq = FSQModule((1,), (2,))
    assert fsq(torch.tensor([[-0.01], [0.01]])).z.tolist() == [[-1], [1]]


def test_gradients_are_those_of_the_bounded_feature():
    fsq = FSQModule((2, 3), (4, 3))
    h = Noise.of(0, "features", 7).normal(0, (2, 3)).requires_grad_()
    received = Noise.of(1, "features", 7).normal(0, (2, 3))
    fsq(h).z.backward(received)
    torch.testing.assert_close(h.grad, received * (1 - h.detach().tanh() ** 2))


def test_uses_are_counted():
    """Uniform y over (−1, 1): the outer levels of three have half the share of the inner one."""
    fsq = FSQModule((1,), (3,))
    fsq.epoch = 4000
    y = 2 * Noise.of(0, "features", 4000).uniform(0, (1,)) - 1
    for part in (slice(0, 1000), slice(1000, 4000)):
        code = fsq(y[part].atanh(), Noise.of(0, "train", 4000).of_samples(part))
        fsq.after_step(code.stats, Noise.of(0, "train", 1))
    shares = fsq.whole / 4000
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.5, 0.25]), rtol=0, atol=0.03)
    assert fsq.used == 1
    assert fsq.perplexity == pytest.approx(2**1.5, rel=0.02)
    drawn = fsq.draw(Noise.of(0, "prior", 8000), (1,)).squeeze(1)
    assert (drawn == 0).float().mean() == pytest.approx(0.5, abs=0.04)
    assert set(drawn.tolist()) == {-1, 0, 1}


def test_what_is_not_a_number_stays_so():
    code = FSQModule((2,), (3, 3))(torch.tensor([[float("nan"), 1.0], [0.0, 0.0]]))
    assert torch.isnan(code.z).tolist() == [[True, False], [False, False]]
    assert code.indices.max() < 9


def test_a_state_is_all_there_is():
    fsq, other = FSQModule((2,), (3, 4)), FSQModule((2,), (3, 4))
    noise = Noise.of(0, "train", 100)
    fsq.after_step(fsq(noise.normal(0, (2,)), noise).stats, noise)
    other.load_state_dict(fsq.state_dict())
    assert torch.equal(other.draw(noise, (2,)), fsq.draw(noise, (2,)))
    assert torch.equal(other.counts, fsq.counts)


def test_levels_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match="3 levels for codes of 4 numbers"):
        FSQ(levels=(8, 6, 5)).build((4, 2, 2))
    with pytest.raises(ConfigError, match="16,777,216 codes"):
        FSQ(levels=(4096, 4096)).build((2,))
    assert FSQ(levels=(8, 6, 5)).build((3, 2, 2)).codes == 240
