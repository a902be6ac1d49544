"""`ornstein inspect`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from ornstein.errors import ConfigError, printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ornstein.data.inspection import Report
    from ornstein.diffusion.ncsn import Rules

SHOWN = 10  # bad files, groups of duplicates and sizes on the screen
CLASSES = 20
PAIRS = 72  # in the picture of duplicates


def inspect(
    data: str,
    *overrides: str,
    out: Path | None = None,
    bad: Path | None = None,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Say what is in your data, what is wrong with it, and how to train on it.

    Nothing in the data is changed. Images are compared with each other to find those that are
    there twice; a contact sheet shows some of them.

    Parameters
    ----------
    data: str
        A folder of images, a .parquet file or a folder of them, a .npy or .npz file, "digits",
        "shapes", "moving_digits", "moving_shapes" or the name of a toy distribution.
    overrides: str
        How to read it, such as data.size=64 data.channels=1.
    out: Path
        The contact sheet, or a folder for it; by default inspect-<name>.png in this folder.
    bad: Path
        The list of files that cannot be read; by default it is next to the sheet.
    json: bool
        Print the report as JSON.
    """
    import json as writer
    import re

    import numpy as np

    from ornstein import fsops, pictures
    from ornstein.cli.carry import bad_table
    from ornstein.cli.progress import counted
    from ornstein.cli.request import request
    from ornstein.data.inspection import as_json, sheet
    from ornstein.data.inspection import inspect as inspected

    for word in overrides:
        if not word.startswith("data."):
            raise ConfigError(f"{word!r} says nothing about data: write data.KEY=VALUE")
    source = request("edm", data, None, None, overrides).recipe.data
    root = _root(source)
    for path in filter(None, (out or Path.cwd(), bad)):
        _check_outside(path, root)
    if out is None or out.is_dir():
        fsops.check_folder(out or Path.cwd(), "--out")
    else:
        fsops.check_picture(out)
    dataset = source.load(counted("reading"))
    report = inspected(source, dataset, counted("comparing"))

    name = re.sub(r"[^\w.-]+", "-", report.info.name)[:60].strip("-.") or "data"
    path = out or Path(f"inspect-{name}.png")
    path = path / f"inspect-{name}.png" if path.is_dir() else path
    written = {"sheet": path}

    def draw(path: Path, ids: np.ndarray, columns: int | None) -> None:
        fsops.make_folder(path.parent, "--out")
        image = pictures.picture(dataset.x[ids], report.info, columns)
        fsops.replace(path, pictures.png(image), "--out")

    draw(path, *sheet(dataset))
    groups = [*report.repeated.exact, *report.repeated.near][:PAIRS]
    if groups and report.info.kind == "image":
        written["duplicates"] = path.with_name(f"{path.stem}-duplicates.png")
        draw(written["duplicates"], np.array([i for group in groups for i in group[:2]]), 12)
    if report.bad:
        written["bad_files"] = bad or path.with_name(f"{path.stem}-bad.tsv")
        fsops.make_folder(written["bad_files"].parent, "--bad")
        fsops.replace(written["bad_files"], bad_table(report.bad).encode(), "--bad")
    if json:
        values = {**as_json(report), "ncsnv2": rules_of(report)}
        if values["ncsnv2"] is not None:
            values["ncsnv2"] = values["ncsnv2"]._asdict()
        print(writer.dumps({**values, **{k: str(v) for k, v in written.items()}}, indent=1))
    else:
        print(table(report))
        print("\n".join(f"{what.replace('_', ' ')}: {path}" for what, path in written.items()))


def table(report: Report) -> str:
    """A report for a person to read."""
    info, proposal = report.info, report.proposal
    what = {"image": "images", "sequence": "sequences"}.get(info.kind, "samples")
    return "\n".join(
        [
            f"{printable(info.name)}: {info.count:,} {what}, {report.train:,} to train on and "
            f"{report.held_out:,} held out",
            *_left_out(report),
            *_sizes(report),
            *_looked(report),
            *_values(report),
            *_classes(report),
            *_duplicates(report),
            *_ncsnv2(report),
            f"proposed    {', '.join(_proposed(report))}",
            f"            {proposal.command}",
        ]
    )


def _left_out(report: Report) -> list[str]:
    found = [f"{_plural(len(report.bad), 'file')} that cannot be read"] if report.bad else []
    found += [f"{_plural(report.ignored, 'file')} of other kinds"] if report.ignored else []
    lines = [f"left out    {' and '.join(found) or 'nothing'}"]
    lines += [f"  {printable(file.path)}: {file.reason}" for file in report.bad[:SHOWN]]
    return [*lines, *_more(len(report.bad) - SHOWN)]


def _sizes(report: Report) -> list[str]:
    if report.originals is None:
        return []
    small, middle, large = (_size(size) for size in report.originals)
    if len(report.common) == 1:
        return [f"sizes       all {large}"]
    common = ", ".join(f"{_size(size)} ({count:,})" for size, count in report.common[:SHOWN])
    return [
        f"sizes       {small} to {large} (width×height), the middle one {middle}",
        f"            most common: {common}",
    ]


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}×{size[0]}"


def _looked(report: Report) -> list[str]:
    if report.looked == report.info.count:
        return []
    return [f"looked at   {report.looked:,} random images, for values, colours and duplicates"]


