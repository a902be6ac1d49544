"""Honest numbers, with everything one needs to believe them.

Generated samples are measured against a split of the data, the training split unless the held-out
one is asked for. Beside them stand other samples, measured by the same rule, without which the
numbers say little:

    halves      two random halves of the reference: about what perfect samples score
    held_out    the held-out split (or train, against that): what other real data score
    gaussian    one Gaussian fitted to the values: what no model should fail to beat

and the fraction of samples that are copies of training data, which a distance alone rewards.
Where images are decoded as they are asked for, some thousands of each split, always the same random
ones, stand for all of it (`Dataset.some`): the reference is of these, and copies are sought among
them. The protocol says how many they are.

Fréchet and kernel distance look at all of the reference. Precision, recall, density and coverage
look at as many real samples, drawn at random, as there are generated ones (fewer of these if the
real ones are fewer): they depend on both counts, and say little where these differ.

What is costly about real data, features and the mean of the kernel, is kept in the cache.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ornstein.data.info import DataInfo, Dataset
from ornstein.errors import ConfigError
from ornstein.features.base import Extractor
from ornstein.features.stored import Stored, kept
from ornstein.metrics.classes import entropy, inception_score
from ornstein.metrics.estimate import estimate, rows
from ornstein.metrics.frechet import Gaussian, fit, frechet
from ornstein.metrics.kernel import kernel_distance, mean_kernel
from ornstein.metrics.memorisation import memorisation, memorisation_threshold
from ornstein.metrics.neighbours import NEIGHBOURS, manifold
from ornstein.metrics.reconstruction import MOST, low_of, psnr, span_of, ssim
from ornstein.nats import Nats, bits_per_dim
from ornstein.noise import Noise, permutation
from ornstein.scores import (
    METRICS,
    Baseline,
    Bound,
    Classes,
    Comparison,
    Estimate,
    Made,
    Metric,
    Protocol,
    Reconstruction,
    Scores,
    Split,
)

GAUSSIAN_SAMPLES = 1000  # at most
_FITTED = 4096  # training images that the one Gaussian is fitted to, at most
_WORDS = {"train": "training", "held_out": "held-out"}


class Real(NamedTuple):
    """Real samples to measure by: features float64 [M, D] in random order, the Gaussian fitted to
    them and their `mean_kernel`."""

    features: Tensor
    gaussian: Gaussian
    kernel: float


class Reference(NamedTuple):
    """What does not depend on the generated samples: made once, used for every score.

    protocol: what these scores will say of how they were made.
    """

    real: Real
    protocol: Protocol
    baselines: dict[Baseline, Comparison]


def reference_for(
    dataset: Dataset,
    extractor: Extractor,
    seed: int = 0,
    *,
    count: int = 1000,
    split: Split = "train",
    cache: Path | None = None,
) -> Reference:
    """The reference for scores of `count` generated samples, with what stands beside them.

    cache: a folder where what is costly about real data is kept; without one nothing is.
    ConfigError for a split with fewer than four samples (a half needs a covariance), StorageError
    if the cache cannot be written.
    """
    searched = None if dataset.most is None else min(dataset.most, len(dataset.train))
    dataset = dataset.some()
    splits: dict[Split, np.ndarray] = {"train": dataset.train, "held_out": dataset.held_out}
    if split not in splits:
        raise ConfigError(f"there is no split {split!r}; write train or held_out")
    other: Split = "held_out" if split == "train" else "train"
    ids, more = splits[split], splits[other]
    if len(ids) < 4:
        raise ConfigError(
            f"scores need at least 4 {_WORDS[split]} samples; {dataset.info.name} has {len(ids)}"
            + ("" if split == "train" else ": write --split train")
        )
    of = {"real": _sha256(dataset, ids)}
    seen = _features(extractor, of, cache, lambda: dataset.x[ids])
    features = seen[permutation(seed, "score/halves", 0, len(seen))]
    real = Real(features, fit(features), _kernel(extractor, of, cache, seen))
    half = len(features) // 2
    second = features[half : 2 * half]
    sets: dict[Baseline, tuple[Tensor, Real]] = {
        "halves": (features[:half], Real(second, fit(second), mean_kernel(second)))
    }
    if len(more) >= 2:
        of = {"real": _sha256(dataset, more)}
        unseen = _features(extractor, of, cache, lambda: dataset.x[more])
        sets[other] = unseen[permutation(seed, "score/other", 0, len(unseen))], real
    drawn = min(count, GAUSSIAN_SAMPLES)
    of = {"gaussian": f"{drawn}, seed {seed}, of {_sha256(dataset, dataset.train)}"}
    fitted = _features(extractor, of, cache, lambda: gaussian_samples(dataset, drawn, seed))
    sets["gaussian"] = fitted, real
    baselines = {
        name: Comparison(
            count=len(given),
            values={k: v.value for k, v in _measured(given, by, extractor, count).items()},
        )
        for name, (given, by) in sets.items()
    }
    protocol = Protocol(
        extractor=extractor.name,
        weights=extractor.weights,
        accuracy=extractor.accuracy,
        names=_names(extractor),
        generated=count,
        reference=len(features),
        split=split,
        data=dataset.info.fingerprint,
        sha256=_sha256(dataset, ids),
        neighbours=NEIGHBOURS,
        compared=min(count, len(features)),
        threshold=memorisation_threshold(dataset.x[dataset.train], dataset.x[dataset.held_out]),
        searched=searched,
        seed=seed,
    )
    return Reference(real, protocol, baselines)


def score(
    dataset: Dataset,
    samples: np.ndarray,
    extractor: Extractor,
    seed: int = 0,
    reference: Reference | None = None,
    *,
    split: Split = "train",
    cache: Path | None = None,
    made: Made | None = None,
) -> Scores:
    """Measure generated `samples` [N, *shape], in the data's native values, N at least 2.

    `reference` is what `reference_for(dataset, extractor, seed, count=N, split=split)` returned,
    to save its seconds when more than one set of samples is scored. made: where they came from.
    A pure function of its arguments. ConfigError for too few samples or another's reference,
    NumericsError for samples whose features are not finite.
    """
    count = len(samples)
    features = rows(extractor.features(samples))
    if reference is None:
        reference = reference_for(dataset, extractor, seed, count=count, split=split, cache=cache)
    protocol = reference.protocol
    made_for = (protocol.extractor, protocol.seed, protocol.generated, protocol.split)
    if made_for != (extractor.name, seed, count, split):
        raise ConfigError(
            f"the reference is for {protocol.generated} samples, the {protocol.split} split, "
            f"{protocol.extractor} and seed {protocol.seed}; make one for {count} samples, the "
            f"{split} split, {extractor.name} and seed {seed}"
        )
    metrics = _measured(features, reference.real, extractor, count)
    known = dataset.x[dataset.some().train]
    metrics["memorised"] = memorisation(samples, known, protocol.threshold)
    return Scores(
        protocol=protocol,
        made=made,
        metrics=metrics,
        baselines=reference.baselines,
        classes=None if extractor.published else _classes(extractor.probabilities(features)),
    )


def reconstruction_of(x: np.ndarray, said: np.ndarray, info: DataInfo) -> Reconstruction:
    """How well images `said` [N, *shape] repeat held-out images x, both in native values."""
    span = span_of(info)
    ratio, alike = psnr(said, x, span).clamp(max=MOST), ssim(said, x, span, low_of(info))
    return Reconstruction(
        psnr=estimate(float(ratio.mean()), ratio),
        ssim=estimate(float(alike.mean()), alike),
        count=len(x),
        split="held_out",
    )


def bound_of(nats: Nats, shape: tuple[int, ...], split: Split) -> Bound:
    """The mean of −log p over real samples of this shape, with its interval and its parts."""
    total = nats.total.double()
    mean = estimate(float(total.mean()), total)
    return Bound(
        nats=mean,
        bits_per_dim=Estimate(
            value=bits_per_dim(mean.value, shape),
            low=bits_per_dim(mean.low, shape),
            high=bits_per_dim(mean.high, shape),
        ),
        parts={k: bits_per_dim(float(v.mean()), shape) for k, v in nats.parts.items()},
        count=len(total),
        split=split,
        exact=nats.exact,
        probes=None
        if nats.error is None
        else bits_per_dim(float(nats.error.double().norm()) / len(total), shape),
    )


def _measured(
    features: Tensor, real: Real, extractor: Extractor, count: int
) -> dict[Metric, Estimate]:
    """The metrics of features [N, D] that are defined; all but the distances of the first `count`.

    What stands beside a model has a count of its own, and is yet looked at as the model is.
    """
    found: dict[Metric, Estimate] = {
        "frechet": frechet(features, real.gaussian),
        "kernel": kernel_distance(features, real.features, real.kernel),
    }
    some = min(count, len(features), len(real.features))
    if some > NEIGHBOURS:
        four = manifold(features[:some], real.features[:some])
        found |= {"precision": four.precision, "recall": four.recall}
        found |= {"density": four.density, "coverage": four.coverage}
    probabilities = extractor.probabilities(features[:count])
    if probabilities is not None:
        found["inception"] = inception_score(probabilities)
    return found


def _names(extractor: Extractor) -> dict[Metric, str]:
    """What each metric may be called: FID is the distance in one network's features only."""
    names: dict[Metric, str] = {metric: metric for metric in METRICS}
    if extractor.published:
        return {**names, "frechet": "FID", "kernel": "KID", "inception": "Inception Score"}
    classes = f"Inception Score (classes of {extractor.name})"
    return {
        **names,
        "frechet": "Fréchet distance",
        "kernel": "kernel distance",
        "inception": classes,
    }


