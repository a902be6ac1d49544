"""`ornstein demo`."""

from __future__ import annotations

import time
from pathlib import Path


def demo(*, runs: Path = Path("runs"), seed: int = 0) -> int:
    """Train a diffusion model on real handwritten digits, in about a minute.

    Parameters
    ----------
    runs: Path
        The folder of all runs.
    seed: int
        Seed of initial weights, data order and noise.
    """
    from ornstein.cli.carry import carry_out, say
    from ornstein.cli.request import check_options, request

    begun = time.monotonic()
    asked = request("demo", options={"seed": seed})
    check_options("demo", runs)
    say("a diffusion model learns scikit-learn's 8×8 scans of handwritten digits")
    outcome = carry_out(asked, runs=runs, name=f"demo-{seed}" if seed else "demo")
    if outcome.code:
        return outcome.code

    from ornstein import fsops, pictures
    from ornstein.cli.evaluate import table

    run = outcome.run
    say("drawing 1,000 digits and scoring them")
    real = run.dataset.x[run.dataset.train[:64]]
    scores = run.scores(1000, seed=0, likelihood=0)  # the flow would take seconds more
    drawn = run.generate(64, seed=0)
    image = pictures.beside(pictures.picture(drawn, run.info), pictures.picture(real, run.info))
    path = run.path / "demo.png"
    fsops.replace(path, pictures.png(image))
    print(table(scores))
    print(f"\n{path}: drawn by the model on the left, real digits on the right")
    print(f"in all {time.monotonic() - begun:.0f} s. Try next:")
    print(f"  ornstein sample {run.path} --save gif          the reverse process, animated")
    print("  ornstein train edm --data FOLDER --minutes 10  your own images")
    print("  ornstein recipes                               what else there is")
    return 0
