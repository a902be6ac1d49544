"""The network of published FID scores: Inception v3 as its authors released it in 2015.

C. Szegedy et al., "Rethinking the Inception architecture for computer vision", 2015,
arXiv:1512.00567; for scores M. Heusel et al. 2017, arXiv:1706.08500. The released graph has 1,008
outputs and differs from later versions of the network in its pooling only: averages leave the
padding out of the count, and the last block takes a maximum where the others average.

    bytes 0 ... 255 -> 299x299 -> (x - 128) / 128 -> 2,048 features -> 1,008 classes

The resize is that of the same release: bilinear, no antialiasing, and pixel i of the result is
read at i · (old size / new size), with no half pixel between (the grids share their first pixel,
not their centre). Scores move by some hundredths with another resize (G. Parmar et al., "On
aliased resizing and surprising subtleties in GAN evaluation", 2021, arXiv:2104.11222).

The class probabilities of Inception Score leave out the last layer's bias, as the score's authors
did (T. Salimans et al. 2016, arXiv:1606.03498).

Weights come from a safetensors file on this machine. Nothing is downloaded, and no pickle is
opened. Tensors are named as in the PyTorch port of the graph (`Conv2d_1a_3x3.conv.weight`,
`Mixed_5b.branch1x1.bn.running_mean`, `fc.weight`), so its file can be saved as safetensors as it
is. Whether the weights are the published ones only their hash can tell, and every score keeps it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from ornstein.data.info import DataInfo
from ornstein.errors import ConfigError, clip
from ornstein.features.base import check_shape, chunks

SIZE = 299
WIDTH = 2048
CLASSES = 1008
_CHUNK = 32  # images through the network at once

# Blocks, a line for each chain of convolutions: name, channels, kernel; > one after another,
# + side by side. Beside the chains stands a pooling.
_A = (
    "branch1x1 64 1x1",
    "branch5x5_1 48 1x1 > branch5x5_2 64 5x5",
    "branch3x3dbl_1 64 1x1 > branch3x3dbl_2 96 3x3 > branch3x3dbl_3 96 3x3",
)
_B = (
    "branch3x3 384 3x3",
    "branch3x3dbl_1 64 1x1 > branch3x3dbl_2 96 3x3 > branch3x3dbl_3 96 3x3",
)
_C = (
    "branch1x1 192 1x1",
    "branch7x7_1 {c} 1x1 > branch7x7_2 {c} 1x7 > branch7x7_3 192 7x1",
    "branch7x7dbl_1 {c} 1x1 > branch7x7dbl_2 {c} 7x1 > branch7x7dbl_3 {c} 1x7"
    " > branch7x7dbl_4 {c} 7x1 > branch7x7dbl_5 192 1x7",
)
_D = (
    "branch3x3_1 192 1x1 > branch3x3_2 320 3x3",
    "branch7x7x3_1 192 1x1 > branch7x7x3_2 192 1x7 > branch7x7x3_3 192 7x1 > branch7x7x3_4 192 3x3",
)
_E = (
    "branch1x1 320 1x1",
    "branch3x3_1 384 1x1 > branch3x3_2a 384 1x3 + branch3x3_2b 384 3x1",
    "branch3x3dbl_1 448 1x1 > branch3x3dbl_2 384 3x3"
    " > branch3x3dbl_3a 384 1x3 + branch3x3dbl_3b 384 3x1",
)


class Convolution(nn.Module):
    """Convolution, batch norm, ReLU; without padding where `valid` or strided."""

    def __init__(
        self,
        channels: int,
        out: int,
        kernel: tuple[int, int],
        stride: int = 1,
        valid: bool = False,
    ) -> None:
        super().__init__()
        padding = (0, 0) if valid or stride > 1 else (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Chains of convolutions beside each other, and a pooling, joined along the channels.

    pooled: the channels of a 1x1 convolution after the pooling. Without one the block halves the
    size: its pooling, a maximum, and the last convolution of each chain have stride 2.
    """

    def __init__(
        self, channels: int, chains: tuple[str, ...], pooled: int = 0, maximum: bool = False
    ) -> None:
        super().__init__()
        self.halves, self.maximum = not pooled, maximum
        self.chains: list[list[list[str]]] = []
        for text in chains:
            width, steps = channels, [step.split("+") for step in text.split(">")]
            self.chains.append([[layer.split()[0] for layer in step] for step in steps])
            for step in steps:
                stride = 2 if self.halves and step is steps[-1] else 1
                for name, out, kernel in (layer.split() for layer in step):
                    high, wide = map(int, kernel.split("x"))
                    self.add_module(name, Convolution(width, int(out), (high, wide), stride))
                width = int(out)
        if pooled:
            self.branch_pool = Convolution(channels, pooled, (1, 1))

    def forward(self, x: Tensor) -> Tensor:
        found = []
        for *before, ends in self.chains:
            y = x
            for (name,) in before:
                y = self.get_submodule(name)(y)
            found += [self.get_submodule(name)(y) for name in ends]
        if self.halves:
            found.append(F.max_pool2d(x, 3, 2))
        elif self.maximum:
            found.append(self.branch_pool(F.max_pool2d(x, 3, 1, 1)))
        else:
            found.append(self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)))
        return torch.cat(found, 1)


