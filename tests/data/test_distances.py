"""The largest distance between two samples, against all pairs at once."""

import numpy as np
import pytest
import torch

from ornstein.data import distances
from ornstein.data.distances import Farthest, farthest
from ornstein.data.info import DataInfo, Dataset
from ornstein.data.sources import Digits


def dataset(x, train=None, most=None):
    info = DataInfo(
        name="x", kind="vector", shape=x.shape[1:], count=len(x), mean=0, std=1, fingerprint=""
    )
    train = np.arange(len(x)) if train is None else np.asarray(train)
    rest = np.setdiff1d(np.arange(len(x)), train)
    return Dataset(info, x, None, train, rest, most=most)


def by_hand(x):
    return torch.pdist(torch.from_numpy(np.asarray(x, np.float64)).flatten(1)).max().item()


def normal(n, *shape):
    return np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32)


@pytest.mark.parametrize("n", [2, 3, 7, 400])
@pytest.mark.parametrize("shape", [(2,), (30,), (3, 4, 4)])
def test_it_is_that_of_all_pairs(n, shape, monkeypatch):
    """Whether the samples fill a ball, lie on a sphere or in two far heaps; in blocks of any
    size."""
    x = normal(n, *shape)
    heaps = x * 0.01
    heaps[: n // 2] += 5.0
    sphere = x / np.linalg.norm(x.reshape(n, -1), axis=1).reshape(n, *[1] * len(shape))
    for values in (x, sphere, heaps, np.abs(x) ** 3 + 100):
        for block in (1 << 21, 16 * values[0].size):
            monkeypatch.setattr(distances, "_BLOCK", block)
            found = farthest(dataset(values))
            assert found == Farthest(pytest.approx(by_hand(values), rel=1e-5), n, True)


def test_the_digits_are_77_apart():
    data = Digits().load()
    found = farthest(data)
    assert found.distance == pytest.approx(by_hand(data.x[data.train]), rel=1e-6)
    assert found.looked == len(data.train)
    assert found.exact


def test_only_training_samples_count_and_none_is_changed():
    x = normal(50, 4)
    x[7] = 1000.0
    kept = x.copy()
    train = [i for i in range(50) if i != 7]
    assert farthest(dataset(x, train)).distance == pytest.approx(by_hand(x[train]), rel=1e-5)
    assert np.array_equal(x, kept)


def test_few_or_equal_samples_are_no_distance_apart():
    assert farthest(dataset(normal(5, 3), train=[])) == Farthest(0.0, 0, True)
    assert farthest(dataset(normal(5, 3), train=[2])) == Farthest(0.0, 1, True)
    assert farthest(dataset(np.full((9, 3), 250, np.uint8))) == Farthest(0.0, 9, True)


def test_what_is_too_much_work_is_a_lower_bound(monkeypatch):
    """On a sphere no pair is out of the question, and the bound says that it is one."""
    x = normal(300, 20)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    monkeypatch.setattr(distances, "_BLOCK", 40 * 20)
    for name, limit in (("WORK", 100.0), ("_VALUES", 40 * 20)):
        with monkeypatch.context() as patch:
            patch.setattr(distances, name, limit)
            found = farthest(dataset(x))
        assert not found.exact
        assert 0.8 * by_hand(x) < found.distance <= by_hand(x) * (1 + 1e-6)
    assert farthest(dataset(x)).exact


def test_of_samples_that_are_decoded_some_are_looked_at():
    x = normal(200, 5)
    data = dataset(x, most=60)
    found = farthest(data)
    assert (found.looked, found.exact) == (60, True)
    assert found.distance == pytest.approx(by_hand(x[data.some().train]), rel=1e-5)
