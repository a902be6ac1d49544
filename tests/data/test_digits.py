"""The digits, against scikit-learn's own reader."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from ornstein.data.digits import digits
from ornstein.errors import DataError


def test_they_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    truth = load_digits()
    x, label = digits()
    assert x.dtype == np.uint8
    assert x.shape == (1797, 1, 8, 8)
    np.testing.assert_array_equal(x[:, 0], truth.images)
    np.testing.assert_array_equal(label, truth.target)


def test_scikit_learn_is_not_imported():
    code = (
        "import sys; from ornstein.data.digits import digits; digits();"
        "print('sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_absence_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install scikit-learn"):
        digits()


def test_a_damaged_file_is_said(monkeypatch, tmp_path):
    class Spec:
        submodule_search_locations = [str(tmp_path)]  # noqa: RUF012

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(DataError, match="cannot be read"):
        digits()
    file = tmp_path / "datasets" / "data" / "digits.csv.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\x1f\x8b not gzip")
    with pytest.raises(DataError, match="install scikit-learn again"):
        digits()
