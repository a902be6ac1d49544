"""`ornstein reconstruct`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

if TYPE_CHECKING:
    from ornstein.latents import Reconstructions
    from ornstein.metrics.codes import Usage


def reconstruct(
    run: str,
    *,
    n: Annotated[int | None, Parameter(name=["--number", "-n"])] = None,
    columns: int = 10,
    seed: int = 0,
    average: str = "",
    json: Annotated[bool, Parameter(negative="")] = False,
    out: Path = Path("reconstructions.png"),
    runs: Path = Path("runs"),
) -> int:
    """Show held-out samples beside an autoencoder's reconstructions, and measure.

    Parameters
    ----------
    run: str
        A run's name or folder.
    n: int
        On how many held-out samples it is measured; by default on all of them.
    columns: int
        How many of these the picture shows.
    seed: int
        Seed of the choice of samples, and of the corruption of a run that restores.
    average: str
        Which average of the weights; "none" for the last weights.
    json: bool
        Print what was measured as JSON.
    out: Path
        The picture to write: samples, what the encoder was given, and reconstructions.
    runs: Path
        The folder of all runs.
    """
    from ornstein import fsops
    from ornstein.errors import ConfigError
    from ornstein.run import Run

    fsops.check_picture(out)
    if columns < 1:
        raise ConfigError(f"the picture shows at least 1 sample, got --columns {columns}")
    opened = Run.open(run, runs)

    from ornstein import latents, pictures
    from ornstein.cli.progress import counted, show
    from ornstein.latent_pictures import picture_of_reconstructions

    latents.autoencoder(opened)
    with opened.still(average):
        found = latents.reconstructions(
            opened, n, seed, average, shown=columns, progress=counted("reconstructed")
        )
    used = latents.codebooks(found.codes)
    drawn = picture_of_reconstructions(found, opened)
    fsops.make_folder(out.parent, "--out")
    fsops.replace(out, pictures.png(drawn), "--out")
    print(_json(found, used) if json else table(found, used))
    show(str(out)) if json else print(out)
    return 0


def table(found: Reconstructions, used: dict[str, Usage]) -> str:
    """What was measured, for a person to read; used: of codebooks, as `latents.codebooks` says."""
    from ornstein.cli.evaluate import aligned
    from ornstein.metrics.codes import ACTIVE, active_units

    codes = found.codes
    rows = [["", "mean", "95 % interval"]]
    rows += [
        [name, f"{of.value:.3f}", f"{of.low:.3f} to {of.high:.3f}"]
        for name, of in found.numbers().items()
    ]
    units = codes.z.shape[1]
    made = f"{units:,} number{'s' * (units > 1)}"
    if used:
        made = " and ".join(
            f"{one.codes // len(codes.ids):,} {name}{' ' * bool(name)}places, each one of "
            f"{one.entries:,} entries"
            for name, one in used.items()
        )
    lines = [f"{len(codes.ids):,} held-out samples, codes of {made}", "", *aligned(rows)]
    kl = codes.kl
    if kl is not None:
        count = active_units(codes.z)
        lines += [
            "",
            f"{count:,} of {units:,} units are active: their means vary by more than {ACTIVE:g}",
            f"a code costs {float(kl.sum()):.2f} nats, the costliest unit {float(kl.max()):.2f}",
        ]
    if used:
        lines.append("")
        for name, one in used.items():
            level = f"{name}: " if name else ""
            lines.append(
                f"{level}{one.used:,} of {one.entries:,} entries are used ({one.share:.0%}), with "
                f"a perplexity of {one.perplexity:.1f}, in {one.codes:,} places"
            )
    elif bool((on := codes.z != 0).logical_not().any()):
        lines += [
            "",
            f"{float(on.sum(1).double().mean()):,.1f} of {units:,} units are not 0, on average; "
            f"{int(on.any(0).sum()):,} are not 0 for some sample",
        ]
    return "\n".join(lines)


def _json(found: Reconstructions, used: dict[str, Usage]) -> str:
    import json

    from ornstein.metrics.codes import active_units

    codes = found.codes
    names = {"PSNR as given, dB": "psnr_as_given", "SSIM as given": "ssim_as_given"}
    names |= {"PSNR, dB": "psnr", "SSIM": "ssim"}
    record: dict[str, Any] = {"samples": len(codes.ids), "units": codes.z.shape[1]}
    record |= {names[name]: of.model_dump() for name, of in found.numbers().items()}
    kl = codes.kl
    if kl is not None:
        record |= {"active_units": active_units(codes.z), "kl": kl.tolist()}
    if "" in used:
        record["codebook"] = used[""]._asdict()
    elif used:
        record["codebooks"] = {name: one._asdict() for name, one in used.items()}
    return json.dumps(record, indent=1)
