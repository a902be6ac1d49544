"""`ornstein decode`."""

from __future__ import annotations

from pathlib import Path


def decode(
    run: str,
    codes: Path,
    *,
    out: Path = Path("decoded"),
    average: str = "",
    runs: Path = Path("runs"),
) -> int:
    """Write the images that a trained autoencoder makes of a folder of codes.

    Parameters
    ----------
    run: str
        A run's name or folder, the one that encoded them.
    codes: Path
        A folder that `ornstein encode` has written.
    out: Path
        The new folder of PNG files, which have the names that were encoded.
    average: str
        Which average of the weights; "none" for the last weights.
    runs: Path
        The folder of all runs.
    """
    from ornstein import fsops
    from ornstein.run import Run

    fsops.check_folder(out.parent, "--out")
    opened = Run.open(run, runs)

    from ornstein.cli.progress import counted
    from ornstein.transcoding import decode as decoded

    count = decoded(opened, codes, out, average, counted("decoded"))
    print(f"{out}: {count:,} images")
    return 0
