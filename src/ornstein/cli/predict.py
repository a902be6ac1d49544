"""`ornstein predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    import numpy as np

    from ornstein.data.info import DataInfo

ROWS = 8


def predict(
    run: str,
    *,
    n: Annotated[int, Parameter(name=["--number", "-n"])] = 200,
    seen: int | None = None,
    ahead: int | None = None,
    longest: int | None = None,
    seed: int = 0,
    average: str = "",
    out: Path = Path("predictions.png"),
    runs: Path = Path("runs"),
) -> int:
    """Predict the frames of held-out sequences, beside what they are, and measure.

    Parameters
    ----------
    run: str
        The name or folder of a run of sequences.
    n: int
        On how many held-out sequences it is measured, at most.
    seen: int
        How many frames the run is shown; by default half of a sequence.
    ahead: int
        How many frames after these are predicted; by default all there are.
    longest: int
        The longest jump that is made in one; by default the longest that was trained. 1 goes step
        by step.
    seed: int
        Seed of the predictions.
    average: str
        Which average of the weights; "none" for the last weights.
    out: Path
        What to write, a .png or a .gif: sequences in pairs, as they are and as they are predicted.
    runs: Path
        The folder of all runs.
    """
    from ornstein import fsops
    from ornstein.errors import ConfigError
    from ornstein.run import Run

    moves = out.suffix.lower() == ".gif"
    if not moves:
        fsops.check_picture(out)
    if n < 1:
        raise ConfigError(f"a prediction is measured on at least 1 sequence, got --number {n}")
    opened = Run.open(run, runs)

    import numpy as np

    from ornstein import pictures
    from ornstein.cli.evaluate import aligned
    from ornstein.forecast import checked, forecast

    checked(opened)
    frames = opened.info.shape[0]
    shown = frames // 2 if seen is None else seen
    after = frames - shown if ahead is None else ahead
    if shown < 1 or after < 1 or shown + after > frames:
        raise ConfigError(
            f"sequences of {frames} frames are not {shown} that are seen and {after} after them; "
            f"write --seen and --ahead, 1 or more each, together at most {frames}"
        )
    unseen = opened.dataset.held_out
    ids = (unseen if len(unseen) else opened.dataset.train)[:n]
    x = opened.dataset.x[ids][:, : shown + after]
    with opened.still(average):
        found = forecast(
            opened, x[:, :shown], range(1, after + 1), seed, longest=longest, average=average
        )
    still = np.repeat(x[:, shown - 1 : shown], after, axis=1)
    rows = [["frames ahead", "error", "of the last frame seen"]]
    errors = [squares(frames, x[:, shown:], opened.info) for frames in (found, still)]
    rows += [
        [f"{h:,}", f"{a:.4f}", f"{b:.4f}"] for h, (a, b) in enumerate(zip(*errors, strict=True), 1)
    ]
    print(f"{len(x):,} sequences, {shown} frames seen; mean squares per value, of a range of 1\n")
    print("\n".join(aligned(rows)))
    said = np.concatenate((x[:ROWS, :shown], found[:ROWS]), axis=1)
    info = opened.info.model_copy(update={"shape": (shown + after, *opened.info.shape[1:])})
    pairs = np.stack((x[:ROWS], said), axis=1).reshape(-1, *info.shape)
    content = (
        pictures.animation(pictures.motion(pairs, info), 200)
        if moves
        else pictures.png(pictures.picture(pairs, info))
    )
    fsops.make_folder(out.parent, "--out")
    fsops.replace(out, content, "--out")
    print(out)
    return 0


def squares(found: np.ndarray, truth: np.ndarray, info: DataInfo) -> np.ndarray:
    """The mean square of a difference by frame, [T], of values whose range, or else standard
    deviation, is 1."""
    import numpy as np

    span = info.range[1] - info.range[0] if info.range else info.std
    difference = (found.astype(np.float64) - truth) / span
    result: np.ndarray = np.square(difference).mean((0, 2, 3, 4))
    return result
