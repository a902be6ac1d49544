"""One honest number, with everything one needs to believe it.

The reference is the training split. Beside the Fréchet distance of the generated samples stand
three others in the same units, without which it says little:

    halves      two random halves of the training split: about what perfect samples score
    held-out    the held-out split: what new real data score
    gaussian    one Gaussian fitted to the pixels: what no model should fail to beat

and the fraction of samples that are copies of training data, which a distance alone rewards.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ornstein.choice import Choice
from ornstein.data.info import Dataset
from ornstein.errors import ConfigError
from ornstein.features import Classifier, Extractor
from ornstein.metrics import (
    frechet_bootstrap,
    frechet_distance,
    memorisation,
    memorisation_threshold,
    moments,
)
from ornstein.noise import Noise, permutation

GAUSSIAN_SAMPLES = 1000
_FITTED = 4096  # training images that the one Gaussian is fitted to, at most


class Scores(Choice):
    """What generated samples score, and what that is measured against; JSON by `model_dump_json`.

    Never called FID: that name belongs to one network, which is not used here.
    """

    name: Literal["Fréchet distance"] = "Fréchet distance"
    value: float = Field(description="squared Fréchet distance to the training split; 0 is best")
    low: float = Field(description="lower end of the 95 % bootstrap interval")
    high: float = Field(description="upper end of the 95 % bootstrap interval")
    extractor: str = Field(description="whose features; scores compare only within one")
    accuracy: float | None = Field(description="held-out accuracy of the extractor's classifier")
    generated: int = Field(description="generated samples; scores compare only at equal counts")
    reference: int = Field(description="samples of the training split")
    fingerprint: str = Field(description="SHA-256 of the data")
    halves: float = Field(description="distance of two random halves of the training split")
    held_out: float | None = Field(description="distance of the held-out split, if there is one")
    held_out_count: int = Field(description="samples held out; few ones score higher")
    gaussian: float = Field(description="distance of 1,000 samples of one pixel-space Gaussian")
    memorised: float = Field(description="fraction as near to training data as 1 % of unseen data")
    threshold: float = Field(description="that distance: root mean square, native units")
    classes: tuple[int, ...] | None = Field(description="samples taken for each class")
    entropy: float | None = Field(description="of that histogram, nats; log K if all are equal")
    confidence: float | None = Field(description="mean probability of the most likely class")
    seed: int = Field(description="of halves, Gaussian and bootstrap")


class Reference(NamedTuple):
    """What does not depend on the generated samples: made once, used for every score."""

    features: Tensor
    halves: float
    held_out: float | None
    gaussian: float
    threshold: float
    extractor: str
    seed: int


def reference_for(dataset: Dataset, extractor: Extractor, seed: int = 0) -> Reference:
    """The features of the training split, float64 [N, D], and the scores of real data.

    ConfigError for fewer than four training samples: a half needs a covariance.
    """
    train, held_out = dataset.x[dataset.train], dataset.x[dataset.held_out]
    if len(train) < 4:
        raise ConfigError(
            f"scores need at least 4 training samples; {dataset.info.name} has {len(train)}"
        )
    features = extractor.features(train)
    mean, cov = moments(features)
    order = permutation(seed, "score/halves", 0, len(features))
    half = len(features) // 2
    first, second = moments(features[order[:half]]), moments(features[order[half:]])
    unseen = None
    if len(held_out) >= 2:
        unseen = frechet_distance(*moments(extractor.features(held_out)), mean, cov)
    drawn = extractor.features(gaussian_samples(dataset, GAUSSIAN_SAMPLES, seed))
    return Reference(
        features=features,
        halves=frechet_distance(*first, *second),
        held_out=unseen,
        gaussian=frechet_distance(*moments(drawn), mean, cov),
        threshold=memorisation_threshold(train, held_out),
        extractor=extractor.name,
        seed=seed,
    )


def score(
    dataset: Dataset,
    samples: np.ndarray,
    extractor: Extractor,
    seed: int = 0,
    reference: Reference | None = None,
) -> Scores:
    """Measure generated `samples` [N, *shape], in the data's native values, N ≥ 2.

    `reference` is what `reference_for(dataset, extractor, seed)` returned, to save its seconds
    when more than one set of samples is scored. A pure function of its arguments.
    """
    if reference is None:
        reference = reference_for(dataset, extractor, seed)
    elif (reference.extractor, reference.seed) != (extractor.name, seed):
        raise ConfigError(
            f"the reference was made with {reference.extractor} and seed {reference.seed}, "
            f"not with {extractor.name} and seed {seed}; make one for these"
        )
    features = extractor.features(samples)
    value = frechet_distance(*moments(features), *moments(reference.features))
    low, high = frechet_bootstrap(features, reference.features, seed=seed)
    memorised, threshold = memorisation(
        samples, dataset.x[dataset.train], dataset.x[dataset.held_out], reference.threshold
    )
    classes = entropy = confidence = accuracy = None
    if isinstance(extractor, Classifier):
        accuracy = extractor.accuracy
        probabilities = extractor.probabilities(samples)
        confidence = float(probabilities.amax(1).mean())
        counts = torch.bincount(probabilities.argmax(1), minlength=probabilities.shape[1])
        classes = tuple(counts.tolist())
        entropy = sum(n / len(samples) * math.log(len(samples) / n) for n in classes if n)
    return Scores(
        value=value,
        low=low,
        high=high,
        extractor=extractor.name,
        accuracy=accuracy,
        generated=len(samples),
        reference=len(reference.features),
        fingerprint=dataset.info.fingerprint,
        halves=reference.halves,
        held_out=reference.held_out,
        held_out_count=len(dataset.held_out),
        gaussian=reference.gaussian,
        memorised=memorised,
        threshold=threshold,
        classes=classes,
        entropy=entropy,
        confidence=confidence,
        seed=seed,
    )


def gaussian_samples(dataset: Dataset, count: int, seed: int = 0) -> np.ndarray:
    """Samples [count, *shape] of one Gaussian fitted to the training split, clipped to its range.

        x = mean + Zᵀ (X - mean) / √(M - 1),    Z standard normal [M, count]

    has the mean and exactly the covariance of the M samples X, and no D x D matrix is made or
    decomposed. At most 4,096 training samples, keyed by `seed`, are fitted. Float32, native units.
    """
    rows = dataset.train
    if len(rows) > _FITTED:
        rows = rows[permutation(seed, "score/fitted", 0, len(rows))[:_FITTED].numpy()]
    x = torch.from_numpy(dataset.x[rows].astype(np.float32)).flatten(1)
    mean = x.mean(0)
    z = Noise.of(seed, "score/gaussian", count).normal(0, (len(x),))
    drawn = torch.addmm(mean, z, x - mean, alpha=1 / math.sqrt(len(x) - 1))
    if dataset.info.range is not None:
        drawn.clamp_(*dataset.info.range)
    return drawn.view(count, *dataset.info.shape).numpy()