def _classes(probabilities: Tensor | None) -> Classes | None:
    if probabilities is None:
        return None
    counts = torch.bincount(probabilities.argmax(1), minlength=probabilities.shape[1])
    return Classes(
        counts=tuple(counts.tolist()),
        entropy=entropy(counts),
        confidence=float(probabilities.amax(1).mean()),
    )


def _features(
    extractor: Extractor,
    of: dict[str, str],
    cache: Path | None,
    samples: Callable[[], np.ndarray],
) -> Tensor:
    """Features float64 [N, D] of samples, from the cache where a network has looked at them."""

    def make() -> Stored:
        found = extractor.features(samples())
        narrow = found.float()  # which is what networks work in
        return Stored({"features": narrow if torch.equal(narrow.double(), found) else found}, {})

    about = {"extractor": extractor.name, "weights": extractor.weights, **of}
    found = kept(cache if extractor.weights else None, "features", about, make)
    return found.tensors["features"].double()


def _kernel(
    extractor: Extractor, of: dict[str, str], cache: Path | None, features: Tensor
) -> float:
    """The mean kernel of real samples."""

    def make() -> Stored:
        return Stored({}, {"mean": mean_kernel(features)})

    about = {"extractor": extractor.name, "weights": extractor.weights, **of}
    return float(kept(cache, "kernel", about, make).values["mean"])


