"""`ornstein sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter


def sample(
    run: str,
    *overrides: str,
    n: Annotated[int, Parameter(name=["--number", "-n"])] = 64,
    seed: int = 0,
    steps: int | None = None,
    nfe: int | None = None,
    out: Path | None = None,
    save: Literal["grid", "png", "npz", "gif", "all"] = "grid",
    average: str = "",
    gpus: int | None = None,
    runs: Path = Path("runs"),
) -> int:
    """Draw samples from a run: a grid, single images, an array, or an animation.

    Of sequences, the grid and the images show one frame beside the other, and the animation runs
    in their own time.

    Parameters
    ----------
    run: str
        A run's name or folder.
    overrides: str
        How to generate, such as step=jump step.eta=1 grid=trailing.
    n: int
        How many samples; sample i depends on the seed and i only.
    seed: int
        Seed of the samples.
    steps: int
        Steps of the sampler.
    nfe: int
        Evaluations of the network for a sample: by what `ornstein tune` has fitted for so many, or
        by the default solver.
    out: Path
        Where to write; by default the folder `samples` of the run.
    save: Literal["grid", "png", "npz", "gif", "all"]
        One grid, one PNG a sample, an array in native values, or an animation: of the reverse
        process, or of sequences.
    average: str
        Which average of the weights; "none" for the last weights.
    gpus: int
        How many GPUs of this machine work together, each with a process; without GPUs, how many
        processes share the processor.
    runs: Path
        The folder of all runs.
    """
    import hashlib
    import io

    import numpy as np

    from ornstein import fsops, pictures, ranks
    from ornstein.cli.request import budgeted
    from ornstein.cli.together import together
    from ornstein.errors import ConfigError
    from ornstein.run import Run

    def work() -> None:
        opened = Run.open(run, runs)
        chosen, changed = budgeted(opened, nfe, steps, overrides, average)
        how = f"seed{seed}" + (f"-{average}" if average else "")
        if changed:
            digest = hashlib.sha256(chosen.model_dump_json().encode()).hexdigest()[:6]
            how = f"{chosen.stem}-{digest}-{how}"
        folder, option = (opened.path / "samples", "--runs") if out is None else (out, "--out")
        fsops.check_folder(folder, option)
        moves = opened.info.kind == "sequence"
        drawable = moves or opened.info.kind == "image"
        if save == "png" and not drawable:
            raise ConfigError(f"the samples of {run} are no images; write --save npz")
        everything = ("grid", "png", "npz", "gif") if drawable else ("grid", "npz", "gif")
        wanted = everything if save == "all" else (save,)

        def put(name: str, content: bytes) -> None:
            if not ranks.leads():
                return
            fsops.make_folder(folder, option)
            fsops.replace(folder / name, content, option)

        def write(name: str, content: bytes) -> None:
            put(name, content)
            print(folder / name)

        if moves or set(wanted) - {"gif"}:
            count = min(n, 64) if wanted == ("gif",) else n
            x = opened.generate(count, seed, generation=chosen, average=average)
            if "grid" in wanted:
                write(f"grid-{how}.png", pictures.png(pictures.picture(x, opened.info)))
            if "npz" in wanted:
                buffer = io.BytesIO()
                np.savez_compressed(buffer, samples=x)
                write(f"samples-{how}.npz", buffer.getvalue())
            if "png" in wanted:
                for i, one in enumerate(x):
                    image = pictures.single(one, opened.info)
                    put(f"{how}-{i:05d}.png", pictures.png(image))
                print(f"{folder}/{how}-*.png: {len(x)} images")
            if "gif" in wanted and moves:
                write(f"motion-{how}.gif", pictures.animation(pictures.motion(x[:64], opened.info)))
        if "gif" in wanted and not moves and ranks.leads():
            states = opened.states(min(n, 64), seed, generation=chosen, average=average)
            kept = states[:: max(1, len(states) // 60)]
            kept = kept if kept[-1] is states[-1] else [*kept, states[-1]]
            frames = [pictures.picture(state, opened.info) for state in kept]
            write(f"reverse-{how}.gif", pictures.animation(frames))

    return together(gpus, work)
