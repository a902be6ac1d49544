"""Training an autoencoder by `ornstein` against a bare loop on the same network, and pythae.

    python benchmarks/codec_loop.py DATA [--peers PYTHON] [--recipes vae,vq_vae] [--rounds 5]

DATA: MNIST as Parquet. Each contender does UPDATES updates of the recipe's batch in a process of
its own, in turns, on THREADS threads; the rate is the median over rounds.

    ours    `training.train` with the recipe as it is: keyed noise, averages, clipping, metrics
    bare    the same modules in a loop of six lines: torch's generator for all noise, fused Adam,
            images in memory; no averages, no clipping, no metrics, nothing that could be resumed
    pythae  its own model of the family with nets of the same widths, in its training step
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time

THREADS, UPDATES, WARMUP = 2, 300, 30


def rate_of_ours(data: str, name: str) -> float:
    from ornstein.data.sources import recognise
    from ornstein.data.stream import Stream
    from ornstein.recipe import named
    from ornstein.training import TrainState, train

    recipe = named(name)
    dataset = recognise(data).load()
    fitted = recipe.fitted(dataset.info)
    optim = fitted.optim.model_copy(update={"samples": 10**9, "minutes": None})
    state = TrainState(fitted.learner(dataset.info, lambda _: None), optim)
    stream = Stream(dataset, 0, fitted.objective.range, fitted.augment)
    events = train(state, stream, optim, 10**9, 0)
    started = 0.0
    for event in events:
        if event.step == WARMUP:
            started = time.perf_counter()
        if event.step == WARMUP + UPDATES:
            break
    return UPDATES * optim.batch / (time.perf_counter() - started)


def rate_of_bare(data: str, name: str) -> float:
    """The same modules and the same arithmetic, without what the library adds."""
    import torch

    from ornstein.autoencoders.continuous import GaussianModule
    from ornstein.autoencoders.laws import BernoulliModule
    from ornstein.data.sources import recognise
    from ornstein.recipe import named

    recipe = named(name)
    dataset = recognise(data).load()
    model = recipe.fitted(dataset.info).learner(dataset.info, lambda _: None).model.train()
    objective = recipe.objective
    x = torch.from_numpy(dataset.x[dataset.train].astype("float32")) / 127.5 - 1
    batch = recipe.optim.batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    started = 0.0
    for step in range(WARMUP + UPDATES):
        if step == WARMUP:
            started = time.perf_counter()
        clean = x[torch.randint(len(x), (batch,))]
        if isinstance(model.likelihood, BernoulliModule):
            clean = 2 * torch.bernoulli((clean + 1) / 2) - 1
        seen = clean
        if objective.corruption is not None:
            seen = clean.masked_fill(torch.rand_like(clean) < objective.corruption.p, -1.0)
        if isinstance(model.bottleneck, GaussianModule):
            mean, log_variance = model.encoder(seen).chunk(2, 1)
            std = torch.exp(0.5 * log_variance)
            z = mean + std * torch.randn_like(std)
            kl = 0.5 * (mean**2 + std**2 - 1 - log_variance).sum(1)
            loss = (model.likelihood.nats(model.decoder(z), clean) + kl).mean()
        else:
            code = model.encode(seen)
            loss = model.likelihood.nats(model.decoder(code.z), clean).mean()
            loss = loss + sum(value.mean() for value in code.penalties.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return UPDATES * batch / (time.perf_counter() - started)


def rate_of_pythae(data: str, name: str, hidden: tuple[int, ...], units: int, batch: int) -> float:
    """pythae's model with dense nets of the same widths, in a loop as its trainer has one."""
    import numpy as np
    import torch
    from pythae.data.datasets import BaseDataset, DatasetOutput
    from pythae.models import AE, VAE, AEConfig, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from torch import nn

    def layers(widths: list[int]) -> nn.Sequential:
        parts: list[nn.Module] = []
        for i, (before, after) in enumerate(itertools.pairwise(widths)):
            parts += [nn.SiLU()] if i else []
            parts.append(nn.Linear(before, after))
        return nn.Sequential(*parts)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = layers([784, *hidden, 2 * units])

        def forward(self, x: torch.Tensor) -> ModelOutput:
            mean, log_variance = self.net(x.flatten(1)).chunk(2, 1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = layers([units, *hidden[::-1], 784])

        def forward(self, z: torch.Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(self.net(z)).view(-1, 1, 28, 28))

    x = torch.from_numpy(np.load(data).astype("float32")) / 255
    kind, config = (VAE, VAEConfig) if name == "vae" else (AE, AEConfig)
    settings = {"input_dim": (1, 28, 28), "latent_dim": units}
    model = kind(
        config(**settings, **({"reconstruction_loss": "bce"} if name == "vae" else {})),
        encoder=Encoder(),
        decoder=Decoder(),
    )
    count = (WARMUP + UPDATES) * batch
    rows = torch.arange(count) % len(x)

    class Rows(BaseDataset):
        def __init__(self) -> None:
            super().__init__(x[rows], torch.ones(count))

        def __getitem__(self, i: int) -> DatasetOutput:
            return DatasetOutput(data=self.data[i])

    trainer = BaseTrainer(
        model,
        Rows(),
        training_config=BaseTrainerConfig(
            output_dir="/tmp/pythae-rate", per_device_train_batch_size=batch, num_epochs=1
        ),
    )
    trainer.prepare_training()
    started = time.perf_counter()
    trainer.train_step(1)
    return count / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("--peers", default="")
    parser.add_argument("--recipes", default="autoencoder,vae,denoising_autoencoder,vq_vae")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs="*", default=None)
    args = parser.parse_args()
    if args.one:
        import torch

        torch.set_num_threads(THREADS)
        who, name, *rest = args.one
        if who == "pythae":
            rate = rate_of_pythae(args.data, name, (512, 256), 16, int(rest[0]))
        else:
            rate = {"ours": rate_of_ours, "bare": rate_of_bare}[who](args.data, name)
        print(json.dumps(rate))
        return

    from ornstein.recipe import named

    pixels = ""
    if args.peers:
        import tempfile
        from pathlib import Path

        import numpy as np

        from ornstein.data.sources import recognise

        dataset = recognise(args.data).load()
        pixels = str(Path(tempfile.mkdtemp()) / "x.npy")
        np.save(pixels, dataset.x[dataset.train])
    for name in args.recipes.split(","):
        batch = named(name).optim.batch
        whom = [(sys.executable, "ours", args.data, []), (sys.executable, "bare", args.data, [])]
        if args.peers and name in ("vae", "autoencoder"):
            whom.append((args.peers, "pythae", pixels, [str(batch)]))
        rates: dict[str, list[float]] = {who: [] for _, who, _, _ in whom}
        for _ in range(args.rounds):
            for python, who, data, rest in whom:
                words = [python, __file__, data, "--one", who, name, *rest]
                told = subprocess.run(words, capture_output=True, text=True, check=False)
                if told.returncode:
                    raise SystemExit(told.stderr[-2000:])
                rates[who].append(float(told.stdout.splitlines()[-1]))
        middle = {who: statistics.median(found) for who, found in rates.items()}
        shown = ", ".join(f"{who} {rate:,.0f}" for who, rate in middle.items())
        others = {who: rate for who, rate in middle.items() if who != "ours"}
        ratios = ", ".join(
            f"{middle['ours'] / rate:.2f} of {who}'s" for who, rate in others.items()
        )
        print(f"{name}, batch {batch}: {shown} samples/s; ours {ratios}", flush=True)


if __name__ == "__main__":
    main()
