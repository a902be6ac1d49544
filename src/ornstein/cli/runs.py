"""`ornstein runs`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ornstein.errors import ConfigError, OrnsteinError

REFRESHED = 2.0  # seconds between two looks with --watch


def runs(
    *, runs: Path = Path("runs"), watch: Annotated[bool, Parameter(negative="")] = False
) -> None:
    """List the runs: how far they are, whether they are trained now, how fast, and their scores.

    Parameters
    ----------
    runs: Path
        The folder of all runs.
    watch: bool
        On a terminal, look again every two seconds until Ctrl-C.
    """
    if runs.exists() and not runs.is_dir():
        raise ConfigError(f"{runs} is a file; give the folder that holds the runs with --runs")
    if not (watch and sys.stdout.isatty()):
        print("\n".join(_lines(runs)))
        return
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        while True:
            shown = Text("\n".join(_lines(runs)), no_wrap=True, overflow="ellipsis")
            live.update(shown, refresh=True)
            time.sleep(REFRESHED)


def _lines(runs: Path) -> list[str]:
    """A line for each run."""
    from ornstein.plan import FILE

    staged = [path for plan in runs.glob(f"*/{FILE}") for path in plan.parent.glob("*/recipe.yaml")]
    folders = [
        path.parent
        for path in sorted([*runs.glob("*/recipe.yaml"), *staged])
        if not path.parent.name.endswith(".tmp")
    ]
    if not folders:
        return [f"there are no runs in {runs} yet; start with: ornstein demo"]
    names = [str(folder.relative_to(runs)) for folder in folders]
    width = max(map(len, names))
    return [
        f"{name:{width}}  {_described(folder)}" for name, folder in zip(names, folders, strict=True)
    ]


def _described(folder: Path) -> str:
    try:
        return _progress(folder) + _score(folder)
    except Exception as error:  # what somebody has edited makes its readers raise anything
        return f"damaged: {' '.join(str(error).split())[:100]}"


def _progress(folder: Path) -> str:
    from ornstein.cli.progress import clock
    from ornstein.log import progress
    from ornstein.settings import load_yaml

    total = load_yaml(folder / "recipe.yaml").get("optim", {}).get("samples")
    found = progress(folder, total)
    if found.loss is None:
        return found.state
    text = f"{found.state:>14}  {found.samples:,} samples  loss {found.loss:.4f}"
    if not found.training:
        return f"{text}  {_ago(found.age)}"
    if found.rate:
        text += f"  {found.rate:,.0f}/s  ETA {clock(found.left)}"
    # A training whose log has not grown for long waits for something, or hangs.
    return f"{text}  last update {_ago(found.age)}" if found.age >= 60 else text


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
