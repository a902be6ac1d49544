"""What first stages of different sizes keep of CIFAR-10, and what they cost (notes fig 2-10).

    python benchmarks/rate_distortion.py CIFAR --out docs/rate_distortion.png [--samples 6000]

CIFAR is a folder of `train.parquet` and `test.parquet`. Codecs of f = 2, 4 and 8 are trained on as
many samples each, KL-regularised ones with 2 and 8 channels of a latent, and VQ-regularised ones
with 512 entries of 8 numbers. A run that is finished in `--runs` is used as it is, so that
the same command goes on where it stopped. On held-out images it measures

    rate         KL   E[KL(q(z|x) || N(0, I))] in bits: what the codes cost by the prior
                 VQ   places · log2 K, and entropy-coded by the use of entries: places · H
    distortion   PSNR in dB, SSIM, and d, the distance between features of a classifier of the data
                 (`nn/perceptual.py`): no LPIPS, whose network nobody here has

and the mean and deviation of the latents, by which a model of them would standardise.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ornstein import pictures
from ornstein.autoencoders.bottlenecks import VQ, Gaussian
from ornstein.autoencoders.moments import moments
from ornstein.charts import Curve, Panel, chart
from ornstein.choice import RunRef
from ornstein.data.info import drawn
from ornstein.data.sources import Parquet
from ornstein.features.perceptual import write
from ornstein.metrics.codes import usage
from ornstein.metrics.reconstruction import psnr, ssim
from ornstein.nn.codecnets import Conv
from ornstein.nn.perceptual import PerceptualDistance, read_features
from ornstein.optim import Optim, Power
from ornstein.recipe import Recipe, named
from ornstein.run import Run, codec_of

WIDTHS = {2: (32,), 4: (32, 64), 8: (32, 64, 64)}  # of the nets, in patches of 2 pixels
KINDS: dict[str, dict[str, Any]] = {
    "KL, 2 channels": {"units": 2, "bottleneck": Gaussian()},
    "KL, 8 channels": {"units": 8, "bottleneck": Gaussian()},
    "VQ, 512 entries": {"units": 8, "bottleneck": VQ(codes=512)},
}
HELD_OUT = 2000


def recipe(data: Path, kind: str, f: int, samples: int) -> Recipe:
    """A first stage that reduces sides by f."""
    base = named("autoencoder_kl")
    return base.but(
        data=Parquet(path=str(data)),
        model=base.model.but(nets=Conv(channels=WIDTHS[f], flat=False, patch=2), **KINDS[kind]),
        optim=Optim(lr=2e-3, batch=16, samples=samples, warmup=500, averages=(Power(width=0.07),)),
    )


def trained(data: Path, kind: str, f: int, samples: int, runs: Path) -> tuple[Run, float]:
    """The finished run, and the seconds of processor time that it took just now."""
    name = f"{kind.replace(', ', '-').replace(' ', '-').lower()}-f{f}"
    run = Run.create(recipe(data, kind, f, samples), runs, name=name)
    started = time.process_time()
    for _ in run.train(previews=False):
        pass
    return run, time.process_time() - started


@torch.no_grad()
def measured(run: Run, distance: PerceptualDistance) -> dict[str, float]:
    """Rates and distortions of held-out images."""
    trained = codec_of(RunRef(path=str(run.path)))
    dataset = run.dataset
    x = np.array(dataset.x[drawn(dataset.held_out, HELD_OUT)])
    back, seen, kl, indices = [], [], [], []
    for part in np.array_split(x, max(1, len(x) // 100)):
        batch = trained.seen(part)
        code = trained.codec.encode(batch)
        said = trained.codec.mean(code.z).clamp(-1, 1)
        back.append(run.native(said))
        seen.append(distance(batch, said))
        if code.indices is None:
            kl.append(code.kl)
        else:
            indices.append(code.indices)
    y = np.concatenate(back)
    shape = trained.codec.latent
    places = math.prod(shape[1:])
    found = {"numbers": float(math.prod(shape)), "places": float(places)}
    if indices:
        codes = trained.codec.bottleneck.levels[0].codes  # type: ignore[union-attr, index]
        used = usage(torch.cat(indices), codes)
        found |= {"bits": places * math.log2(codes), "used": used.share}
        found["coded"] = places * math.log2(used.perplexity)
    else:
        found["bits"] = found["coded"] = float(torch.cat(kl).mean()) / math.log(2)
    scale = moments(trained.codec, (trained.seen(p) for p in np.array_split(x, 20)))
    return found | {
        "psnr": float(psnr(x, y, 255.0).mean()),
        "ssim": float(ssim(x, y, 255.0).mean()),
        "d": float(torch.cat(seen).mean()),
        "mean": scale.mean,
        "std": scale.std,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=6_000)
    parser.add_argument("--runs", type=Path, default=Path("runs/rate-distortion"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = Parquet(path=str(asked.data)).load()
    eye = asked.runs / "classifier.safetensors"
    if not eye.exists():
        write(data, eye)
    distance = PerceptualDistance(read_features(eye, data.info.scaled((-1.0, 1.0))))
    print("| codec | f | latent | bits | coded | PSNR | SSIM | d | mean | std | CPU s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    curves: dict[str, list[dict[str, float]]] = {}
    for kind, chosen in KINDS.items():
        for f in sorted(WIDTHS, reverse=True):
            run, seconds = trained(asked.data, kind, f, asked.samples, asked.runs)
            found = measured(run, distance)
            curves.setdefault(kind, []).append(found)
            side = round(found["places"] ** 0.5)
            print(
                f"| {kind} | {f} | {chosen['units']} × {side} × {side} | {found['bits']:,.0f} "
                f"| {found['coded']:,.0f} | {found['psnr']:.2f} | {found['ssim']:.3f} "
                f"| {found['d']:.4f} | {found['mean']:.2f} | {found['std']:.2f} | {seconds:.0f} |",
                flush=True,
            )
    names = {
        "psnr": "PSNR, dB",
        "ssim": "SSIM",
        "d": "distance of a classifier's features",
    }
    panels = [
        Panel(
            [
                Curve([p["coded"] for p in points], [p[key] for p in points], kind, markers=True)
                for kind, points in curves.items()
            ],
            name,
            "bits of an image",
            x_log=True,
        )
        for key, name in names.items()
    ]
    title = "CIFAR-10, held out: f = 8, 4, 2 from left to right"
    asked.out.write_bytes(pictures.png(chart(panels, title=title, size=(240, 216))))
    print(asked.out)


if __name__ == "__main__":
    main()
