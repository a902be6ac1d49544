"""`ornstein paths`."""

from __future__ import annotations

from pathlib import Path

# VE with σ_max by NCSNv2's rule, the largest distance in data like these.
DEFAULT = ("vp", "ve.sigma_max=4", "sub_vp")


def paths(
    *names: str,
    seed: int = 0,
    out: Path = Path("paths.png"),
    runs: Path = Path("runs"),
) -> None:
    """Draw paths of a diffusion in one dimension: data to noise, and back by SDE and by flow.

    Parameters
    ----------
    names: str
        A kind of process (vp, sub_vp, cosine, ve, straight, tabulated), a recipe, a run or a
        YAML file; settings of its process follow a dot, as in ve.sigma_max=10. By default vp,
        ve and sub_vp.
    seed: int
        Seed of the noise.
    out: Path
        The picture to write.
    runs: Path
        The folder of all runs.
    """
    from ornstein import fsops
    from ornstein.cli.schedules import process_of

    fsops.check_picture(out)
    found = {name: process_of(name, runs) for name in names or DEFAULT}

    from ornstein import pictures
    from ornstein.paths import WEIGHTS, picture, portrait, shares, vertical

    for process in found.values():
        vertical(process)  # refuses one whose ends are left to data
    width = max(map(len, [*found, "data"]))
    print("share of each mode".ljust(width + 20), *(f"{share:6.3f}" for share in WEIGHTS))
    drawn = {}
    for name, process in found.items():
        drawn[name] = process, (one := portrait(process, seed))
        for kind, ends in (("reverse SDE", one.of_sde), ("probability flow", one.of_flow)):
            arrived = (f"{share:6.3f}" for share in shares(ends))
            print(f"{name:{width}}  {kind:<18}", *arrived)
    fsops.make_folder(out.parent, "--out")
    fsops.replace(out, pictures.png(picture(drawn)), "--out")
    print(out)
