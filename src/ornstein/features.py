"""What a Fréchet distance looks at: features of a small classifier, or pixels.

A distance of means and covariances is only as good as the space it is taken in. Published scores
use a network trained on ImageNet photographs; for digits, sprites or spectra that is the wrong
eye, and a download. Where the data have classes we train a small eye on the data themselves:

    image -> (3x3 convolution, batch norm, ReLU) to 4x4 or less -> mean -> 64 numbers -> classes

The 64 activations before the last layer are the features, divided by one number such that their
variances on the training split add up to 64. So a distance has no units: one point at the mean
of the features is 64 away. Nets of other data or seeds are other eyes: scores compare only
within one extractor, and its name is part of each score.

Only the training split is seen. Initial weights, order and shifts are keyed by `noise`, so the
net is a pure function of (data, split, seed) on one machine and thread count; other kernels sum
in another order and give weights that differ by rounding, therefore the net is cached.

Where there are no classes, the features are pixels, averaged to 8x8. They see brightness,
contrast and coarse shape, and no more: one Gaussian over those pixels scores almost nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.data.info import DataInfo, Dataset
from ornstein.errors import ConfigError, NumericsError, StorageError
from ornstein.noise import Noise, permutation

ARCHITECTURE = "conv-64-v2"
"""Part of every cache key: change it with anything below that changes the trained weights."""

WIDTH = 64  # features of the classifier
_LARGEST = 64  # larger images are averaged to this many pixels a side
_BATCH = 128
_SAMPLES = (384 * _BATCH, 640 * _BATCH)  # shortest and longest training, in samples
_CHUNK = 1024  # images through the net at once


class Extractor(Protocol):
    """Anything that turns samples into features; `name` says which, in every score."""

    @property
    def name(self) -> str: ...

    def features(self, x: np.ndarray) -> Tensor:
        """Features float64 [N, D] of samples [N, *shape] in the data's native values."""
        ...


class Pixels(NamedTuple):
    """The values themselves; images in units of their standard deviation, averaged to 8x8.

    Images (C, H, W) give C · min(H, 8) · min(W, 8) features; each is the mean of its patch
    (`adaptive_avg_pool2d`: patches of unequal size where 8 does not divide the side). Other data
    are flattened and left as they are, in their own units.
    """

    info: DataInfo

    @property
    def name(self) -> str:
        if self.info.kind != "image":
            return f"values {math.prod(self.info.shape)}"
        return f"pixels {min(self.info.shape[1], 8)}x{min(self.info.shape[2], 8)}"

    def features(self, x: np.ndarray) -> Tensor:
        _check_shape(x, self.info)
        if self.info.kind != "image":
            return torch.from_numpy(np.array(x, dtype=np.float64)).flatten(1)
        _, height, width = self.info.shape
        size = (min(height, 8), min(width, 8))
        parts = []
        for part in _chunks(len(x)):
            image = torch.from_numpy(np.array(x[part], dtype=np.float64))
            pooled = F.adaptive_avg_pool2d((image - self.info.mean) / (self.info.std or 1), size)
            parts.append(pooled.flatten(1))
        return torch.cat(parts)


class Net(nn.Module):
    """image [B, C, H, W] (standardised) -> features [B, 64], class logits [B, K]."""

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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if x.shape[-2:] != self.size:
            x = F.adaptive_avg_pool2d(x, self.size)
        # The mean over places keeps texture in the features. Without it (measured on digits) they
        # hold little but the class: noise, blur and the one Gaussian then look three times nearer.
        features = F.relu(self.hidden(self.layers(x).mean((2, 3))))
        return features, self.classes(features)


