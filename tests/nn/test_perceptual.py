"""Distances between features agree with the paper's equation, and files with their networks."""

from __future__ import annotations

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

from ornstein.data.info import DataInfo
from ornstein.data.sources import Digits
from ornstein.errors import ConfigError
from ornstein.features import classifier
from ornstein.features.perceptual import folded, write
from ornstein.nn.perceptual import (
    IMAGENET,
    PerceptualDistance,
    random_features,
    read_features,
)


def info_of(shape, kind="image", limits=(-1.0, 1.0)):
    return DataInfo(
        name="data",
        kind=kind,
        shape=shape,
        range=limits,
        bins=256,
        count=10,
        mean=-0.2,
        std=0.5,
        fingerprint="",
    )


class Maps(nn.Module):
    """Features that are given: of what is not asked."""

    def __init__(self, *maps):
        super().__init__()
        self.maps = maps

    def forward(self, x):
        return [m[x.long().flatten()] for m in self.maps]


def test_the_distance_is_the_paper_s():
    """Zhang et al. 2018, eq 1, in loops: unit vectors of channels, squares, mean over places."""
    rng = np.random.default_rng(0)
    maps = [rng.random((2, 5, 3, 4)), rng.random((2, 7, 2, 2))]
    wanted = 0.0
    for m in maps:
        a, b = (m[i] / np.sqrt((m[i] ** 2).sum(0, keepdims=True)) for i in (0, 1))
        places = [((a[:, i, j] - b[:, i, j]) ** 2).sum() for i, j in np.ndindex(m.shape[2:])]
        wanted += np.mean(places) / len(maps)
    distance = PerceptualDistance(Maps(*map(torch.from_numpy, maps)))
    found = distance(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
    assert found.shape == (1,)
    assert float(found) == pytest.approx(wanted, rel=1e-5)


def test_it_is_a_distance_of_what_is_seen():
    distance = PerceptualDistance(random_features(info_of((3, 16, 16))))
    x, y = torch.rand(2, 4, 3, 16, 16).mul(2).sub(1)
    assert torch.equal(distance(x, x), torch.zeros(4))
    torch.testing.assert_close(distance(x, y), distance(y, x))
    assert bool(((distance(x, y) > 0) & (distance(x, y) < 2)).all())
    torch.testing.assert_close(distance(x, y)[2:3], distance(x[2:3], y[2:3]))
    blurred = F.avg_pool2d(x, 3, 1, 1)
    near = 0.9 * x + 0.1 * blurred
    assert bool((distance(x, near) < distance(x, blurred)).all())


def test_gradients_go_to_the_second_alone_and_are_finite():
    distance = PerceptualDistance(random_features(info_of((1, 8, 8))))
    x = torch.zeros(2, 1, 8, 8, requires_grad=True)
    y = torch.full((2, 1, 8, 8), 0.3, requires_grad=True)
    distance(x, y).sum().backward()
    assert x.grad is None
    assert bool(torch.isfinite(y.grad).all())
    assert float(y.grad.abs().sum()) > 0
    assert not list(distance.parameters())  # nothing to train


def test_random_features_are_the_same_ones():
    one, other = (random_features(info_of((3, 16, 16))) for _ in range(2))
    torch.manual_seed(1)
    for a, b in zip(one.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


VGG_LIKE = [(0, 3, 4), (2, 4, 4), (5, 4, 6), (7, 6, 6)]  # numbered as torchvision numbers them


def vgg(numbers=VGG_LIKE):
    torch.manual_seed(0)
    tensors = {"classifier.0.weight": torch.ones(2, 2)}
    for number, inputs, outputs in numbers:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        tensors[f"features.{number}.weight"] = conv.weight.detach()
        tensors[f"features.{number}.bias"] = conv.bias.detach()
    return tensors


def test_a_vgg_file_is_the_network_that_torchvision_builds(tmp_path):
    """Its numbers are those of a Sequential of conv, ReLU and max pool; kept is what comes before
    the pool and last."""
    tensors = vgg()
    path = tmp_path / "vgg.safetensors"
    path.write_bytes(safetensors.torch.save(tensors))
    layers = [
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2, 2), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()),
    ]
    net = nn.Sequential(*layers)
    net.load_state_dict(
        {k.removeprefix("features."): v for k, v in tensors.items() if "features" in k}
    )
    x = torch.rand(2, 3, 10, 12)
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in IMAGENET)
    h = (x - mean) / std
    wanted = [net[:4](h), net(h)]
    found = read_features(path, info_of((3, 10, 12)))(2 * x - 1)
    torch.testing.assert_close(found, wanted)
    # Grey images have three equal channels.
    grey = read_features(path, info_of((1, 10, 12)))(2 * x[:, :1] - 1)
    torch.testing.assert_close(grey[1], net((x[:, :1].expand(-1, 3, -1, -1) - mean) / std))


