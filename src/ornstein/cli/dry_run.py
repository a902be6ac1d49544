"""`ornstein train ... --dry-run`: what a training would be and take; no run is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ornstein.cli.progress import clock, counted
from ornstein.cli.request import Request

if TYPE_CHECKING:
    from ornstein.estimate import Estimate
    from ornstein.recipe import Recipe
    from ornstein.run import Run


def dry_run(
    asked: Request,
    *,
    runs: Path,
    name: str | None = None,
    fresh: bool = False,
    allow: tuple[str, ...] = (),
    previews: bool = True,
) -> int:
    """Print the recipe with its sources, and what its training would take.

    Returns 0, or the exit code of running out of memory where it would not fit. Raises: what
    `train` would.
    """
    from ornstein.cli.carry import about_data, say
    from ornstein.errors import OutOfMemory
    from ornstein.estimate import estimate
    from ornstein.prepare import doubts
    from ornstein.run import Run, checked_name

    for note in asked.notes:
        say(note)
    path = runs / (asked.recipe.run_name() if name is None else checked_name(name))
    replaced = fresh and (path / "recipe.yaml").exists()
    if replaced:  # plan for a name that no run has
        name = next(n for i in range(10**6) if not (runs / (n := f"{path.name}.{i}")).exists())
    run = Run.plan(asked.recipe, runs, name, allow=allow, progress=counted("reading"))
    say("counting tensors, then measuring the speed")
    found = estimate(run, previews)
    for line in commented(found.recipe, sources(asked, run, found.recipe)):
        print(line)
    print()
    for line in (*about_data(run), *doubts(run.recipe, run.seen), *costs(run, found)):
        print(line)
    if replaced:
        print(f"folder: {path} would be made; the run that is there would be set aside")
    elif run.exists:
        state = "is finished" if run.finished else f"would go on at {run.samples:,} samples"
        print(f"folder: {path} exists and {state}")
    else:
        print(f"folder: {path} would be made")
    if asked.recipe.data.kind in ("folder", "frames", "parquet", "shards"):
        print("nothing was written but the cache of images, which the training will use")
    else:
        print("nothing was written")
    return 0 if found.micro_batch is None else OutOfMemory.code


def sources(asked: Request, run: Run, resolved: Recipe) -> Mapping[str, str]:
    """Where each value of the recipe is from, by dotted key."""
    from ornstein.settings import difference, flatten

    filled = "the run" if run.exists else "measured from the data"
    found = {key: asked.provenance.get(key, "default") for key in flatten(resolved)}
    found |= dict.fromkeys(difference(asked.recipe, resolved), filled)
    if run.recipe.optim.samples is None:
        found["optim.samples"] = "measured speed"
    return found


def commented(recipe: Recipe, origins: Mapping[str, str]) -> Iterator[str]:
    """The recipe as YAML, each value with its source in a comment, aligned."""
    lines = recipe.yaml().splitlines()
    width = min(56, max(map(len, lines)))
    path: list[str] = []
    for line in lines:
        key, _, value = line.strip().partition(":")
        path[(len(line) - len(line.lstrip())) // 2 :] = [key]
        source = origins.get(".".join(path))
        yield line if source is None or not value else f"{line:{width}}  # {source}"


def costs(run: Run, found: Estimate) -> Iterator[str]:
    """Size, memory, time and disk, as a person reads them."""
    averages = f", {found.averages} average{'s' * (found.averages != 1)} of them kept"
    trained = "" if found.trained == found.parameters else f", {found.trained:,} of them trained"
    yield f"size: {found.parameters:,} parameters{trained}{averages}"
    yield f"disk: {_size(found.checkpoint)} for a checkpoint; two are kept, a third while saving"
    aside = found.recipe.optim.snapshots * len(found.recipe.optim.powers)
    if aside:
        yield f"disk: {_size(4 * found.parameters * aside)} for {aside:,} averages set aside"
    place = "resident" if run.device.type == "cpu" else "allocated on the GPU"
    fits = found.micro_batch is None
    how = "as measured in a few updates" if fits else "by a count of tensors"
    yield (
        f"memory: {_size(found.memory)} {place} at the peak, {how} "
        f"({_size(found.resident)} before the first); {_size(found.free)} can be had"
    )
    if not fits:
        smaller = f"optim.micro_batch={found.micro_batch} would fit"
        yield f"it does not fit; {smaller if found.micro_batch else 'take a smaller network'}"
        return
    optim = found.recipe.optim
    count = len(found.seconds)
    low, middle, high = (_rate(found.rate(quantile)) for quantile in (0.25, 0.5, 0.75))
    spread = f"half of {count} updates of {optim.batch:,} between {low} and {high}"
    if count < 3:
        spread = f"{count} update{'s' * (count > 1)} of {optim.batch:,}"
    gigaflops = found.rate() * found.flops / 1e9
    yield f"speed: {middle} samples/s ({spread}), {gigaflops:,.1f} GFLOP/s"
    done = run.samples
    more = f" more, after {done:,}" if done else ""
    assert optim.samples is not None
    yield (
        f"time: {clock(found.duration(done))} for {max(0, optim.samples - done):,} samples{more} "
        f"({clock(found.duration(done, 0.75))} to {clock(found.duration(done, 0.25))} at these "
        "speeds)"
    )


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _size(count: int) -> str:
    """Bytes in the unit that suits them."""
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if count >= 2**power:
            return (
                f"{count / 2**power:.3g} {unit}"
                if count < 1000 * 2**power
                else f"{count / 2**power:,.0f} {unit}"
            )
    return f"{count / 2**10:.3g} KiB"