def _values(report: Report) -> list[str]:
    info, shape = report.info, "×".join(map(str, report.info.shape))
    possible = f" of {info.range[0]:g} to {info.range[1]:g}" if info.range else ""
    lines = [
        f"values      {shape}{_colour(report)}, {report.low:g} to {report.high:g}{possible}, "
        f"mean {info.mean:.4g}, standard deviation {info.std:.4g}"
    ]
    for i, d in enumerate(report.dimensions[:SHOWN]):
        lines.append(
            f"  {i}: {d.low:.4g} to {d.high:.4g}, mean {d.mean:.4g}, standard deviation {d.std:.4g}"
        )
    return [*lines, *_more(len(report.dimensions) - SHOWN)]


def _colour(report: Report) -> str:
    if report.grey is None:
        return ""
    if report.grey == report.looked:
        return " grey"
    return f" colour ({report.grey:,} are grey)" if report.grey else " colour"


def _classes(report: Report) -> list[str]:
    if not report.classes:
        return ["classes     none"]
    counts = [(c.train + c.held_out, c) for c in report.classes]
    most, least = (pick(n for n, _ in counts) for pick in (max, min))
    sizes = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    uneven = most >= 1.5 * least > 0
    times = f", the largest {most / least:.1f} times the smallest" if uneven else ""
    shown = counts
    if len(counts) > CLASSES:
        shown = sorted(counts, key=lambda pair: -pair[0])
        shown = [*shown[: CLASSES // 2], *shown[-CLASSES // 2 :]]
    return [
        f"classes     {len(counts):,}, of {sizes} samples{times}",
        *(f"  {printable(c.name)}: {c.train:,} and {c.held_out:,} held out" for _, c in shown),
        *_more(len(counts) - len(shown), "between these"),
    ]


def _duplicates(report: Report) -> list[str]:
    found = report.repeated
    line = f"duplicates  {_groups(found.exact, 'exact')}"
    if found.compared:
        line += f", {_groups(found.near, 'near')}"
        if found.compared < report.info.count - sum(len(group) - 1 for group in found.exact):
            line += f" among {found.compared:,} that were compared"
    lines = [line]
    for held_out, how in ((found.leaked, ""), (found.nearly_leaked, "nearly ")):
        if held_out:
            lines.append(
                f"  leak: {len(held_out):,} held out ({len(held_out) / report.held_out:.1%}) are "
                f"{how}the same as samples to train on"
            )
    groups = [(" = ", group) for group in found.exact] + [(" ~ ", group) for group in found.near]
    for sign, group in groups[:SHOWN]:
        names = [printable(report.names.get(i, f"sample {i}")) for i in group[:4]]
        lines.append(f"  {sign.join(names)}{sign + '…' if len(group) > 4 else ''}")
    return [*lines, *_more(len(groups) - SHOWN, "groups")]


def _groups(groups: Sequence[tuple[int, ...]], what: str) -> str:
    if not groups:
        return f"none {what}"
    return f"{_plural(len(groups), f'{what} group')} of {sum(map(len, groups)):,} samples"


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _more(count: int, what: str = "") -> list[str]:
    return [f"  ... and {count:,} more {what}".rstrip()] if count > 0 else []


def _proposed(report: Report) -> list[str]:
    proposal = report.proposal
    words = []
    if report.info.kind == "sequence":
        frames, channels, h, w = report.info.shape
        return [f"{frames} frames of {w}×{h}", _plural(channels, "channel")]
    if proposal.channels is not None:
        h, w = report.info.shape[1:]
        words.append(f"size {w}×{h} ({proposal.why})")
        words.append(_plural(proposal.channels, "channel"))
    scale = "at the range -1 to 1" if report.info.range else "once standardised"
    return [*words, f"sigma_data {proposal.sigma_data:.4g} {scale}"]


def rules_of(report: Report) -> Rules | None:
    """NCSNv2's choices for this data at the scale of its recipe: the range 0 to 1, or
    standardised; None where all samples are the same to it, or no samples of diffusion."""
    from ornstein.diffusion.ncsn import SIGMA_MIN, rules

    scale, _ = report.info.affine((0.0, 1.0))
    distance = scale * report.farthest.distance
    if report.info.kind == "sequence" or distance <= SIGMA_MIN:
        return None
    return rules(distance, math.prod(report.info.shape))


def _ncsnv2(report: Report) -> list[str]:
    found, rules = report.farthest, rules_of(report)
    if rules is None:
        return []
    scale = "at the range 0 to 1" if report.info.range else "once standardised"
    least = "" if found.exact else "at least "
    of = "" if found.looked == report.train else f" of {found.looked:,} random ones"
    steps, eps = f"steps={rules.levels}", f"{rules.eps:.4g}"
    return [
        f"NCSNv2      sigma_max {rules.sigma_max:.4g} {scale}: {least}the largest distance between "
        f"two training samples{of}",
        f"            {rules.levels} levels down to {rules.sigma_min:g}, gamma {rules.gamma:.4f}; "
        f"{rules.updates} updates at each with eps {eps}, s_T²/σ² {rules.variance_ratio:.4f}",
        "            which is what the recipe ncsnv2 chooses unless you write others:",
        f"            model.process.sigma_max={rules.sigma_max:.4g} objective.levels.{steps} "
        f"generation.{steps} generation.step.corrector.size.eps={eps}",
    ]


def _root(source: Any) -> Path | None:
    path = getattr(source, "path", None)
    return None if path is None else Path(path)


def _check_outside(path: Path, root: Path | None) -> None:
    """Raises: ConfigError where writing to `path` would change the data."""
    resolved = path.resolve()
    if root is not None and (resolved == root or root in resolved.parents):
        raise ConfigError(
            f"{path} lies in the data, which is never changed: give --out (and --bad) "
            f"a place outside of {root}"
        )
