"""What β buys and costs (notes eq 8-10): disentanglement against reconstruction on `shapes`.

    python benchmarks/disentanglement.py [PICTURE.png] [--runs FOLDER] [--seeds 5] [--first 0]
        [--betas 1,4,16,32,64,256] [KEY=VALUE ...]

A VAE is trained with each β and each seed, β = 1 being the plain VAE, all else equal, and scored by
`ornstein.disentangling`, on images that none has seen: MIG, SAP, the three parts of DCI, and the
β-VAE metric; beside them PSNR of reconstructions and the mean KL in nats. Each number is a mean
over seeds and its 95 % interval (Student's t); seeds vary weights, noise and the order of the data.
The last lines say by how much each β is above β = 1, the intervals those of the difference of two
means (B. Welch 1947). The picture draws scores over β, and the trade-off: scores over PSNR.

What is trained, and why: `shapes` as they are (one shape, 32 × 32 pixels); dense nets, so that a
run takes about a minute on one core; 10 units, more than there are factors; a normal likelihood
with a fixed std of 0.1 (of a range of 2), about the error that is left, so that β = 1 is the ELBO
of a model that fits. β means something only beside that: for the mean alone, β and std count as
β std², and β = 50 with a std of 0.1 is β = 1 with √½, squared errors. What was tried was tried with
seeds 100 to 102. Scores are kept with the runs, so that a benchmark that was stopped goes on;
KEY=VALUE changes the recipe.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from ornstein import pictures
from ornstein.autoencoders.likelihoods import Normal
from ornstein.autoencoders.model import Autoencoder
from ornstein.charts import Curve, Panel, chart
from ornstein.data.sources import Shapes
from ornstein.disentangling import disentanglement, drawn, images
from ornstein.metrics.reconstruction import psnr, span_of
from ornstein.nn.codecnets import Dense
from ornstein.noise import Noise
from ornstein.objectives.autoencoding import Autoencoding, Beta
from ornstein.optim import Optim
from ornstein.recipe import Recipe, named
from ornstein.run import Run
from ornstein.settings import resolve

MODEL = Autoencoder(nets=Dense(hidden=(256, 128)), units=10, likelihood=Normal(std=0.1))
OPTIM = Optim(lr=3e-3, batch=64, samples=192_000)
SCORES = {
    "mig": "MIG",
    "sap": "SAP",
    "disentanglement": "DCI, disentanglement",
    "completeness": "DCI, completeness",
    "informativeness": "DCI, informativeness",
    "beta_vae": "β-VAE metric",
}
OTHERS = {"psnr": "PSNR", "kl": "KL"}
DRAWN = ("mig", "sap", "disentanglement", "completeness")
COUNT = 2000  # images of PSNR and KL


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("picture", nargs="?", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--betas", default="1,4,16,32,64,256")
    told, overrides = parser.parse_known_args()
    seeds = range(told.first, told.first + told.seeds)
    found: dict[float, list[dict[str, float]]] = {}
    for beta in map(float, told.betas.split(",")):
        found[beta] = []
        for seed in seeds:
            scores = scored(recipe(beta, seed, overrides), told.runs)
            found[beta].append(scores)
            print(f"β {beta:g}, seed {seed}: {_line(scores)}", flush=True)
    print(table(found))
    if told.picture is not None:
        told.picture.write_bytes(pictures.png(chart(panels(found))))
        print(told.picture)


def recipe(beta: float, seed: int, overrides: Sequence[str]) -> Recipe:
    """The VAE of this β and seed."""
    base = named("vae" if beta == 1 else "beta_vae").but(
        data=Shapes(),
        model=MODEL,
        objective=Autoencoding(divergence=Beta(weight=beta)),
        optim=OPTIM,
        seed=seed,
    )
    return resolve(Recipe, base, overrides=overrides).value


def scored(asked: Recipe, runs: Path) -> dict[str, float]:
    """The scores of a run by name, trained and scored unless it has been."""
    run = Run.create(asked, runs)
    kept = run.path / "disentanglement.json"
    if run.finished and kept.exists():
        known: dict[str, float] = json.loads(kept.read_text())
        return known
    for _ in run.train(previews=False):
        pass
    of_code = disentanglement(run)
    scores = {
        "mig": of_code.mig.value,
        "sap": of_code.sap.value,
        "disentanglement": of_code.dci.disentanglement,
        "completeness": of_code.dci.completeness,
        "informativeness": of_code.dci.informativeness.value,
        "beta_vae": of_code.beta_vae.value,
        **reconstruction(run),
    }
    kept.write_text(json.dumps(scores))
    return scores


@torch.no_grad()
def reconstruction(run: Run) -> dict[str, float]:
    """Mean PSNR in dB of reconstructions of images that were not trained on, and KL in nats."""
    noise = Noise.of(1, "benchmark/images", COUNT)
    x = torch.from_numpy(images(drawn(COUNT, 1), noise, run.info.shape[-1])).float()
    a, b = run.info.affine(run.recipe.objective.range)
    model = run.learner().model
    code = model.encode(a * x + b)
    restored = (model.mean(code.z) - b) / a
    return {
        "psnr": float(psnr(restored, x, span_of(run.info)).mean()),
        "kl": float(code.kl.mean()),
    }


def interval(values: np.ndarray) -> tuple[float, float]:
    """The mean over seeds and half of its 95 % interval."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Mean of a less that of b, and half of its 95 % interval."""
    errors = [v.var(ddof=1) / len(v) for v in (a, b)]
    freedom = sum(errors) ** 2 / sum(
        e**2 / (len(v) - 1) for e, v in zip(errors, (a, b), strict=True)
    )
    return float(a.mean() - b.mean()), float(stats.t.ppf(0.975, freedom) * np.sqrt(sum(errors)))


