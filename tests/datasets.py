"""Data sets for the tests of features and scores."""

from __future__ import annotations

import hashlib

import numpy as np
from sklearn.datasets import load_digits

from ornstein.data.info import DataInfo, Dataset
from ornstein.noise import Noise, permutation


def dataset(x, label=None, held_out=0, name="data", span=None, kind="image"):
    """Samples as a data set, `held_out` of them held out."""
    order = permutation(0, "split", 0, len(x)).numpy()
    train, apart = np.sort(order[held_out:]), np.sort(order[:held_out])
    info = DataInfo(
        name=name,
        kind=kind,
        shape=x.shape[1:],
        range=span,
        classes=() if label is None else tuple(str(c) for c in range(int(label.max()) + 1)),
        count=len(x),
        held_out=held_out,
        mean=float(x[train].mean(dtype=np.float64)),
        std=float(x[train].std(dtype=np.float64)),
        fingerprint=hashlib.sha256(x.tobytes()).hexdigest(),
    )
    return Dataset(info, x, label, train, apart)


def toy(shape=(1, 6, 6), count=60, classes=3):
    """Images whose brightness says the class."""
    label = np.arange(count) % classes
    x = Noise.of(0, "toy", count).uniform(0, shape).numpy() + label.reshape(-1, 1, 1, 1)
    return dataset(x, label, held_out=10, name="toy", span=(0.0, float(classes)))


def digits():
    """1,797 handwritten digits, 197 of them held out."""
    found = load_digits()
    x = found.images[:, None].astype(np.uint8)
    return dataset(x, found.target.astype(np.int64), 197, "digits", (0.0, 16.0))
