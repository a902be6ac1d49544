"""`ornstein runs`."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ornstein.errors import OrnsteinError


def runs(*, runs: Path = Path("runs")) -> None:
    """List the runs and how far they are.

    Parameters
    ----------
    runs: Path
        The folder of all runs.
    """
    folders = [
        path.parent
        for path in sorted(runs.glob("*/recipe.yaml"))
        if not path.parent.name.endswith(".tmp")
    ]
    if not folders:
        print(f"there are no runs in {runs} yet; start with: ornstein demo")
        return
    width = max(len(folder.name) for folder in folders)
    for folder in folders:
        print(f"{folder.name:{width}}  {_described(folder)}")


def _described(folder: Path) -> str:
    try:
        return _progress(folder) + _score(folder)
    except (OrnsteinError, OSError, ValueError, TypeError, LookupError) as error:
        return f"damaged: {' '.join(str(error).split())[:100]}"


def _progress(folder: Path) -> str:
    from ornstein.settings import load_yaml

    total = load_yaml(folder / "recipe.yaml").get("optim", {}).get("samples")
    last = _last_line(folder / "metrics.jsonl")
    if last is None:
        return "not trained yet"
    age = time.time() - (folder / "metrics.jsonl").stat().st_mtime
    state = "finished" if last["samples"] >= total else f"{last['samples'] / total:.0%}"
    return f"{state:>8}  {last['samples']:,} samples  loss {last['loss']:.4f}  {_ago(age)}"


def _last_line(path: Path) -> dict[str, float] | None:
    """The last whole line of a log; a torn one is left out."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().splitlines()
    for line in reversed(lines):
        try:
            value: dict[str, float] = json.loads(line)
            return value
        except ValueError:
            continue
    return None


def _score(folder: Path) -> str:
    try:
        scores = json.loads((folder / "scores.json").read_bytes())
        return f"  {scores[-1]['name']} {scores[-1]['value']:.3g}"
    except (OSError, ValueError, LookupError):
        return ""


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"