class InceptionV3(nn.Module):
    """Images [B, 3, 299, 299] in [-1, 1] -> features [B, 2048]; `fc` takes them to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), valid=True)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3))
        self.maxpool1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = Convolution(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), valid=True)
        self.maxpool2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b = Mixed(192, _A, pooled=32)
        self.Mixed_5c = Mixed(256, _A, pooled=64)
        self.Mixed_5d = Mixed(288, _A, pooled=64)
        self.Mixed_6a = Mixed(288, _B)
        for name, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            chains = tuple(chain.format(c=c) for chain in _C)
            self.add_module(f"Mixed_{name}", Mixed(768, chains, pooled=192))
        self.Mixed_7a = Mixed(768, _D)
        self.Mixed_7b = Mixed(1280, _E, pooled=192)
        self.Mixed_7c = Mixed(2048, _E, pooled=192, maximum=True)
        self.fc = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.children():
            if stage is not self.fc:
                x = stage(x)
        return x.mean((2, 3))


class Inception:
    """The network with weights from a file, as an extractor of images with 1 or 3 channels.

    weights: the SHA-256 of the file. Native values become bytes as pictures of them would, and
    grey images have three equal channels.
    """

    published = True
    accuracy = None

    def __init__(self, net: InceptionV3, weights: str, info: DataInfo, device: torch.device):
        if info.kind != "image" or info.shape[0] not in (1, 3) or info.range is None:
            raise ConfigError(
                f"the FID network looks at grey or colour images whose range is known, not at "
                f"{info.name} ({info.kind}, shape {list(info.shape)}); write --extractor pixels"
            )
        self.net = net.eval().requires_grad_(False).to(device)
        # Channels last: on a CPU these convolutions then take two thirds of the time.
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.weights, self.info, self.device = weights, info, device

    @classmethod
    def read(cls, path: Path, info: DataInfo, device: torch.device) -> Inception:
        """The network with the weights in a safetensors file.

        Raises: ConfigError for a file that is missing, damaged or of another network, and for
        data that are no images.
        """
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(
                f"the weights {path} cannot be read ({error.strerror}); give --extractor the path "
                "of a safetensors file"
            ) from error
        net = _network(_read(content, path), path)
        return cls(net, hashlib.sha256(content).hexdigest(), info, device)

    @property
    def name(self) -> str:
        return f"FID network ({self.weights[:12]})"

    @torch.no_grad()
    def features(self, x: np.ndarray) -> Tensor:
        """Float64 [N, 2048] of images [N, C, H, W] in native values."""
        check_shape(x, self.info)
        parts = []
        # Convolutions on a GPU would otherwise keep 10 bits of each number.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for part in chunks(len(x), _CHUNK):
                image = torch.from_numpy(_bytes(x[part], self.info)).to(self.device)
                resized = resize(image.float(), SIZE)
                parts.append(self.net((resized - 128) / 128).cpu().double())
        return torch.cat(parts)

    @torch.no_grad()
    def probabilities(self, features: Tensor) -> Tensor:
        """Float64 [N, 1008] for features [N, 2048]; rows add up to 1."""
        logits = features.to(self.device, torch.float32) @ self.net.fc.weight.T
        return logits.cpu().double().softmax(1)


def resize(x: Tensor, size: int) -> Tensor:
    """Images [B, C, H, W] at size x size: bilinear, no antialiasing, pixels of 2015.

    Pixel i is read at i · (old / new) in float32, between the two pixels there, the last of which
    is repeated beyond the edge.
    """
    for dim in (3, 2):
        old = x.shape[dim]
        place = torch.arange(size, dtype=torch.float32, device=x.device) * (old / size)
        before = place.floor().long().clamp_(max=old - 1)
        after = (before + 1).clamp_(max=old - 1)
        share = (place - before).view(-1, *[1] * (3 - dim))
        first = x.index_select(dim, before)
        x = first + (x.index_select(dim, after) - first) * share
    return x


def _read(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file; ConfigError if it is none."""
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, TypeError, LookupError, OverflowError) as error:
        raise ConfigError(
            f"{path} is no whole safetensors file ({clip(str(error), 80)}); a PyTorch file has to "
            "be saved as one first, with safetensors.torch.save_file"
        ) from error


def _network(tensors: dict[str, Tensor], path: Path) -> InceptionV3:
    """The network with the tensors of a file; ConfigError if they are not its own."""
    with torch.device("meta"):
        net = InceptionV3()
    own = net.state_dict()
    # How many batches were seen in training means nothing here, and older files do not say.
    counters = [name for name in own if name.endswith("num_batches_tracked")]
    given = {**tensors, **dict.fromkeys(counters, torch.tensor(0))}
    problems = [f"it has no {name}" for name in own if name not in given]
    problems += [f"it has {name}, which the network has not" for name in given if name not in own]
    for name in (name for name in tensors if name in own and name not in counters):
        tensor, shape = given[name], own[name].shape
        if tensor.shape != shape:
            problems.append(f"its {name} has the shape {list(tensor.shape)}, not {list(shape)}")
        elif tensor.dtype != torch.float32:
            problems.append(f"its {name} is {tensor.dtype}, not torch.float32")
        elif not bool(torch.isfinite(tensor).all()):
            problems.append(f"its {name} has values that are not finite")
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        raise ConfigError(
            f"{path} does not hold the weights of the FID network: {problems[0]}{more}"
        )
    net.load_state_dict(given, assign=True)
    return net


def _bytes(x: np.ndarray, info: DataInfo) -> np.ndarray:
    """Native values as whole numbers 0 ... 255, uint8 [N, 3, H, W]."""
    assert info.range is not None
    low, high = info.range
    if x.dtype != np.uint8 or (low, high) != (0, 255):
        x = np.clip(np.rint((x.astype(np.float64) - low) * (255 / (high - low))), 0, 255)
    return np.broadcast_to(x.astype(np.uint8), (len(x), 3, *x.shape[2:])).copy()
