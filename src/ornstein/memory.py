"""Memory of this process and of this machine, in bytes, as the system tells it.

On a processor: the resident set. On a GPU: what PyTorch's allocator has handed out.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from ornstein.lazy import torch

UNKNOWN = 300 * 2**20  # about what Python with torch holds, where no system tells


def held(device: torch.device) -> int:
    """What this process holds now; on systems without /proc, the most it ever held."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return _status("VmRSS") or _most_resident()


def peak(device: torch.device) -> int:
    """The most that this process has held so far."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return _status("VmHWM") or _most_resident()


def free(device: torch.device) -> int:
    """What this process may still take: free on the machine, and within its container's limit."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + unused)
    return min([_available(), *_limits()])


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory was too little, of a GPU or of the machine."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )


def _available() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with contextlib.suppress(AttributeError, ValueError, OSError):  # not Linux: all there is
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sys.maxsize


def _limits() -> list[int]:
    """What control groups (version 2, then 1) leave of their limits, where there are any."""
    left = []
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        root = Path("/sys/fs/cgroup")
        with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
            left.append(int((root / limit).read_text()) - int((root / used).read_text()))
    return left


def _status(name: str) -> int:
    """A line of /proc/self/status. (What getrusage says begins with the parent's peak.)"""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def _most_resident() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return UNKNOWN
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
