"""A small classifier, trained on the data themselves, whose last activations are features.

Published scores use a network trained on ImageNet photographs; for digits, sprites or spectra
that is the wrong eye, and a download. Where the data have classes we train a small eye on them:

    image -> (3x3 convolution, batch norm, ReLU) to 4x4 or less -> mean -> 64 numbers -> classes

The 64 activations before the last layer are the features, divided by one number such that their
variances on the training split add up to 64. So a distance has no units: one point at the mean
of the features is 64 away. Nets of other data or seeds are other eyes: scores compare only
within one extractor, and its name and weights are part of each score.

Only the training split is seen; of images that are decoded as they are asked for, some thousands
of it (`Dataset.some`). Initial weights, order and shifts are keyed by `noise`, so the
net is a pure function of (data, split, seed) on one machine and thread count; other kernels sum
in another order and give weights that differ by rounding, and after a training by more than
that. Therefore the net is cached, and named with the hash of its weights.
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.data.info import DataInfo, Dataset
from ornstein.errors import ConfigError, NumericsError
from ornstein.features.base import check_shape, chunks
from ornstein.features.stored import Stored, digest, kept
from ornstein.noise import Noise, permutation

ARCHITECTURE = "conv-64-v2"
"""Part of every cache key: change it with anything below that changes the trained weights."""

WIDTH = 64  # features of the classifier
_LARGEST = 64  # larger images are averaged to this many pixels a side
_BATCH = 128
_SAMPLES = (384 * _BATCH, 640 * _BATCH)  # shortest and longest training, in samples


class Net(nn.Module):
    """image [B, C, H, W] (standardised) -> class logits [B, K]."""

    def __init__(self, shape: tuple[int, int, int], classes: int):
        super().__init__()
        channels, height, width = shape
        height, width = min(height, _LARGEST), min(width, _LARGEST)
        self.size = (height, width)
        # Sides above 16 are halved at once, which saves most of the work; the others first pass
        # at full resolution. Then halve what is above 4, and look once more.
        strides = [(2 if height > 16 else 1, 2 if width > 16 else 1)]
        height, width = -(-height // strides[0][0]), -(-width // strides[0][1])
        while height > 4 or width > 4:
            strides.append((2 if height > 4 else 1, 2 if width > 4 else 1))
            height, width = -(-height // strides[-1][0]), -(-width // strides[-1][1])
        layers: list[nn.Module] = []
        for out, stride in zip([32, *[64] * len(strides)], [*strides, (1, 1)], strict=True):
            layers += [
                nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            channels = out
        self.layers = nn.Sequential(*layers)
        self.hidden = nn.Linear(channels, WIDTH)
        self.classes = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classes(self.features(x))
        return logits

    def features(self, x: Tensor) -> Tensor:
        """The activations [B, 64] before the last layer, 0 or more."""
        if x.shape[-2:] != self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        # The mean over places keeps texture in the features. Without it (measured on digits) they
        # hold little but the class: noise, blur and the one Gaussian then look three times nearer.
        return F.relu(self.hidden(self.layers(x).mean((2, 3))))


class Classifier:
    """A trained net as an extractor, with class probabilities.

    accuracy: the fraction of held-out samples that it names rightly; None without held-out data.
    scale: the features are the activations times this.
    """

    published = False

    def __init__(self, net: Net, info: DataInfo, seed: int, scale: float, accuracy: float | None):
        self.net = net.eval().requires_grad_(False)
        self.info, self.seed, self.scale, self.accuracy = info, seed, scale, accuracy

    @property
    def name(self) -> str:
        return f"classifier({self.info.name}, seed {self.seed}, {self.weights[:12]})"

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the net's tensors."""
        return digest(dict(self.net.state_dict()))

    @torch.no_grad()
    def features(self, x: np.ndarray) -> Tensor:
        """Float64 [N, 64] of images [N, C, H, W] in native values; all are 0 or more."""
        check_shape(x, self.info)
        parts = [self.net.features(_standardised(x[part], self.info)) for part in chunks(len(x))]
        return (torch.cat(parts) * self.scale).double()  # exact in float32, as the cache keeps it

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        """Float64 [N, classes] for features [N, 64]; rows add up to 1."""
        logits: Tensor = self.net.classes((features / self.scale).float())
        return logits.double().softmax(1)


def cached(dataset: Dataset, seed: int, cache: Path) -> Classifier:
    """The classifier of this data set: read from the folder `cache`, or trained and written there.

    Training takes some seconds. A file that is damaged is made anew. ConfigError if the data have
    no classes, StorageError if the folder cannot be written.
    """
    check(dataset)

    def make() -> Stored:
        made = train_classifier(dataset, seed)
        values = {"scale": made.scale, "accuracy": made.accuracy}
        return Stored(dict(made.net.state_dict()), values)

    tensors, values = kept(cache, "classifier", _about(dataset, seed), make)
    net = _initial(dataset.info, seed)
    net.load_state_dict(tensors)
    return Classifier(net, dataset.info, seed, values["scale"], values["accuracy"])