def _sha256(dataset: Dataset, ids: np.ndarray) -> str:
    """What tells one set of real samples from another: the data, and the samples' numbers."""
    numbers = np.asarray(ids, dtype="<i8").tobytes()
    return hashlib.sha256(dataset.info.fingerprint.encode() + b"/" + numbers).hexdigest()


def gaussian_samples(dataset: Dataset, count: int, seed: int = 0) -> np.ndarray:
    """Samples [count, *shape] of one Gaussian fitted to the training split, clipped to its range.

        x = mean + Zᵀ (X - mean) / √(M - 1),    Z standard normal [M, count]

    has the mean and exactly the covariance of the M samples X, and no D x D matrix is made or
    decomposed. At most 4,096 training samples, keyed by `seed`, are fitted. Float32, native units.
    """
    rows = dataset.some().train
    if len(rows) > _FITTED:
        rows = rows[permutation(seed, "score/fitted", 0, len(rows))[:_FITTED].numpy()]
    x = torch.from_numpy(dataset.x[rows].astype(np.float32)).flatten(1)
    mean = x.mean(0)
    z = Noise.of(seed, "score/gaussian", count).normal(0, (len(x),))
    drawn = torch.addmm(mean, z, x - mean, alpha=1 / math.sqrt(len(x) - 1))
    if dataset.info.range is not None:
        drawn.clamp_(*dataset.info.range)
    return drawn.view(count, *dataset.info.shape).numpy()
