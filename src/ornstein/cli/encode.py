"""`ornstein encode`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from ornstein.transcoding import Encoded


def encode(
    run: str,
    data: str | None = None,
    *,
    out: Path = Path("codes"),
    indices: Annotated[bool, Parameter(negative="")] = False,
    average: str = "",
    runs: Path = Path("runs"),
) -> int:
    """Write the codes of images by a trained autoencoder: safetensors shards and a manifest.

    Parameters
    ----------
    run: str
        A run's name or folder.
    data: str
        What is encoded: a folder of images, or whatever `train --data` takes; by default the run's
        own data.
    out: Path
        The new folder of codes.
    indices: bool
        Entries of codebooks, of a run that has some, and not the numbers that its decoder takes.
    average: str
        Which average of the weights; "none" for the last weights.
    runs: Path
        The folder of all runs.
    """
    from ornstein import fsops
    from ornstein.data.sources import recognise
    from ornstein.run import Run

    fsops.check_folder(out.parent, "--out")
    opened = Run.open(run, runs)
    source = None if data is None else recognise(data)

    from ornstein.cli.progress import counted, show
    from ornstein.transcoding import encode as encoded

    form: Literal["latents", "codes"] = "codes" if indices else "latents"
    found = encoded(opened, source, out, form, average, counted("encoded"))
    for bad in found.bad[:3]:
        show(f"left out: {bad.path}. {bad.reason}")
    if len(found.bad) > 3:
        show(f"left out: {len(found.bad) - 3} more")
    print(_line(found, form))
    print(f"{out} was there already" if found.there else out)
    return 0


def _line(found: Encoded, form: str) -> str:
    shape = " × ".join(map(str, found.shape))
    line = f"{found.samples:,} samples, {form} of {shape}"
    if found.moments is not None:
        mean, std = found.moments.mean, found.moments.std
        line += f"; over the training split their mean is {mean:.3g}, their deviation {std:.3g}"
    return line
