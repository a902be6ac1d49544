"""`ornstein doctor`."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

EXTRAS = {
    "parquet": ("pyarrow",),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "dev": ("pytest", "hypothesis", "mypy", "ruff", "pyarrow"),
}


def doctor() -> int:
    """Say what this machine has, and how to install what is missing."""
    print(f"python     {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"ornstein   {_version('ornstein')}")
    missing = [name for name in _needed() if _version(name) is None]
    for name in missing:
        print(f"{name:10} missing: {sys.executable} -m pip install {name}")
    if "torch" not in missing:
        _report_torch()
    memory = _memory()
    free = shutil.disk_usage(Path.cwd()).free
    print(f"memory     {memory}")
    print(f"disk       {free / 2**30:.0f} GiB free here")
    for extra, packages in EXTRAS.items():
        absent = [name for name in packages if _version(name) is None]
        line = "complete"
        if absent:
            line = (
                f"without {', '.join(absent)}: {sys.executable} -m pip install 'ornstein[{extra}]'"
            )
        print(f"extra      {extra}: {line}")
    return 2 if missing else 0


def _needed() -> list[str]:
    """What the core needs, from the package's own metadata."""
    lines = metadata.requires("ornstein") or []
    return [line.split(">")[0].strip() for line in lines if "extra ==" not in line]


def _report_torch() -> None:
    import torch

    from ornstein.prepare import default_device
    from ornstein.training import matmul_peak, precision

    device = default_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    peak = matmul_peak(device, torch.float32)
    print(f"torch      {torch.__version__}")
    print(f"device     {device.type} ({name})")
    print(f"precision  {precision('auto', device)}, {peak / 1e9:,.0f} GFLOP/s in a float32 product")
    print(f"threads    {torch.get_num_threads()} of {os.cpu_count()} processors")


def _processor() -> str:
    import torch

    return (
        f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    )


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return "unknown"
    return f"{size / 2**30:.0f} GiB"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
