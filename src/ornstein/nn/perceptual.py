"""How alike two images look: a distance between what a network of convolutions sees in them.

    d(x, y) = mean over layers l, mean over places, of  ‖ φ_l(x)/‖φ_l(x)‖ − φ_l(y)/‖φ_l(y)‖ ‖²

φ_l(x) is the vector of activations of layer l at a place: R. Zhang et al. 2018, "The unreasonable
effectiveness of deep features as a perceptual metric", arXiv:1801.03924, eq 1, with equal weights
for all channels. It lies between 0 and 2, ReLUs being positive. Called LPIPS is only their own
network with their own weights of channels; §4 there finds that untrained networks, too, agree
with people more than squared errors do, and trained ones by far more.

A network is convolutions with a ReLU behind each, in a safetensors file whose tensors are
`features.N.weight` [out, in, k, k] and `features.N.bias`: N rises by 2 from one to the next, by 3
where a 2 × 2 maximum lies between them. That is how files of VGG networks name theirs. Other
tensors are left alone. The file's metadata `ornstein` may hold JSON with `mean` and `std` of each
channel, of values from 0 to 1 (by default those of ImageNet), the `strides` of the convolutions,
down and across (by default 1), and the `size` [H, W] to which larger images are averaged.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.errors import ConfigError, clip, printable, quote
from ornstein.noise import Noise

if TYPE_CHECKING:
    from ornstein.data.info import DataInfo

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANDOM = ((32, 1), (64, 2), (64, 2))
"""Channels and stride of the layers of a network with random weights."""

MAX_FILE = 1 << 30
"""The most bytes of a file of weights."""

SMALL = 1e-6  # squared length of activations below which they count as none
_NAME = re.compile(r"features\.(\d{1,4})\.weight")


class Layer(NamedTuple):
    """A convolution [out, in, k, k] with its bias [out]. pooled: whether a 2 × 2 maximum lies
    before it. kept: whether its activations are compared."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int] = (1, 1)
    pooled: bool = False
    kept: bool = True


