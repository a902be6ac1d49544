"""Whether TD-VAE's jumps keep the direction, what they err and how long they take, beside steps.

    python benchmarks/td_vae.py [moving_digits moving_shapes] [--samples 64_000]
        [--baseline 64_000] [--number 500] [--context 8] [--horizons 1,2,4,7,12] [--runs FOLDER]
        [--threads 2] [--seed 0] [--animation FILE.gif] [--chart FILE.png] [KEY=VALUE ...]

`td_vae` and its baseline `state_space`, which goes step by step with the same nets, are trained on
the same number of sequences, unless the baseline, whose updates take longer, is given another. Then
held-out sequences (of digits: such as are in no training sequence) are shown up to `--context`
frames, and later frames are predicted:

jumps   td_vae, one jump as far as its reach goes, as few as will do beyond it
steps   td_vae, jumps of 1 only
base    state_space

direction   the share of sequences whose predicted frames 1, 2, ..., 8 ahead move the way that the
            sequence does, by `ornstein.metrics.motion.direction`, each frame having been predicted
            by itself; and, for each horizon h, of those whose frame h ahead is nearer to the last
            one seen moved by h that way than to it moved by h the other way. Where h columns one
            way are as many the other way, no one can say, and there is no number
error       mean square per value, pixels from 0 to 1; `last`: the last frame seen, repeated;
            `mean`: the mean of the training data
time        milliseconds from the belief about one sequence to a frame h ahead, median of 50
bound       on −log p(x) of whole held-out sequences, nats and bits per dimension, for both

The animation shows, one below the other, sequences as they are, by jumps and by the baseline: the
frames that are seen first, then what is predicted from them. Run again, only what is not trained
yet is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ornstein import Run
from ornstein.autoencoders.rollout import predict
from ornstein.charts import Curve, Panel, chart
from ornstein.cli.request import request
from ornstein.data.moving import factors
from ornstein.forecast import forecast
from ornstein.metrics.motion import direction
from ornstein.nats import bits_per_dim
from ornstein.noise import Noise
from ornstein.pictures import animation, as_bytes, grid

SUCCESSIVE = 8  # frames whose direction is judged
SHOWN = 8  # sequences in the animation
WAYS = {"jumps": ("td_vae", None), "steps": ("td_vae", 1), "base": ("state_space", None)}


class Seen(NamedTuple):
    """Held-out sequences [n, T, C, H, W] in native values, and which way they go, ±1."""

    x: np.ndarray
    direction: np.ndarray


def trained(name: str, data: str, options: argparse.Namespace) -> Run:
    """The run of a recipe on some data, trained to its end."""
    samples = options.samples if name == "td_vae" else options.baseline or options.samples
    length = {"optim.samples": samples, "seed": options.seed}
    words = [word for word in options.overrides if name == "td_vae" or "reach" not in word]
    asked = request(name, data, None, length, words).recipe
    tag = "-".join([name, data, str(samples), f"seed{options.seed}"])
    run = Run.create(asked, options.runs, tag)
    started = time.monotonic()
    for _ in run.train(previews=False):
        pass
    spent = time.monotonic() - started
    print(f"{tag}: {run.samples:,} sequences, {spent:.0f} s in this call", flush=True)
    return run


def seen(run: Run, number: int) -> Seen:
    """The first held-out sequences."""
    dataset, data = run.dataset, run.recipe.data
    ids = dataset.held_out[:number]
    known = factors(data.name, data.count, data.size, data.speed, data.seed)  # type: ignore[union-attr]
    return Seen(dataset.x[ids], known.direction[ids])


def kept(frames: np.ndarray, truth: np.ndarray, speed: int = 1) -> float:
    """The share of sequences whose frames [n, T, C, H, W] move the right way."""
    return float((direction(frames, speed) == truth).mean())


def milliseconds(run: Run, x: np.ndarray, horizon: int, longest: int | None) -> float:
    """From the belief about one sequence to the frame so far ahead, less what the belief takes."""
    model: Any = run.learner().model
    part = run.dataset.batch(run.dataset.held_out[:1], run.recipe.objective.range).x
    part = part[:, : x.shape[1]]
    noise = Noise.of(0, "time", 1)
    spent = []
    for _ in range(50):
        started = time.perf_counter()
        with torch.no_grad():
            model.state(part, noise)
        between = time.perf_counter()
        predict(model, part, [horizon], noise, longest)
        spent.append((time.perf_counter() - between) - (between - started))
    return 1000 * statistics.median(spent)


def measured(data: str, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Print the tables of one data set; the errors by way."""
    runs = {name: trained(name, data, options) for name in ("td_vae", "state_space")}
    held = seen(runs["td_vae"], options.number)
    before, after = held.x[:, : options.context], held.x[:, options.context :]
    span = (runs["td_vae"].info.range or (0.0, 1.0))[1]
    horizons = [h for h in options.horizons if h <= after.shape[1]]
    all_of = range(1, after.shape[1] + 1)
    said = {
        way: forecast(runs[name], before, all_of, longest=longest)
        for way, (name, longest) in WAYS.items()
    }
    print(f"\n{data}: {len(before)} held-out sequences, {options.context} frames seen")
    print(f"direction of {SUCCESSIVE} predicted frames, each by itself")
    for way, frames in said.items():
        print(f"  {way:6}{kept(frames[:, :SUCCESSIVE], held.direction):8.1%}")
    speed, width = runs["td_vae"].recipe.data.speed, before.shape[-1]  # type: ignore[union-attr]
    print("horizon " + "".join(f"{h:9}" for h in horizons))
    for way, frames in said.items():
        row = f"{way:6}dir"
        for h in horizons:
            moved = h * speed % width
            told = 2 * moved % width != 0
            pair = np.stack((before[:, -1], frames[:, h - 1]), axis=1)
            row += f"{kept(pair, held.direction, moved):9.1%}" if told else "        -"
        print(row)
    errors = {}
    mean = np.full_like(after, 0, dtype=np.float64) + runs["td_vae"].info.mean
    still = np.repeat(before[:, -1:], after.shape[1], axis=1)
    for way, frames in {**said, "last": still, "mean": mean}.items():
        square = np.square((frames.astype(np.float64) - after) / span).mean((0, 2, 3, 4))
        errors[way] = square
        print(f"{way:6}err" + "".join(f"{square[h - 1]:9.4f}" for h in horizons))
    for way, (name, longest) in WAYS.items():
        times = [milliseconds(runs[name], before, h, longest) for h in horizons]
        print(f"{way:6}ms " + "".join(f"{t:9.2f}" for t in times))
    for name, run in runs.items():
        nats = run.nats(held.x).total.numpy()
        error = nats.std(ddof=1) / len(nats) ** 0.5
        bits = bits_per_dim(float(nats.mean()), run.info.shape)
        print(f"{name}: −log p(x) ≤ {nats.mean():,.1f} ± {error:.1f} nats, {bits:.3f} bits/dim")
    if options.animation is not None:
        path = options.animation.with_stem(f"{options.animation.stem}-{data}")
        path.write_bytes(film(held.x, said, options.context, runs["td_vae"]))
    return errors


