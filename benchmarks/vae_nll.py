"""How likely a VAE finds unseen binary images after a fixed time of training, beside pythae's.

    python benchmarks/vae_nll.py PATH_TO_MNIST [--peers PYTHON] [--seconds 120] [--seeds 3]
        [--rates 5e-4,1e-3,2e-3] [--number 1000] [--draws 1000] [--threads 2] [--only NAME,NAME]

Every contender trains for the same wall-clock on the same threads and images, whose grey values are
chances of white, drawn anew for every epoch; codes have 16 numbers, batches 128 images. It trains
once for each learning rate; its best one is trained again from the other seeds. Then one estimator,
`ornstein.autoencoders.bounds.nats`, scores all weights on the same drawings of `--number` held-out
images: the ELBO, and −log p(x) by importance sampling with `--draws` draws of z. Imports and
scoring are not counted. The best rate is chosen on these images, for all contenders alike.

recipe     ornstein's recipe `vae`, for this time: 784-512-256-16, SiLU
same       the same with pythae's network: 784-512-16, ReLU
pythae     its VAE and its trainer as they are: Adam with a constant rate, torch's DataLoader; it
           ends with the epoch whose end is nearest to the time
bare       the same VAE with a loop of four lines instead of the trainer

pythae (C. Chadebec et al. 2022, arXiv:2206.08309) is not part of this project, and lives in an
environment of its own with the same torch: pip install pythae. Its own estimate of log p of the
first `--check` images, with as many draws, stands beside ours of the same.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BATCH, UNITS = 128, 16
CONTENDERS = ("recipe", "same", "pythae", "bare")


def recipe_of(name: str, rate: float, seed: int) -> Any:
    from ornstein.nn.codecnets import Dense
    from ornstein.recipe import named

    recipe = named("vae").but(seed=seed)
    model = recipe.model.but(units=UNITS)
    if name != "recipe":
        model = model.but(nets=Dense(hidden=(512,), activation="relu"))
    return recipe.but(model=model, optim=recipe.optim.but(lr=rate, batch=BATCH))


def ours(name: str, stored: Any, asked: argparse.Namespace) -> tuple[dict[str, Any], int, float]:
    import numpy as np

    from ornstein.data.info import DataInfo, Dataset
    from ornstein.data.stream import Stream
    from ornstein.prepare import update_seconds
    from ornstein.training import TrainState, train

    info = DataInfo.model_validate_json(str(stored["info"]))
    dataset = Dataset(info, stored["x"], None, np.arange(len(stored["x"])), np.arange(0))
    recipe = recipe_of(name, asked.rate, asked.seed)
    started = time.monotonic()
    pace = statistics.mean(update_seconds(recipe, dataset, lambda reference: reference))
    left = asked.seconds - (time.monotonic() - started)
    total = recipe.optim.batch * int(0.97 * left / pace)
    optim = recipe.optim.model_copy(update={"samples": total})
    state = TrainState(recipe.learner(info, lambda reference: reference), optim)
    for _ in train(
        state, Stream(dataset, asked.seed, recipe.objective.range), optim, total, asked.seed
    ):
        pass
    spent = time.monotonic() - started
    return next(iter(state.averages.values())).model.state_dict(), total, spent


def theirs(name: str, stored: Any, asked: argparse.Namespace) -> tuple[dict[str, Any], int, float]:
    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    chance = torch.from_numpy(stored["x"]).float() / 255
    model = VAE(
        VAEConfig(input_dim=tuple(chance.shape[1:]), latent_dim=UNITS, reconstruction_loss="bce")
    )
    used, started = 0, time.monotonic()
    if name == "bare":
        optimizer = torch.optim.Adam(model.parameters(), lr=asked.rate)
        while time.monotonic() - started < asked.seconds:
            for rows in torch.randperm(len(chance)).split(BATCH):
                loss = model({"data": torch.bernoulli(chance[rows])}).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                used += len(rows)
                if time.monotonic() - started > asked.seconds:
                    break
    else:
        drawn = BaseDataset(torch.bernoulli(chance), torch.zeros(len(chance)))
        config = BaseTrainerConfig(
            output_dir=tempfile.mkdtemp(dir=asked.out.parent), learning_rate=asked.rate,
            per_device_train_batch_size=BATCH, seed=asked.seed, no_cuda=True,
        )  # fmt: skip
        trainer = BaseTrainer(model, drawn, training_config=config)
        trainer.prepare_training()
        epoch, last = 0, 0.0
        while time.monotonic() - started + last / 2 < asked.seconds:
            before, epoch = time.monotonic(), epoch + 1
            drawn.data = torch.bernoulli(chance)
            trainer.train_step(epoch)
            used, last = used + len(drawn), time.monotonic() - before
    spent = time.monotonic() - started
    found: dict[str, Any] = dict(model.state_dict())
    with torch.no_grad():
        images = torch.from_numpy(stored["check"]).float()
        # It makes whole batches of draws for an image, and at least one.
        size = min(100, asked.draws)
        found["own"] = torch.tensor(-model.eval().get_nll(images, asked.draws, size))
    return found, used, spent


def one(name: str, asked: argparse.Namespace) -> None:
    """Train, and write the weights as plain arrays; print what it took."""
    import numpy as np
    import torch

    torch.set_num_threads(asked.threads)
    torch.manual_seed(asked.seed)
    with np.load(asked.real) as arrays:
        stored = dict(arrays)
    weights, used, spent = (theirs if name in ("pythae", "bare") else ours)(name, stored, asked)
    np.savez(asked.out, **{key: value.numpy() for key, value in weights.items()})
    print(json.dumps({"samples": used, "seconds": spent}))


def codec_of(name: str, arrays: dict[str, Any], info: Any) -> Any:
    """A trained model, of pythae's weights as well: its images lie in [0, 1], ours in [−1, 1]."""
    import torch

    codec = recipe_of(name, 1e-3, 0).model.build(info, lambda reference: reference).eval()
    weights = {key: torch.from_numpy(value) for key, value in arrays.items()}
    if name in ("pythae", "bare"):
        first = weights["encoder.layers.0.0.weight"]
        flat = {
            "encoder.net.0.weight": first / 2,
            "encoder.net.0.bias": weights["encoder.layers.0.0.bias"] + first.sum(1) / 2,
            **{
                f"encoder.net.2.{kind}": torch.cat(
                    [weights[f"encoder.{head}.{kind}"] for head in ("embedding", "log_var")]
                )
                for kind in ("weight", "bias")
            },
            **{
                f"decoder.net.{2 * i}.{kind}": weights[f"decoder.layers.{i}.0.{kind}"]
                for i in (0, 1)
                for kind in ("weight", "bias")
            },
        }
        weights = flat
    codec.load_state_dict(weights)
    return codec


