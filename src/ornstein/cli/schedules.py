"""`ornstein schedules`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ornstein.diffusion.process import Process

DEFAULT = ("tabulated.rule=linear", "tabulated.rule=cosine")
TIMES = (0.001, 0.25, 0.5, 0.75, 1.0)


def schedules(
    *names: str,
    data: str = "digits",
    seed: int = 0,
    out: Path = Path("schedules.png"),
    runs: Path = Path("runs"),
) -> None:
    """Draw noise schedules side by side, and what they do to an image.

    Parameters
    ----------
    names: str
        A kind of process (vp, sub_vp, cosine, ve, straight, tabulated), a recipe, a run or a
        YAML file; settings of its process follow a dot, as in tabulated.rule=cosine,steps=100.
        By default DDPM's linear table against the cosine one.
    data: str
        Whose first training sample the strips show: a folder of images, a .npy or .npz file,
        "digits", or the name of a toy distribution.
    seed: int
        Seed of the noise.
    out: Path
        The picture to write.
    runs: Path
        The folder of all runs.
    """
    from ornstein import fsops
    from ornstein.cli.progress import counted
    from ornstein.data.sources import recognise

    fsops.check_picture(out)
    found = {name: process_of(name, runs) for name in names or DEFAULT}
    source = recognise(data)

    from ornstein import pictures
    from ornstein.schedules import log_snrs, picture

    width = max(map(len, found))
    print("log-SNR 2 log(α/σ)".ljust(width), *(f"{f't = {t:g}':>10}" for t in TIMES))
    for name, process in found.items():
        print(name.ljust(width), *(f"{value:10.2f}" for value in log_snrs(process, TIMES)))
    image = picture(found, source.load(counted("reading")), seed)
    fsops.make_folder(out.parent, "--out")
    fsops.replace(out, pictures.png(image), "--out")
    print(out)


def process_of(word: str, runs: Path) -> Process:
    """The process that a word names: NAME, or NAME.KEY=VALUE,KEY=VALUE with changed settings.

    NAME is a kind of process, or what `ornstein show` takes. Raises: ConfigError, DataError.
    """
    from typing import get_args

    from ornstein.choice import Choice, by_kind, members
    from ornstein.cli.show import recipe_of
    from ornstein.diffusion.process import VP, Process
    from ornstein.errors import ConfigError, nearest
    from ornstein.recipe import names
    from ornstein.settings import resolve

    class Chosen(Choice):
        process: Process = VP()

    head, equals, _ = word.partition("=")
    name = head.rpartition(".")[0] if equals else word
    settings = word[len(name) + 1 :].split(",") if equals else []
    kinds = by_kind(members(get_args(Process)[0]))
    if not name:
        raise ConfigError(f"{word!r} is a setting of no process; write tabulated.{word}, say")
    base: Process
    if name in kinds:
        base = kinds[name]()  # type: ignore[assignment]
    else:
        try:
            model = recipe_of(name, runs).model
        except ConfigError as error:
            if name in names() or "there is no recipe" not in str(error):
                raise
            hint = nearest(name, [*kinds, *names()])
            raise ConfigError(f"there is no process, recipe or run {name!r}{hint}") from error
        if not hasattr(model, "process"):
            raise ConfigError(f"{name} has no noising process; give one that diffuses")
        base = model.process
    changed = [f"process.{setting}" for setting in settings]
    return resolve(Chosen, Chosen(process=base), None, changed).value.process