def test_layers_beyond_an_image_are_left_out(tmp_path):
    path = tmp_path / "vgg.safetensors"
    path.write_bytes(safetensors.torch.save(vgg()))
    assert len(read_features(path, info_of((3, 1, 1)))(torch.zeros(1, 3, 1, 1))) == 1


def test_a_classifier_of_the_data_becomes_a_file(tmp_path):
    """Batch norms are folded: the maps are those of the trained net in eval mode."""
    dataset = Digits().load()
    net = classifier.Net((1, 8, 8), 10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    net.eval()
    made = classifier.Classifier(net, dataset.info, 0, 1.0, None)

    def train(*_):
        assert torch.is_grad_enabled()  # or nothing is trained
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "train_classifier", train)
        write(dataset, tmp_path / "deep" / "eye.safetensors")
    scaled = dataset.info.scaled((-1.0, 1.0))
    found = read_features(tmp_path / "deep" / "eye.safetensors", scaled)
    native = dataset.x[:5]
    h = classifier._standardised(native, dataset.info)
    wanted = []
    for i, layer in enumerate(net.layers):
        h = layer(h)
        wanted += [h] if i % 3 == 2 else []
    x = torch.from_numpy(np.asarray(native, np.float32)) / 8 - 1
    torch.testing.assert_close(found(x), wanted, rtol=1e-4, atol=1e-4)
    assert folded(net)[1] == [[1, 1], [2, 2], [1, 1]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("features.0.weight"), "no features.0.weight"),
        (lambda t: t.pop("features.2.bias"), "features.2.bias"),
        (lambda t: t.update({"features.2.weight": torch.ones(4, 5, 3, 3)}), "features.2 has the"),
        (lambda t: t["features.7.bias"].fill_(float("nan")), "not finite"),
        (lambda t: t.pop("features.5.weight"), "its numbers are"),
    ],
)
def test_other_files_are_refused(tmp_path, change, says):
    tensors = vgg()
    change(tensors)
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(ConfigError, match=rf"holds no network.*{says}"):
        read_features(path, info_of((3, 16, 16)))


def test_damaged_files_and_other_data_are_refused(tmp_path):
    path = tmp_path / "vgg.safetensors"
    with pytest.raises(ConfigError, match="cannot be read"):
        read_features(path, info_of((3, 16, 16)))
    path.write_bytes(safetensors.torch.save(vgg())[:-5])
    with pytest.raises(ConfigError, match="holds no network"):
        read_features(path, info_of((3, 16, 16)))
    path.write_bytes(safetensors.torch.save(vgg(), {"ornstein": json.dumps({"strides": [[9, 9]]})}))
    with pytest.raises(ConfigError, match="strides"):
        read_features(path, info_of((3, 16, 16)))
    path.write_bytes(safetensors.torch.save(vgg()))
    with pytest.raises(ConfigError, match="sees images of 3 channels, and data has 2"):
        read_features(path, info_of((2, 16, 16)))
    with pytest.raises(ConfigError, match="images whose range is known"):
        read_features(path, info_of((7,), kind="vector"))
