"""Handwritten digits, small enough to train on anywhere: 1797 images of 8 × 8, values 0 to 16.

E. Alpaydin, C. Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998: the
test half, as scikit-learn carries it. Its file is read where it is installed; scikit-learn is
not imported, which would cost a second.
"""

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np

from ornstein.errors import DataError

CLASSES = tuple("0123456789")
RANGE = (0.0, 16.0)
BINS = 17


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [1797, 1, 8, 8] with values 0 ... 16, and labels int64 [1797].

    DataError: scikit-learn is not installed, or its file is not the one that is known.
    """
    spec = importlib.util.find_spec("sklearn")  # finds the package, does not import it
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        )
    path = Path(folders[0], "datasets", "data", "digits.csv.gz")
    try:
        with gzip.open(path, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"the digits cannot be read from {path} ({error}): install scikit-learn again"
        ) from error
    if table.shape != (1797, 65) or table[:, :64].max() > 16 or table[:, 64].max() > 9:
        raise DataError(f"{path} does not hold the 1797 digits: install scikit-learn again")
    x = np.ascontiguousarray(table[:, :64]).reshape(-1, 1, 8, 8)
    return x, table[:, 64].astype(np.int64)