class FeatureNet(nn.Module):
    """Images [B, C, H, W], at the model's scale as `info` is -> activations of the layers kept.

    mean, std: of each channel, of values from 0 to 1. size: larger images are averaged to it. Its
    weights are buffers: nobody trains them, and they stay with a run. Layers for which an image is
    too small are left out. Raises: ConfigError for data that are no images of as many channels.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        info: DataInfo,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if info.kind != "image" or info.range is None:
            raise ConfigError(
                f"a perceptual term is for images whose range is known, and {info.name} holds "
                f"{info.kind} data; write objective.perceptual=null"
            )
        wanted = layers[0].weight.shape[1]
        if info.shape[0] not in (1, wanted):
            raise ConfigError(
                f"the network of objective.perceptual.features sees images of {wanted} channels, "
                f"and {info.name} has {info.shape[0]}; write objective.perceptual.features=random"
            )
        self.low, self.span = info.range[0], info.range[1] - info.range[0]
        self.size = size
        self.plan: list[tuple[tuple[int, int], bool, bool]] = []
        sides = list(size or info.shape[1:])
        for i, layer in enumerate(layers):
            sides = [side // (2 if layer.pooled else 1) for side in sides]
            if min(sides) < 1:
                break
            sides = [-(-side // by) for side, by in zip(sides, layer.stride, strict=True)]
            self.plan.append((layer.stride, layer.pooled, layer.kept))
            self.register_buffer(f"weight{i}", layer.weight.clone())
            self.register_buffer(f"bias{i}", layer.bias.clone())
        if not any(kept for *_, kept in self.plan):
            raise ConfigError(
                f"images of {info.shape[1]} x {info.shape[2]} pixels are too small for the network "
                "of objective.perceptual.features; write objective.perceptual.features=random"
            )
        shape = (1, wanted, 1, 1)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(shape))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(shape))

    def forward(self, x: Tensor) -> list[Tensor]:
        h = ((x - self.low) / self.span - self.get_buffer("mean")) / self.get_buffer(
            "std"
        )  # one channel becomes all
        if self.size is not None and h.shape[-2:] != self.size:
            h = F.adaptive_avg_pool2d(h, self.size)
        found = []
        for i, (stride, pooled, kept) in enumerate(self.plan):
            weight, bias = self.get_buffer(f"weight{i}"), self.get_buffer(f"bias{i}")
            h = F.max_pool2d(h, 2) if pooled else h
            h = F.relu(F.conv2d(h, weight, bias, stride, padding=weight.shape[-1] // 2))
            found += [h] if kept else []
        return found


class PerceptualDistance(nn.Module):
    """d(x, y) [B] of images x and y [B, C, H, W]; gradients go to y alone.

    features: any module that takes images to a list of maps [B, C_l, H_l, W_l].
    """

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            seen = [_unit(h) for h in self.features(x)]
        layers = [
            (a - _unit(b)).square().sum(1).flatten(1).mean(1)
            for a, b in zip(seen, self.features(y), strict=True)
        ]
        return torch.stack(layers).mean(0)


def _unit(h: Tensor) -> Tensor:
    """Activations of length 1 at each place, float32 at least; none stay none."""
    fine = h.to(torch.promote_types(h.dtype, torch.float32))
    return fine * torch.rsqrt(fine.square().sum(1, keepdim=True) + SMALL)


def random_features(info: DataInfo) -> FeatureNet:
    """A network with weights N(0, 2/inputs), the same ones always (K. He et al. 2015,
    arXiv:1502.01852)."""
    noise, channels, layers = Noise.of(0, "perceptual/random", 1), info.shape[0], []
    for i, (out, stride) in enumerate(RANDOM):
        weight = noise.normal(i, (out, channels, 3, 3))[0] * math.sqrt(2 / (9 * channels))
        layers.append(Layer(weight, torch.zeros(out), (stride, stride)))
        channels = out
    low, high = info.range or (0.0, 1.0)
    mean = [(info.mean - low) / (high - low)] * info.shape[0]
    return FeatureNet(layers, info, mean, [info.std / (high - low)] * info.shape[0])


def read_features(path: Path, info: DataInfo) -> FeatureNet:
    """The network in a file, as said above. Raises: ConfigError for a file that is missing, damaged
    or of another form, and for images that it cannot see."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in its name
        raise ConfigError(
            f"objective.perceptual.features: {printable(str(path))} cannot be read "
            f"({getattr(error, 'strerror', error)}); give the path of a safetensors file, or write "
            "random"
        ) from error
    if len(content) > MAX_FILE:
        raise ConfigError(
            f"objective.perceptual.features: {path} is larger than {MAX_FILE >> 20} MiB; write "
            "random, or name a smaller network"
        )
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        about = json.loads(header.get("__metadata__", {}).get("ornstein", "{}"))
        layers = _layers(tensors, about)
        mean, std = (about.get(key, IMAGENET[i]) for i, key in enumerate(("mean", "std")))
        if not (len(mean) == len(std) == layers[0].weight.shape[1] and min(std) > 0):
            raise ValueError("it says no mean and deviation of each channel")
        size = about.get("size")
        return FeatureNet(layers, info, mean, std, size and (int(size[0]), int(size[1])))
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"objective.perceptual.features: {quote(path.name)} holds no network of convolutions "
            f"({clip(str(error), 80)}); its tensors must be features.0.weight, features.0.bias, "
            "features.2.weight ..., as those of VGG files"
        ) from error


def _layers(tensors: dict[str, Tensor], about: dict[str, Any]) -> list[Layer]:
    """The convolutions of a file in order. Raises: ValueError, LookupError or TypeError."""
    numbers = sorted(int(found[1]) for name in tensors if (found := _NAME.fullmatch(name)))
    if not numbers or numbers[0] != 0:
        raise ValueError("it has no features.0.weight")
    gaps = [after - before for before, after in pairwise(numbers)]
    if not set(gaps) <= {2, 3}:
        raise ValueError(f"its numbers are {numbers}")
    strides = about.get("strides", [[1, 1]] * len(numbers))
    steps = [step for pair in strides for step in pair]
    if len(strides) != len(numbers) or len(steps) != 2 * len(numbers):
        raise ValueError("its strides are not two for each convolution")
    if not all(type(step) is int and 1 <= step <= 8 for step in steps):
        raise ValueError(f"its strides are {strides}")
    # Compared is what comes before each maximum, and last; where there is none, every layer.
    ends = [gap == 3 for gap in gaps] if 3 in gaps else [True] * len(gaps)
    layers: list[Layer] = []
    for i, number in enumerate(numbers):
        weight, bias = (tensors[f"features.{number}.{part}"] for part in ("weight", "bias"))
        fits = weight.dim() == 4 and weight.shape[2] == weight.shape[3] and weight.shape[2] % 2 == 1
        inputs = layers[-1].weight.shape[0] if layers else weight.shape[1]
        if not fits or weight.shape[1] != inputs or bias.shape != weight.shape[:1]:
            raise ValueError(f"features.{number} has the shape {list(weight.shape)}")
        if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise ValueError(f"features.{number} has values that are not finite")
        pooled = i > 0 and gaps[i - 1] == 3
        kept = [*ends, True][i]
        layers.append(
            Layer(weight.float(), bias.float(), (strides[i][0], strides[i][1]), pooled, kept)
        )
    return layers
