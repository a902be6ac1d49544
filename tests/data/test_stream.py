"""The order of training samples is a pure function of (seed, position), and each epoch is fair."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ornstein.data import stream
from ornstein.data.info import DataInfo, Dataset
from ornstein.data.sources import Digits, split
from ornstein.data.stream import Stream

COUNT = 37


def dataset(count=COUNT, held_out=0.2):
    x = np.arange(count, dtype=np.uint8).reshape(-1, 1)
    info = DataInfo(
        name="numbers",
        kind="vector",
        shape=(1,),
        range=(0.0, 255.0),
        bins=256,
        count=count,
        mean=0.0,
        std=1.0,
        fingerprint="",
    )
    return Dataset(info, x, np.arange(count, dtype=np.int64) % 5, *split(count, held_out))


def test_each_epoch_is_a_permutation_of_the_training_split():
    data = dataset()
    order, n = Stream(data, seed=1), len(data.train)
    epochs = [order.ids(epoch * n, n) for epoch in range(5)]
    for ids in epochs:
        assert sorted(ids) == data.train.tolist()
    assert len({tuple(ids) for ids in epochs}) == 5  # each in an order of its own
    assert not set(np.concatenate(epochs)) & set(data.held_out)


def test_the_order_depends_on_the_seed():
    data = dataset()
    ids = [tuple(Stream(data, seed).ids(0, len(data.train))) for seed in range(5)]
    assert len(set(ids)) == 5
    assert tuple(Stream(dataset(), 3).ids(0, len(data.train))) == ids[3]


DATA = dataset()
LONG = Stream(DATA, 2).ids(0, 200)


@given(st.integers(0, 150), st.integers(1, 50))
def test_any_part_of_the_positions_is_that_part_of_the_order(position, count):
    """Also where it straddles epochs, and in whatever order parts are asked for."""
    assert np.array_equal(Stream(DATA, 2).ids(position, count), LONG[position : position + count])


@given(st.lists(st.integers(1, 45), min_size=1, max_size=8))
def test_however_positions_are_split_the_samples_are_the_same(parts):
    order, position, found = Stream(DATA, 2), 0, []
    for count in parts:
        found.append(order.ids(position, count))
        position += count
    assert np.array_equal(np.concatenate(found), Stream(DATA, 2).ids(0, position))


def test_blocks_of_the_order_do_not_show(monkeypatch):
    for block in (1, 7, 30, 36, 4096):
        monkeypatch.setattr(stream, "BLOCK", block)
        assert np.array_equal(Stream(DATA, 2).ids(0, 200), LONG)
        assert np.array_equal(Stream(DATA, 2).ids(23, 70), LONG[23:93])


def test_the_order_of_ten_million_takes_no_memory_for_each():
    count = 10**7
    x = np.broadcast_to(np.zeros((1, 1), np.uint8), (count, 1))
    train = np.arange(count)
    data = dataset()._replace(x=x, label=None, train=train, held_out=train[:0])
    tracemalloc.start()
    try:
        far = Stream(data, 0)
        ids = np.concatenate(
            [far.ids(position, 64) for position in range(0, 3 * count, count // 9)]
        )
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert len(np.unique(ids)) > 0.99 * len(ids)


def test_far_positions_cost_no_more():
    """Nothing is counted up to a position: resuming after a billion samples is at once."""
    n = len(DATA.train)
    assert sorted(Stream(DATA, 2).ids(10**9 * n, n)) == DATA.train.tolist()


def test_no_positions_are_no_samples():
    """A rank without a share in the last, cut batch asks for none."""
    assert len(Stream(DATA, 2).at(40, 0).x) == 0


@pytest.mark.parametrize("scale", [None, (-1.0, 1.0), (0.0, 1.0), (-0.5, 3.0)])
def test_scaling_takes_the_range_of_the_data_to_the_range_asked_for(scale):
    batch = Stream(DATA, 2, scale).at(20, 30)
    ids = Stream(DATA, 2).ids(20, 30)
    assert torch.equal(batch.ids, torch.from_numpy(ids))
    assert torch.equal(batch.label, torch.from_numpy(ids % 5))
    low, high = scale or (0.0, 255.0)
    expected = low + torch.from_numpy(ids).float() / 255 * (high - low)
    assert batch.x.dtype == torch.float32
    torch.testing.assert_close(batch.x.squeeze(1), expected, rtol=1e-6, atol=1e-5)


def test_the_ends_of_the_range_are_met():
    data = Digits().load()
    x = Stream(data, 0, (-1.0, 1.0)).at(0, len(data.train)).x
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)
    assert x.mean().item() == pytest.approx(data.info.scaled((-1.0, 1.0)).mean, abs=1e-5)
    assert x.std().item() == pytest.approx(data.info.scaled((-1.0, 1.0)).std, rel=1e-4)
