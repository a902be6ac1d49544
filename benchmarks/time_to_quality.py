"""How good samples are after a fixed time of training, beside other projects.

    EDM_SOURCE=/path/to/edm python benchmarks/time_to_quality.py digits|PATH [--peers PYTHON]
        [--seconds 60] [--rates 3] [--seeds 3] [--threads 2] [--only NAME,NAME]

Every contender trains for the same wall-clock on the same threads and images, once for each of
three learning rates; its best one is trained again from two more seeds. Then it draws 1,000 samples
by its own sampler, and one rule scores all of them: the features of one frozen classifier, Fréchet
distance to the training split, memorised samples beside. Imports and sampling are not counted.

ornstein    the recipe `demo`, beyond digits with the network chosen for the data and a process for
            each thread (on the smallest images one process with all of them is quicker)
edm         SongUNet with EDMPrecond and EDMLoss, Adam, ramped average, Heun's method with 18 steps
lucidrains  Unet and GaussianDiffusion (v, sigmoid), Adam, its EMA, DDIM with 50 steps
diffusers   UNet2DModel and DDPMScheduler, AdamW with warm-up and cosine decay, EMAModel, its
            DDPM sampler with 200 steps (fast solvers diverge after so short a training): the plan
            of its example for unconditional images

Which learning rates: see RATES; the projects' defaults, made for larger networks and days, are
lower. Ours fixes the number of its updates beforehand by a trial of the speed, so its seconds vary:
they are in the table, and the plan leaves a twentieth of the time for that.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RATES = {
    "ornstein": (2e-3, 3e-3, 5e-3),
    "edm": (1e-3, 2e-3, 4e-3),
    "lucidrains": (1e-3, 2e-3, 4e-3),
    "diffusers": (2e-3, 4e-3, 8e-3),
}
BATCH, SAMPLES, TRIAL = 64, 1000, 3.0


class Clock:
    """Seconds of training so far, and how many updates fit into all of them."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.started = seconds, time.monotonic()

    @property
    def spent(self) -> float:
        return time.monotonic() - self.started

    def updates(self, update: Callable[[], None]) -> int:
        """How many more fit, at the speed of a trial that counts."""
        taken: list[float] = []
        begun = time.monotonic()
        while time.monotonic() - begun < min(TRIAL, 0.1 * self.seconds) or len(taken) < 5:
            before = time.monotonic()
            update()
            taken.append(time.monotonic() - before)
        return int((self.seconds - self.spent) / statistics.median(taken[2:]))


def ours(real: Any, rate: float, seed: int, clock: Clock) -> tuple[Any, int]:
    import numpy as np
    import torch

    from ornstein import ranks
    from ornstein.data.info import DataInfo, Dataset
    from ornstein.data.stream import Stream
    from ornstein.noise import Noise
    from ornstein.prepare import update_seconds
    from ornstein.recipe import named
    from ornstein.training import TrainState, train

    info = DataInfo(
        name="real", kind="image", shape=real["x"].shape[1:], range=tuple(real["range"].tolist()),
        bins=int(real["bins"]), count=len(real["x"]), mean=float(real["x"].mean()),
        std=float(real["x"].std()), fingerprint="",
    )  # fmt: skip
    dataset = Dataset(info, real["x"], None, np.arange(len(real["x"])), np.arange(0))
    recipe = named("demo").but(seed=seed)
    optim = recipe.optim.but(lr=rate, minutes=clock.seconds / 60, samples=None)
    model = recipe.model if info.shape[-1] <= 8 else recipe.model.but(network=None)
    recipe = recipe.but(optim=optim, model=model).fitted(info)
    pace = statistics.mean(update_seconds(recipe, dataset, lambda reference: reference))
    total = ranks.from_lead(optim.batch * int(0.86 * (clock.seconds - clock.spent) / pace))
    optim = optim.model_copy(update={"samples": total})
    learner = recipe.learner(info, lambda reference: reference)
    state = TrainState(learner, optim)
    for _ in train(state, Stream(dataset, seed, recipe.objective.range), optim, total, seed):
        pass
    spent = clock.spent
    if not ranks.leads():
        return torch.empty(0), total
    average = next(iter(state.averages.values())).model.eval()
    drawn = []
    with torch.no_grad():
        for start in range(0, SAMPLES, 250):
            noise = Noise.of(seed, "generate", range(start, start + 250))
            *_, x = recipe.generation(average, recipe.at_model_scale(info), noise)
            drawn.append(x)
    clock.started = time.monotonic() - spent
    return torch.cat(drawn), total


def _case(side: int) -> str:
    """Which of `peers.WIDTHS` suits images of this size and little time."""
    return "8" if side <= 8 else "28" if side <= 28 else "32"


