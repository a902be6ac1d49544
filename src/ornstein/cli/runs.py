"""`ornstein runs`."""

from __future__ import annotations

import time
from pathlib import Path

from ornstein.errors import ConfigError, OrnsteinError
from ornstein.log import last_line


def runs(*, runs: Path = Path("runs")) -> None:
    """List the runs and how far they are.

    Parameters
    ----------
    runs: Path
        The folder of all runs.
    """
    if runs.exists() and not runs.is_dir():
        raise ConfigError(f"{runs} is a file; give the folder that holds the runs with --runs")
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
    except Exception as error:  # what somebody has edited makes its readers raise anything
        return f"damaged: {' '.join(str(error).split())[:100]}"


def _progress(folder: Path) -> str:
    from ornstein.settings import load_yaml

    total = load_yaml(folder / "recipe.yaml").get("optim", {}).get("samples")
    last = last_line(folder / "metrics.jsonl")
    if last is None:
        return "not trained yet"
    age = time.time() - (folder / "metrics.jsonl").stat().st_mtime
    state = "finished" if last["samples"] >= total else f"{last['samples'] / total:.0%}"
    return f"{state:>8}  {last['samples']:,} samples  loss {last['loss']:.4f}  {_ago(age)}"


def _score(folder: Path) -> str:
    """The last score; one that cannot be read is no reason to hide the run."""
    from ornstein.scores import Scores, read

    try:
        last = read(folder / "scores.json")[-1]
    except (OrnsteinError, LookupError):
        return ""
    if isinstance(last, Scores):
        return f"  {last.protocol.names['frechet']} {last.frechet.value:.3g}"
    return f"  {last.name} {last.value:.3g} (older score)"


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "just now"