def scored(codec: Any, info: Any, x: Any, draws: int) -> Any:
    """−log p of each binary image x at the model's scale by so many draws, float64 [N]."""
    import torch

    from ornstein.autoencoders.bounds import nats
    from ornstein.noise import Noise

    parts = torch.arange(len(x)).split(100)
    return torch.cat(
        [nats(codec, info, x[ids], Noise.of(0, "vae_nll", ids), draws).total for ids in parts]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--rates", default="5e-4,1e-3,2e-3")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--check", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default=",".join(CONTENDERS))
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
    import torch

    from ornstein.autoencoders.laws import BernoulliModule
    from ornstein.data.info import drawn
    from ornstein.data.sources import recognise
    from ornstein.noise import Noise

    torch.set_num_threads(asked.threads)
    dataset = recognise(asked.data).load()
    info = dataset.info.scaled((-1.0, 1.0))
    ids = drawn(dataset.held_out, asked.number)
    law = BernoulliModule(info, "random")
    # What is binary already stays so: all contenders are asked for the same images.
    x = law.seen(dataset.batch(ids, (-1.0, 1.0)).x, Noise.of(0, "binarise", len(ids)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(
            folder / "real.npz", x=dataset.x[dataset.train],
            info=dataset.info.model_dump_json(), check=(x[: asked.check] > 0).numpy(),
        )  # fmt: skip

        def trained(contender: str, rate: float, seed: int) -> dict[str, Any] | None:
            python = sys.executable if contender in ("recipe", "same") else asked.peers
            out = folder / "weights.npz"
            command = [python, __file__, asked.data, "--one", contender, "--rate", str(rate)]
            command += ["--seed", str(seed), "--seconds", str(asked.seconds), "--out", str(out)]
            command += ["--threads", str(asked.threads), "--draws", str(asked.draws)]
            done = subprocess.run(
                [*command, "--real", str(folder / "real.npz")],
                capture_output=True, text=True, check=False,
                env={**os.environ, "OMP_NUM_THREADS": str(asked.threads)},
            )  # fmt: skip
            if done.returncode:
                print(f"{contender}: {done.stderr.strip()[-500:]}", file=sys.stderr)
                return None
            with np.load(out) as stored:
                arrays = dict(stored)
            own = arrays.pop("own", None)
            codec = codec_of(contender, arrays, info)
            elbo, nll = (scored(codec, info, x, draws) for draws in (1, asked.draws))
            row = {
                "rate": rate, "seed": seed, **json.loads(done.stdout.splitlines()[-1]),
                "elbo": elbo.mean().item(), "nll": nll.mean().item(),
                "error": nll.std().item() / math.sqrt(len(nll)),
                "check": nll[: asked.check].mean().item(),
                "own": None if own is None else float(own),
            }  # fmt: skip
            print(json.dumps({"contender": contender, **row}), file=sys.stderr, flush=True)
            return row

        head = ["contender", "rate", "seed", "images seen", "seconds", "images/s", "ELBO, nats"]
        head += [f"−log p, K = {asked.draws:,}", f"of {asked.check}", "by its own"]
        print("|", " | ".join(head), "|")
        print(f"|---{'|---:' * (len(head) - 1)}|")
        for contender in asked.only.split(","):
            rows = [trained(contender, float(rate), 0) for rate in asked.rates.split(",")]
            found = [row for row in rows if row is not None]
            if not found:
                continue
            best = min(found, key=lambda row: row["nll"])
            more = [trained(contender, best["rate"], seed) for seed in range(1, asked.seeds)]
            for row in [*found, *(row for row in more if row is not None)]:
                mark = " (best)" if row["rate"] == best["rate"] else ""
                own = "" if row["own"] is None else f"{row['own']:.2f}"
                print(
                    f"| {contender}{mark} | {row['rate']:g} | {row['seed']} | {row['samples']:,} | "
                    f"{row['seconds']:.0f} | {row['samples'] / row['seconds']:,.0f} | "
                    f"{row['elbo']:.2f} | {row['nll']:.2f} ± {1.96 * row['error']:.2f} | "
                    f"{row['check']:.2f} | {own} |",
                    flush=True,
                )
    print(f"\n{len(x):,} held-out images of {dataset.info.name}, made binary by one draw each")


if __name__ == "__main__":
    main()