def loop(
    clock: Clock, images: Any, seed: int, update: Callable[[Any], None], plan: Callable[[int], None]
) -> int:
    """Update until the time is up; `plan` is told the number of updates once it is known."""
    import torch

    generator = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[Any]:
        while True:
            order = torch.randperm(len(images), generator=generator)
            for part in order.split(BATCH):
                if len(part) == BATCH:
                    yield images[part]

    stream, done = batches(), 0

    def one() -> None:
        nonlocal done
        update(next(stream))
        done += 1

    plan(clock.updates(one) + done)
    while clock.spent < clock.seconds:
        one()
    return BATCH * done


def diffusers(images: Any, rate: float, seed: int, clock: Clock) -> tuple[Any, int]:
    import peers
    import torch

    channels, side = images.shape[1], images.shape[2]
    net = peers.build("diffusers", _case(side), channels, side).module
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(
        net.parameters(), lr=rate, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8
    )
    average = EMAModel(
        net.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75
    )
    step, total, warm = 0, 10**9, 500

    def update(x: Any) -> None:
        nonlocal step
        warmup = min(warm, total // 10)
        share = max(0, step - warmup) / max(1, total - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / max(1, warmup)) * cosine
        noise = torch.randn_like(x)
        t = torch.randint(0, 1000, (len(x),))
        predicted = net(scheduler.add_noise(x, noise, t), t).sample
        torch.nn.functional.mse_loss(predicted, noise).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(net.parameters())
        step += 1

    def plan(updates: int) -> None:
        nonlocal total
        total = updates

    used = loop(clock, images, seed, update, plan)
    spent = clock.spent
    average.copy_to(net.parameters())
    net.eval()
    scheduler.set_timesteps(200)
    x = torch.randn(SAMPLES, channels, side, side)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(net(x, t).sample, t, x).prev_sample
    clock.started = time.monotonic() - spent
    return x, used


def lucidrains(images: Any, rate: float, seed: int, clock: Clock) -> tuple[Any, int]:
    import peers
    import torch

    channels, side = images.shape[1], images.shape[2]
    net = peers.build("lucidrains", _case(side), channels, side).module
    from denoising_diffusion_pytorch import GaussianDiffusion
    from ema_pytorch import EMA

    model = GaussianDiffusion(net, image_size=side, timesteps=1000, sampling_timesteps=50)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99))
    average = EMA(model, beta=0.995, update_every=10)

    def update(x: Any) -> None:
        model((x + 1) / 2).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    used = loop(clock, images, seed, update, lambda updates: None)
    spent = clock.spent
    with torch.no_grad():
        x = average.ema_model.eval().sample(batch_size=SAMPLES) * 2 - 1
    clock.started = time.monotonic() - spent
    return x, used


def edm(images: Any, rate: float, seed: int, clock: Clock) -> tuple[Any, int]:
    import peers
    import torch

    channels, side = images.shape[1], images.shape[2]
    net = peers.build("edm", _case(side), channels, side).module
    from generate import edm_sampler
    from training.loss import EDMLoss
    from training.networks import EDMPrecond

    class Model(EDMPrecond):  # type: ignore[misc]
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.img_resolution, self.img_channels, self.label_dim = side, channels, 0
            self.use_fp16, self.sigma_min, self.sigma_max = False, 0, float("inf")
            self.sigma_data, self.model = float(images.std()), net

    model = Model()
    loss = EDMLoss(sigma_data=model.sigma_data)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.999), eps=1e-8)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    seen = 0

    def update(x: Any) -> None:
        nonlocal seen
        optimizer.zero_grad(set_to_none=True)
        loss(model, x).sum().mul(1 / len(x)).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (seen + BATCH) / 5000)
        for parameter in model.parameters():
            if parameter.grad is not None:
                torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)
        optimizer.step()
        seen += len(x)
        beta = 0.5 ** (len(x) / max(min(500_000, 0.05 * seen), 1e-8))
        for kept, parameter in zip(average.parameters(), model.parameters(), strict=True):
            kept.copy_(parameter.detach().lerp(kept, beta))

    used = loop(clock, images, seed, update, lambda updates: None)
    spent = clock.spent
    with torch.no_grad():
        x = edm_sampler(average, torch.randn(SAMPLES, channels, side, side), None)
    clock.started = time.monotonic() - spent
    return x, used