def table(found: dict[float, list[dict[str, float]]]) -> str:
    """Means over seeds by β as Markdown, and what is above the first."""
    names = {**SCORES, **OTHERS}
    lines = [f"| β | {' | '.join(names.values())} |", "|---" * (len(names) + 1) + "|"]

    def row(label: str, numbers: list[tuple[float, float]], sign: str = "") -> str:
        cells = [
            f"{mean:{sign}{form}} ± {half:{form}}"
            for (mean, half), form in zip(
                numbers, [".3f"] * len(SCORES) + [".2f", ".1f"], strict=True
            )
        ]
        return f"| {label} | {' | '.join(cells)} |"

    columns = {
        beta: [np.array([scores[name] for scores in seeds]) for name in names]
        for beta, seeds in found.items()
    }
    first = next(iter(columns))
    lines += [row(f"{beta:g}", [interval(v) for v in of]) for beta, of in columns.items()]
    lines += [
        row(
            f"{beta:g} less {first:g}",
            [difference(a, b) for a, b in zip(of, columns[first], strict=True)],
            "+",
        )
        for beta, of in columns.items()
        if beta != first
    ]
    return "\n".join(lines)


def panels(found: dict[float, list[dict[str, float]]]) -> list[Panel]:
    """Scores over β, and over PSNR, with intervals over seeds."""
    betas = list(found)

    def over(name: str) -> np.ndarray:
        return np.array([interval(np.array([s[name] for s in found[beta]])) for beta in betas])

    quality = over("psnr")[:, 0]
    curves: list[list[Curve]] = [[], []]
    for name in DRAWN:
        mean, half = over(name).T
        for x, into in ((betas, curves[0]), (quality, curves[1])):
            into.append(Curve(x, mean, SCORES[name], mean - half, mean + half, markers=True))
    top = max(float(np.max(c.high)) for c in curves[0])
    return [
        Panel(curves[0], "Scores of the code", "β", x_log=True, y_range=(0, top)),
        Panel(
            curves[1],
            f"What they cost: β from {betas[-1]:g} (left) to {betas[0]:g}",
            "PSNR of reconstructions, dB",
            y_range=(0, top),
        ),
    ]


def _line(scores: dict[str, float]) -> str:
    return ", ".join(f"{label} {scores[name]:.3f}" for name, label in {**SCORES, **OTHERS}.items())


if __name__ == "__main__":
    main()