def film(x: np.ndarray, said: dict[str, np.ndarray], context: int, run: Run) -> bytes:
    """Sequences as they are, by jumps and by the baseline, one row each, as a GIF."""
    rows = [x[:SHOWN]]
    for way in ("jumps", "base"):
        rows.append(np.concatenate((x[:SHOWN, :context], said[way][:SHOWN]), axis=1))
    info = run.info.model_copy(update={"kind": "image", "shape": run.info.shape[1:]})
    pictures = []
    for t in range(x.shape[1]):
        now = np.concatenate([row[:, t] for row in rows])
        pictures.append(grid(as_bytes(now, info), SHOWN))
    return animation(pictures, 200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("words", nargs="*", help="data sets, and KEY=VALUE for both recipes")
    parser.add_argument("--samples", type=int, default=64_000)
    parser.add_argument("--baseline", type=int)
    parser.add_argument("--number", type=int, default=500)
    parser.add_argument("--context", type=int, default=8)
    parser.add_argument("--horizons", default="1,2,4,7,12")
    parser.add_argument("--runs", type=Path, default=Path("runs/td_vae"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--animation", type=Path)
    parser.add_argument("--chart", type=Path)
    options = parser.parse_args()
    options.horizons = [int(h) for h in options.horizons.split(",")]
    options.overrides = [word for word in options.words if "=" in word]
    data = [word for word in options.words if "=" not in word]
    torch.set_num_threads(options.threads)
    panels = []
    for name in data or ["moving_digits", "moving_shapes"]:
        errors = measured(name, options)
        curves = [
            Curve(np.arange(1, len(square) + 1), square, way) for way, square in errors.items()
        ]
        panels.append(Panel(curves, f"{name}: mean square", "frames ahead"))
    if options.chart is not None:
        chart(panels).save(options.chart)


if __name__ == "__main__":
    main()