def one(name: str, asked: argparse.Namespace) -> None:
    """Train, draw, write the samples in native values; print what it took."""
    import numpy as np
    import torch

    torch.set_num_threads(asked.threads)
    torch.manual_seed(asked.seed)
    with np.load(asked.real) as stored:
        real = dict(stored)
    low, high = real["range"]
    clock = Clock(asked.seconds)
    if name == "ornstein":
        from ornstein import ranks

        torch.set_num_threads(asked.threads // ranks.expected())
        with ranks.joined():
            clock = Clock(asked.seconds)
            x, used = ours(real, asked.rate, asked.seed, clock)
            if not ranks.leads():
                return
    else:
        images = torch.tensor(real["x"], dtype=torch.float32)
        images = (images - low) * (2 / (high - low)) - 1
        clock = Clock(asked.seconds)
        contender = {"diffusers": diffusers, "lucidrains": lucidrains, "edm": edm}[name]
        x, used = contender(images, asked.rate, asked.seed, clock)
    spent = clock.spent
    values = ((x.double() + 1) / 2).clamp(0, 1).numpy() * (int(real["bins"]) - 1)
    width = (high - low) / (int(real["bins"]) - 1)
    np.save(asked.out, (np.rint(values) * width + low).astype(np.uint8))
    print(json.dumps({"samples": used, "seconds": spent}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rates", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default=",".join(RATES))
    parser.add_argument("--one", default="")
    parser.add_argument("--real", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.one:
        one(asked.one, asked)
        return

    import numpy as np

    from ornstein.data.images import cache_folder
    from ornstein.data.sources import recognise
    from ornstein.evaluation import reference_for, score
    from ornstein.features.select import extractor_for
    from ornstein.prepare import default_device

    dataset = recognise(asked.data).load()
    eye = extractor_for(dataset, 0, cache_folder(), "classifier", default_device())
    reference = reference_for(dataset, eye, 0, count=SAMPLES, cache=cache_folder())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(
            folder / "real.npz", x=dataset.x[dataset.train],
            range=np.array(dataset.info.range, float), bins=dataset.info.bins,
        )  # fmt: skip

        def trained(contender: str, rate: float, seed: int) -> dict[str, float] | None:
            python = sys.executable if contender == "ornstein" else asked.peers
            start = [python]
            if contender == "ornstein" and dataset.info.shape[-1] > 8 and asked.threads > 1:
                start += ["-m", "torch.distributed.run", "--standalone"]
                start += ["--local-addr", "127.0.0.1", "--nproc-per-node", str(asked.threads), "--"]
            command = [*start, __file__, asked.data, "--one", contender, "--rate", str(rate)]
            command += ["--seed", str(seed), "--seconds", str(asked.seconds)]
            command += ["--threads", str(asked.threads), "--real", str(folder / "real.npz")]
            out = folder / "samples.npy"
            done = subprocess.run(
                [*command, "--out", str(out)], capture_output=True, text=True, check=False,
                env={**os.environ, "OMP_NUM_THREADS": str(asked.threads)},
            )  # fmt: skip
            if done.returncode:
                print(f"{contender}: {done.stderr.strip()[-300:]}", file=sys.stderr)
                return None
            told = json.loads(done.stdout.splitlines()[-1])
            scores = score(dataset, np.load(out), eye, 0, reference)
            row = {
                "rate": rate, "seed": seed, **told,
                "frechet": scores.metrics["frechet"].value,
                "low": scores.metrics["frechet"].low, "high": scores.metrics["frechet"].high,
                "memorised": scores.metrics["memorised"].value,
            }  # fmt: skip
            print(json.dumps({"contender": contender, **row}), file=sys.stderr, flush=True)
            return row

        head = ["contender", "rate", "seed", "samples used", "seconds", "Fréchet distance"]
        print("|", " | ".join([*head, "95 % interval", "memorised"]), "|")
        print("|---|---:|---:|---:|---:|---:|---|---:|")
        for contender in asked.only.split(","):
            rows = [trained(contender, rate, 0) for rate in RATES[contender][: asked.rates]]
            found = [row for row in rows if row is not None]
            if not found:
                continue
            best = min(found, key=lambda row: row["frechet"])
            more = [trained(contender, best["rate"], seed) for seed in range(1, asked.seeds)]
            for row in [*found, *(row for row in more if row is not None)]:
                mark = " (best)" if row["rate"] == best["rate"] else ""
                print(
                    f"| {contender}{mark} | {row['rate']:g} | {row['seed']} | {row['samples']:,} | "
                    f"{row['seconds']:.0f} | {row['frechet']:.2f} | "
                    f"{row['low']:.2f} to {row['high']:.2f} | {row['memorised']:.1%} |",
                    flush=True,
                )
        for what, values in reference.baselines.items():
            print(f"| *{what}* ({values.count:,}) | | | | | {values.values['frechet']:.2f} | | |")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
