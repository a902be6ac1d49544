"""Large tensors without page faults: on Linux, let the C library keep the memory it has.

glibc serves each large block by a fresh mapping and returns it when it is freed, so that every
tensor of every training step faults all its pages in again. What keeping freed memory saves
depends on the sizes of the tensors: from nothing to a third of a step (docs/benchmarks.md).
"""

import ctypes
import os
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of mallopt(3)


def keep_freed_memory() -> bool:
    """Ask glibc to keep freed memory for reuse; whether it agreed.

    It changes no result, and holds for the whole process, whose memory then stays at its peak.
    ORNSTEIN_MALLOC=0 in the environment leaves everything as it is.
    """
    if not sys.platform.startswith("linux") or os.environ.get("ORNSTEIN_MALLOC") == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a C library other than glibc
        return False
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
