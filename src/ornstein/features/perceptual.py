"""The classifier of a data set as a network of features for a perceptual term.

    conv, batch norm, ReLU    =    conv with w γ/√(v + ε) and (b − m) γ/√(v + ε) + β, ReLU

Once it is trained, a batch norm is an affine map of each channel, and folds into the convolution
before it. What is left is in the form of `nn/perceptual.py`, and knows what tells the data's
classes apart, as the networks of published metrics know what tells photographs apart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ornstein import fsops
from ornstein.data.info import Dataset
from ornstein.features import classifier


def write(dataset: Dataset, path: Path, seed: int = 0, cache: Path | None = None) -> None:
    """Keep the classifier of a data set as a file for `objective.perceptual.features`.

    It is trained, which takes some seconds, or read from the folder `cache`. Raises: ConfigError
    for data without classes or without a range, StorageError where it cannot be written.
    """
    made = (
        classifier.train_classifier(dataset, seed)
        if cache is None
        else classifier.cached(dataset, seed, cache)
    )
    tensors, strides = folded(made.net)
    info = dataset.info
    low, high = info.range or (0.0, 1.0)
    about: dict[str, Any] = {
        "mean": [(info.mean - low) / (high - low)] * info.shape[0],
        "std": [info.std / (high - low)] * info.shape[0],
        "strides": strides,
        "size": list(made.net.size),
        "of": made.name,
    }
    content = safetensors.torch.save(tensors, {"ornstein": json.dumps(about)})
    fsops.make_folder(path.parent, "another path")
    fsops.replace(path, content, "another path")


@torch.no_grad()
def folded(net: classifier.Net) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Its convolutions by the names of `nn/perceptual.py`, and their strides."""
    tensors, strides = {}, []
    layers = list(net.layers)
    for i in range(0, len(layers), 3):
        conv, scale = layers[i], layers[i + 1]
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(scale, nn.BatchNorm2d)
        assert scale.running_var is not None
        assert scale.running_mean is not None
        factor = scale.weight / torch.sqrt(scale.running_var + scale.eps)
        number = 2 * (i // 3)
        tensors[f"features.{number}.weight"] = (conv.weight * factor.view(-1, 1, 1, 1)).contiguous()
        tensors[f"features.{number}.bias"] = scale.bias - scale.running_mean * factor
        strides.append([*conv.stride])
    return tensors, strides
