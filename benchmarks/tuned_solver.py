"""What a solver fitted to the model is worth: errors and Fréchet distances, beside known solvers.

    ornstein train demo --run digits
    ornstein train edm --data PATH_TO_MNIST --minutes 4 --run mnist
    python benchmarks/tuned_solver.py digits mnist [--runs runs] [--nfe 5,6,8,10]
        [--samples 5000] [--flow]

Each run is tuned for each number of evaluations, unless it has been with these weights. Errors are
those of `ornstein tune`: mean distance to where the flow ends from the same noise, of noises that
the fit has not seen. Then the solvers draw the same samples, from other noises, and one rule scores
them: the Fréchet distance to the training split in the features that `ornstein evaluate` uses.
*Best fixed* is the known solver with the least error; *flow*, with --flow, takes many steps. Scores
are kept with the run, so that a benchmark that was stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ornstein.comparison import Asked, compared
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.tuning import DEFAULT, FITTED, fixed
from ornstein.run import Run
from ornstein.scores import Estimate
from ornstein.tuning import flow_of, tune

STEPS = 32  # of the flow: twenty times nearer to its end than what is compared here


def shown(found: Estimate, form: str) -> str:
    return f"{found.value:{form}} ± {0.5 * (found.high - found.low):{form}}"


def drawn_by(run: Run, how: Sampling, asked: Asked) -> Estimate:
    """The Fréchet distance of what a sampler draws."""
    (row,) = compared([(run, how)], asked)
    if row.scores is None:
        raise row.error or RuntimeError("no scores")
    return row.scores.frechet


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="+")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--nfe", default="5,6,8,10")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flow", action="store_true")
    told = parser.parse_args()
    asked = Asked(n=told.samples, seed=told.seed, likelihood=0)
    print("| run | evaluations | solver | error | Fréchet distance |")
    print("|---|---|---|---|---|")
    for name in told.names:
        run = Run.open(name, told.runs)
        own = run.recipe.generation
        for n in map(int, told.nfe.split(",")):
            record = run.tuned(n)
            if record is None or record.weights != run.weights():
                *_, last = tune(run, [n], seconds=60 * told.minutes)
                record = last.record
            assert record is not None
            known = fixed(flow_of(run), n)
            rows = {"default": known[DEFAULT], f"best fixed: {record.best}": known[record.best]}
            errors = [record.errors[DEFAULT], record.errors[record.best]]
            if record.chosen == FITTED:
                rows["tuned"] = record.generation
                errors.append(record.errors[FITTED])
            for (title, how), error in zip(rows.items(), errors, strict=True):
                update = {"step": how.step, "grid": how.grid, "steps": how.steps}
                frechet = drawn_by(run, own.model_copy(update=update), asked)
                print(
                    f"| {name} | {n} | {title} | {shown(error, '.4f')} | {shown(frechet, '.3f')} |",
                    flush=True,
                )
        if told.flow:
            how = fixed(flow_of(run), STEPS)["corrected multistep of order 3"]
            update = {"step": how.step, "grid": how.grid, "steps": how.steps}
            frechet = drawn_by(run, own.model_copy(update=update), asked)
            print(f"| {name} | {STEPS} | flow | | {shown(frechet, '.3f')} |", flush=True)


if __name__ == "__main__":
    main()