class Classifier:
    """A trained net as an extractor, with class probabilities.

    accuracy: the fraction of held-out samples that it names rightly; None without held-out data.
    scale: the features are the activations times this.
    """

    def __init__(self, net: Net, info: DataInfo, seed: int, scale: float, accuracy: float | None):
        self.net = net.eval().requires_grad_(False)
        self.info, self.seed, self.scale, self.accuracy = info, seed, scale, accuracy

    @property
    def name(self) -> str:
        return f"classifier({self.info.name}, seed {self.seed})"

    def features(self, x: np.ndarray) -> Tensor:
        """Float64 [N, 64] of images [N, C, H, W] in native values; all are 0 or more."""
        return self._run(x)[0].double() * self.scale

    def probabilities(self, x: np.ndarray) -> Tensor:
        """Float64 [N, classes] of images [N, C, H, W] in native values; rows add up to 1."""
        return self._run(x)[1].double().softmax(1)

    @torch.no_grad()
    def _run(self, x: np.ndarray) -> tuple[Tensor, Tensor]:
        _check_shape(x, self.info)
        parts = [self.net(_standardised(x[part], self.info)) for part in _chunks(len(x))]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def extractor_for(dataset: Dataset, seed: int = 0, cache: Path | None = None) -> Extractor:
    """The extractor that scores of this data set are measured with.

    Labelled images get a `Classifier`, read from the folder `cache` if it is there, otherwise
    trained (some seconds) and written there. Everything else gets `Pixels`. A cache file that is
    damaged is made anew. StorageError if the folder cannot be written.
    """
    if dataset.info.kind != "image" or dataset.label is None or len(dataset.info.classes) < 2:
        return Pixels(dataset.info)
    if cache is None:
        return train_classifier(dataset, seed)
    about = _about(dataset, seed)
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    path = cache / f"features-{key}.safetensors"
    known = _load(path, dataset, seed, about)
    if known is not None:
        return known
    try:
        cache.mkdir(parents=True, exist_ok=True)  # before the training: fail early
        made = train_classifier(dataset, seed)
        _save(path, made, about)
    except OSError as error:
        raise StorageError(f"the feature cache {cache} cannot be written: {error}") from error
    return made


def train_classifier(dataset: Dataset, seed: int = 0) -> Classifier:
    """Train the small net on the training split.

    1.5 passes, but at least 49,152 and at most 81,920 samples (measured: held-out accuracy 0.99
    on 8x8 digits and 0.985 on MNIST), each shifted by up to a sixteenth of its side, rounded up.
    AdamW at 3e-3 with warm-up over a twentieth and a cosine down to 0, batches of 128 that run
    through one keyed order of the data after another. ConfigError if the images have no classes.
    """
    info, labels, train = dataset.info, dataset.label, dataset.train
    if info.kind != "image" or labels is None or len(info.classes) < 2 or len(train) == 0:
        raise ConfigError(
            f"a classifier needs labelled images of two classes or more; {info.name} has none"
        )
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
        loss = F.cross_entropy(net(x)[1], torch.from_numpy(labels[ids]))
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
        guess = classifier.probabilities(dataset.x[dataset.held_out]).argmax(1).numpy()
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


def _chunks(count: int) -> list[slice]:
    return [slice(i, i + _CHUNK) for i in range(0, max(count, 1), _CHUNK)]


def _check_shape(x: np.ndarray, info: DataInfo) -> None:
    if tuple(x.shape[1:]) != info.shape:
        raise ConfigError(
            f"{info.name} has samples of shape {list(info.shape)}, not {list(x.shape[1:])}"
        )


def _about(dataset: Dataset, seed: int) -> dict[str, Any]:
    """Everything that the weights depend on; its hash is the key of the cache."""
    split = hashlib.sha256()
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


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the weights; safetensors itself notices a short file, not a flipped bit."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _save(path: Path, classifier: Classifier, about: dict[str, Any]) -> None:
    """Weights and their description as one file, which is there whole or not at all."""
    tensors = {name: t.contiguous() for name, t in classifier.net.state_dict().items()}
    described = {
        "about": about,
        "scale": classifier.scale,
        "accuracy": classifier.accuracy,
        "sha256": _digest(tensors),
    }
    content = safetensors.torch.save(tensors, {"ornstein": json.dumps(described)})
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(part).replace(path)  # os.replace: atomic; two runs at once write the same weights
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise


def _load(path: Path, dataset: Dataset, seed: int, about: dict[str, Any]) -> Classifier | None:
    """The classifier in a cache file; None if there is none, or it is damaged or another's."""
    try:
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        described = json.loads(header["__metadata__"]["ornstein"])
        tensors = safetensors.torch.load(content)
        if described["about"] != about or described["sha256"] != _digest(tensors):
            return None
        net = _initial(dataset.info, seed)
        net.load_state_dict(tensors)
        accuracy = described["accuracy"]
        return Classifier(
            net,
            dataset.info,
            seed,
            float(described["scale"]),
            None if accuracy is None else float(accuracy),
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError):
        return None  # to be trained anew
