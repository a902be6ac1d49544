"""`ornstein evaluate`."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

if TYPE_CHECKING:
    from ornstein.recipe import Drawing
    from ornstein.run import Run
    from ornstein.scores import Baseline, Estimate, Metric, Scores

_BESIDE: dict[Baseline, str] = {
    "halves": "two halves",
    "held_out": "held-out",
    "train": "training",
    "gaussian": "one Gaussian",
}
_FORM: dict[Metric, str] = {"kernel": "{:.3g}", "memorised": "{:.1%}"}
_WORDS = {"train": "training", "held_out": "held-out"}


def evaluate(
    run: str,
    *overrides: str,
    n: Annotated[int, Parameter(name=["--number", "-n"])] = 1000,
    seed: int = 0,
    steps: int | None = None,
    nfe: int | None = None,
    average: str = "",
    extractor: str = "",
    split: Literal["train", "held_out"] = "train",
    likelihood: int = 256,
    json: Annotated[bool, Parameter(negative="")] = False,
    gpus: int | None = None,
    runs: Path = Path("runs"),
) -> int:
    """Score a run's samples, with references and an interval.

    Parameters
    ----------
    run: str
        A run's name or folder.
    overrides: str
        How to generate, such as step=jump grid=trailing.
    n: int
        How many samples to generate.
    seed: int
        Seed of the samples, and of what they are compared with.
    steps: int
        Steps of the sampler.
    nfe: int
        Evaluations of the network for a sample: by what `ornstein tune` has fitted for so many, or
        by the default solver.
    average: str
        Which average of the weights; "none" for the last weights.
    extractor: str
        Whose features: classifier, pixels, or a safetensors file with the weights of the FID
        network; by default the classifier where the data has classes.
    split: Literal["train", "held_out"]
        Which real samples to compare with.
    likelihood: int
        On how many held-out samples bits/dim is measured, where the sampler has it; 0 for none.
    json: bool
        Print the whole record as JSON.
    gpus: int
        How many GPUs of this machine work together, each with a process; without GPUs, how many
        processes share the processor.
    runs: Path
        The folder of all runs.
    """
    from ornstein.cli.carry import say
    from ornstein.cli.request import budgeted
    from ornstein.cli.together import together
    from ornstein.run import Run

    def work() -> None:
        opened = Run.open(run, runs)
        chosen, _ = budgeted(opened, nfe, steps, overrides, average)
        if Path(extractor).is_file():
            say(
                "the FID network looks at the data and the samples, a few images a second without "
                "a GPU; what it says of the data is kept for the next time"
            )
        priced = _priced(opened, chosen, average, json) if likelihood else ""
        if not opened.pictured(average):
            print(priced or f"{run} draws a part of the codes of a sample, which is no picture")
            return
        scores = opened.scores(
            n,
            seed,
            generation=chosen,
            average=average,
            extractor=extractor,
            split=split,
            likelihood=likelihood,
        )
        if json:
            print(scores.model_dump_json(indent=1))
            return
        print(table(scores) + (f"\n\n{priced}" if priced else ""))
        if likelihood and scores.likelihood is None:
            print(f"no bits/dim: {chosen.no_law or 'nothing is held out of the data'}")

    return together(gpus, work)


def _priced(run: Run, how: Drawing, average: str, json: bool) -> str:
    """What codes cost under a prior, for a person to read; nothing for another model."""
    encoding = run.recipe.encoding
    if encoding is None or encoding.form != "codes":
        return ""
    from ornstein.code_nats import code_nats
    from ornstein.code_nats import table as rows_of

    found = code_nats(run, how, average)
    return found.model_dump_json(indent=1) if json else "\n".join(aligned(rows_of(found)))


def table(scores: Scores) -> str:
    """Scores with what they are measured against, for a person to read."""
    from ornstein.scores import METRICS

    protocol, classes = scores.protocol, scores.classes
    beside = [name for name in _BESIDE if name in scores.baselines]
    rows = [
        ["", "this model", "95 % interval", *(_BESIDE[name] for name in beside)],
        ["samples", f"{protocol.generated:,}", ""],
    ]
    rows[1] += [f"{scores.baselines[name].count:,}" for name in beside]
    for metric in METRICS:
        if metric in scores.metrics:
            form = _FORM.get(metric, "{:.3f}")
            others = [scores.baselines[name].values.get(metric) for name in beside]
            name, of, _ = protocol.names[metric].partition(" (")
            name = "IS (own classes)" if of else name  # which they are, the features say
            rows.append([name, *_interval(scores.metrics[metric], form)])
            rows[-1] += ["" if value is None else form.format(value) for value in others]
    if scores.likelihood is not None:
        kind = "bits/dim" if scores.likelihood.exact else "bits/dim, at most"
        rows.append([kind, *_interval(scores.likelihood.bits_per_dim, "{:.3f}")])
    accuracy = f", held-out accuracy {protocol.accuracy:.1%}" if protocol.accuracy else ""
    found = scores.reconstruction
    if found is not None:
        rows.append(["reconstruction, PSNR dB", *_interval(found.psnr, "{:.2f}")])
        rows.append(["reconstruction, SSIM", *_interval(found.ssim, "{:.3f}")])
    lines = [
        f"{protocol.generated:,} samples against {protocol.reference:,} of the "
        f"{_WORDS[protocol.split]} split (seed {protocol.seed})",
        f"features: {protocol.extractor}{accuracy}",
        "",
        *aligned(rows),
        "",
        f"{protocol.names['frechet']} falls with the number of samples: compare at equal counts",
    ]
    if classes is not None:
        lines.append(
            f"the classifier is {classes.confidence:.0%} sure of its class on average; "
            f"entropy of classes {classes.entropy:.2f} nats"
        )
    of = "" if protocol.searched is None else f" (of {protocol.searched:,} that were searched)"
    lines.append(f"memorised: as near to a training sample{of} as the nearest 1 % of unseen data")
    if scores.likelihood is not None:
        law = scores.likelihood
        parts = " + ".join(f"{name} {value:.3f}" for name, value in law.parts.items())
        parts = parts.replace("+ -", "- ")
        lines.append(
            f"bits/dim: of {law.count:,} {_WORDS[law.split]} samples, {parts}; "
            f"{law.nats.value:.1f} nats per sample"
        )
        if "flow" in law.parts:
            of = "the probability flow"
            of += "" if law.exact else ", at most, since whole numbers are given noise"
            if law.probes is not None:
                of += f"; {law.probes:.4f} of standard error is the probes'"
            lines.append(f"bits/dim: of {of}")
    if found is not None:
        lines.append(
            f"reconstruction: of {found.count:,} {_WORDS[found.split]} samples, by the mean of "
            "their likeliest code"
        )
    return "\n".join(lines)


def _interval(found: Estimate, form: str) -> list[str]:
    return [form.format(found.value), f"{form.format(found.low)} to {form.format(found.high)}"]


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip_longest(*rows, fillvalue="")]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=False)]
        lines.append("  ".join(cells).rstrip())
    return lines
