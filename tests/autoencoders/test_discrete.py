"""Usage over an epoch and not a batch, and the law that stands in for a prior."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ornstein.autoencoders import discrete
from ornstein.autoencoders.discrete import Discrete, through, usage
from ornstein.noise import Noise


def test_usage_in_closed_form():
    for counts, used, perplexity in (
        ([5, 5, 5, 5], 1.0, 4.0),
        ([0, 7, 0, 0], 0.25, 1.0),
        ([3, 0, 3, 0], 0.5, 2.0),
        ([2, 1, 1, 0], 0.75, 2**1.5),
        ([0, 0, 0, 0], 0.0, 1.0),
    ):
        found = usage(torch.tensor(counts))
        assert (found[0].item(), found[1].item()) == (used, pytest.approx(perplexity))


def test_straight_through_is_exact_both_ways():
    h = torch.full((3,), 0.1, requires_grad=True)
    z = torch.tensor([1e8, 1 / 3, -7.0])
    out = through(z, h)
    out.backward(torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(out, z)  # h + (z − h) is not
    assert h.grad.tolist() == [1, 2, 3]


def test_usage_is_that_of_an_epoch():
    """8 codes, a batch of 4 samples uses one of them each time: of a batch the perplexity is 1,
    of the epoch 8."""
    codes = Discrete((2,), 8)
    codes.epoch = 32
    for i in range(8):
        batch = torch.full((4,), i)
        codes.count(codes.uses(batch))
        assert usage(codes.uses(batch)["codes"].sum(0))[1] == pytest.approx(1.0)
        # Of the first epoch as far as it is.
        assert codes.perplexity == pytest.approx(i + 1 if i < 7 else 8)
        assert codes.used == (i + 1) / 8
    codes.count(codes.uses(torch.zeros(4, dtype=torch.int64)))
    assert codes.perplexity == pytest.approx(8.0)  # the last whole epoch's, not that of 4 samples
    assert codes.tally.tolist() == [4, *[0] * 7]


def test_an_epoch_ends_with_the_update_that_completes_it():
    """Epochs of 10 samples in batches of 4: after 12, 20 and 32 samples."""
    codes = Discrete((1,), 8)
    codes.epoch = 10
    whole = []
    for i in range(8):
        codes.count(codes.uses(torch.full((4,), i)))
        whole.append(codes.whole.nonzero().squeeze(1).tolist())
    first, second, third = [0, 1, 2], [3, 4], [5, 6, 7]
    assert whole == [[], [], first, first, second, second, second, third]


def test_without_an_epoch_counts_go_on():
    codes = Discrete((1,), 3)
    for i in (0, 1, 1):
        codes.count(codes.uses(torch.full((100,), i)))
    assert codes.counts.tolist() == [100, 200, 0]


def test_uses_are_counted_by_place():
    codes = Discrete((5, 1, 2), 3)
    uses = codes.uses(torch.tensor([[[0, 2]], [[0, 1]], [[1, 1]]]))
    assert uses["codes"].tolist() == [[2, 1, 0], [0, 2, 1]]
    assert uses["samples"] == 3


def test_the_law_is_that_of_recent_updates():
    codes = Discrete((1,), 4)
    torch.testing.assert_close(codes.law(), torch.full((1, 4), 0.25))
    expected = torch.zeros(4)
    for i in (0, 1, 0):
        codes.count(codes.uses(torch.full((10,), i)))
        expected = discrete.MEMORY * expected + torch.tensor([10.0 * (i == k) for k in range(4)])
    torch.testing.assert_close(codes.law()[0], (expected + 0.25) / (expected.sum() + 1))


def with_law(places: tuple[int, ...], history: list[list[float]]) -> Discrete:
    codes = Discrete((2, *places), len(history[0]))
    codes.history.copy_(torch.tensor(history))
    return codes


def test_draws_follow_the_law_of_each_place():
    codes = with_law((1, 3), [[300, 100, 0, 0], [0, 0, 50, 50], [1, 2, 3, 4]])
    drawn = codes.draw_indices(Noise.of(0, "prior", 20_000))
    assert drawn.shape == (20_000, 1, 3)
    for place, law in enumerate(codes.law()):
        shares = torch.bincount(drawn[:, 0, place], minlength=4) / 20_000
        torch.testing.assert_close(shares, law, rtol=0, atol=0.015)
    part = codes.draw_indices(Noise.of(0, "prior", range(7, 12)))
    assert torch.equal(part, drawn[7:12])  # whatever batch a sample is in


def test_code_nats_are_those_of_a_law():
    """Over all codes of three places, probabilities add up to one; each is a product."""
    codes = with_law((3,), [[3, 1], [0, 0], [0, 1000]])
    all_codes = torch.tensor(list(itertools.product(range(2), repeat=3)))
    nats = codes.code_nats(all_codes)
    assert nats.exp().reciprocal().sum() == pytest.approx(1.0, abs=1e-6)
    chance = (3.5 / 5) * 0.5 * (0.5 / 1001)
    assert codes.code_nats(torch.tensor([[0, 1, 0]])).item() == pytest.approx(-math.log(chance))


def test_flat_codes_have_one_place():
    codes = with_law((), [[3, 0, 1]])
    assert codes.draw_indices(Noise.of(0, "prior", 5)).shape == (5,)
    nats = codes.code_nats(torch.arange(3))
    torch.testing.assert_close(nats.neg().exp(), codes.law()[0])


def test_a_law_that_would_be_too_large_is_that_of_all_places(monkeypatch):
    monkeypatch.setattr(discrete, "LARGEST", 11)
    codes = Discrete((2, 2, 2), 3)
    indices = torch.tensor([[[0, 0], [1, 0]], [[0, 0], [0, 1]]])
    codes.count(codes.uses(indices))
    torch.testing.assert_close(codes.law(), torch.tensor([[6 + 1 / 3, 2 + 1 / 3, 1 / 3]]) / 9)
    torch.testing.assert_close(
        codes.code_nats(indices)[0], -codes.law()[0, [0, 0, 1, 0]].log().sum()
    )
    drawn = codes.draw_indices(Noise.of(0, "prior", 5000))
    assert drawn.shape == (5000, 2, 2)
    shares = torch.bincount(drawn.flatten(), minlength=3) / 20_000
    torch.testing.assert_close(shares, codes.law()[0], rtol=0, atol=0.015)