def classifiable(dataset: Dataset) -> bool:
    """Whether the data are images of two classes or more."""
    info = dataset.info
    return info.kind == "image" and dataset.label is not None and len(info.classes) >= 2


def check(dataset: Dataset) -> None:
    """Raises: ConfigError for data that a classifier cannot be trained on."""
    if not classifiable(dataset) or len(dataset.train) == 0:
        raise ConfigError(
            f"a classifier needs labelled images of two classes or more; {dataset.info.name} has "
            "none: write --extractor pixels"
        )


def train_classifier(dataset: Dataset, seed: int = 0) -> Classifier:
    """Train the small net on the training split.

    1.5 passes, but at least 49,152 and at most 81,920 samples (measured: held-out accuracy 0.99
    on 8x8 digits and 0.985 on MNIST), each shifted by up to a sixteenth of its side, rounded up.
    AdamW at 3e-3 with warm-up over a twentieth and a cosine down to 0, batches of 128 that run
    through one keyed order of the data after another. ConfigError if the images have no classes.
    """
    check(dataset)
    dataset = dataset.some()
    info, labels, train = dataset.info, dataset.label, dataset.train
    assert labels is not None
    net = _initial(info, seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    steps = min(max(3 * len(train) // 2, _SAMPLES[0]), _SAMPLES[1]) // _BATCH
    reach = [-(-side // 16) if side > 4 else 0 for side in info.shape[1:]]
    order = np.empty(0, dtype=np.int64)
    epoch = 0
    for step in range(steps):
        while len(order) < _BATCH:  # every batch is full, also where the data are fewer
            order = np.concatenate((order, permutation(seed, "features/order", epoch, len(train))))
            epoch += 1
        ids, order = train[order[:_BATCH]], order[_BATCH:]
        progress = step / steps
        rate = min(progress / 0.05, 0.5 + 0.5 * math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * rate
        places = range(step * _BATCH, (step + 1) * _BATCH)
        x = _shifted(_standardised(dataset.x[ids], info), reach, Noise.of(seed, "features", places))
        loss = F.cross_entropy(net(x), torch.from_numpy(labels[ids]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    if not math.isfinite(loss.item()):
        raise NumericsError(f"the feature classifier of {info.name} diverged: its loss is {loss}")
    classifier = Classifier(net, info, seed, 1.0, None)
    # The scale needs a variance, not every image: a few thousand give it to about a percent.
    seen = train[np.unique(np.linspace(0, len(train) - 1, 8192).round().astype(np.int64))]
    total = float(classifier.features(dataset.x[seen]).var(0, correction=0).sum())
    classifier.scale = math.sqrt(WIDTH / total) if total > 0 else 1.0
    if len(dataset.held_out):
        seen_not = classifier.features(dataset.x[dataset.held_out])
        guess = classifier.probabilities(seen_not).argmax(1).numpy()
        classifier.accuracy = float((guess == labels[dataset.held_out]).mean())
    return classifier


def _initial(info: DataInfo, seed: int) -> Net:
    """A net with keyed weights: N(0, 2 / inputs) (He et al. 2015, arXiv:1502.01852), biases 0."""
    channels, height, width = info.shape
    with torch.device("meta"):  # no weights, hence no use of the global generator
        net = Net((channels, height, width), len(info.classes))
    net.to_empty(device="cpu")
    noise = Noise.of(seed, "features/weights", 1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()  # constants only
    for draw, (name, weight) in enumerate(sorted(net.named_parameters())):
        with torch.no_grad():
            if weight.dim() > 1:
                std = math.sqrt(2 / weight[0].numel())
                weight.copy_(noise.normal(draw, tuple(weight.shape))[0] * std)
            elif name.startswith(("hidden", "classes")):
                weight.zero_()
    # Channels last: these small convolutions then take half the time on a CPU.
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _shifted(x: Tensor, reach: list[int], noise: Noise) -> Tensor:
    """Each image moved by up to `reach` (rows, columns) pixels; what moves in repeats the edge."""
    batch, channels, height, width = x.shape
    down = noise.integers(0, 2 * reach[0] + 1) - reach[0]
    right = noise.integers(1, 2 * reach[1] + 1) - reach[1]
    rows = (torch.arange(height) + down[:, None]).clamp_(0, height - 1)
    columns = (torch.arange(width) + right[:, None]).clamp_(0, width - 1)
    return x[
        torch.arange(batch)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def _standardised(x: np.ndarray, info: DataInfo) -> Tensor:
    image = torch.from_numpy(np.array(x, dtype=np.float32))
    return image.sub_(info.mean).div_(info.std or 1)


def _about(dataset: Dataset, seed: int) -> dict[str, Any]:
    """Everything that the weights depend on; its hash is the key of the cache."""
    split, dataset = hashlib.sha256(), dataset.some()
    for ids in (dataset.train, dataset.held_out):
        split.update(np.asarray(ids, dtype="<i8").tobytes() + b"/")
    return {
        "architecture": ARCHITECTURE,
        "data": dataset.info.fingerprint,
        "shape": list(dataset.info.shape),
        "classes": list(dataset.info.classes),
        "split": split.hexdigest(),
        "seed": seed,
    }
