"""The FID network: its tensors by an independent table, its stages, its resize, its files."""

import hashlib

import numpy as np
import pytest
import safetensors.torch
import torch

from ornstein.data.info import DataInfo
from ornstein.errors import ConfigError
from ornstein.features import inception
from ornstein.features.inception import Inception, InceptionV3, Mixed, resize
from ornstein.noise import Noise

CPU = torch.device("cpu")


def info(shape=(3, 12, 9), span=(0.0, 255.0), kind="image"):
    return DataInfo(
        name="pictures",
        kind=kind,
        shape=shape,
        range=span,
        count=4,
        mean=0,
        std=1,
        fingerprint="0",
    )


@pytest.fixture(scope="module")
def weights():
    """Random tensors under the network's names, of a size that keeps activations about 1."""
    with torch.device("meta"):
        state = InceptionV3().state_dict()
    found = {}
    for number, (name, tensor) in enumerate(state.items()):
        if tensor.dim() > 1:
            noise = Noise.of(number, "weights", 1).normal(0, (tensor.numel(),))
            found[name] = noise.view(tensor.shape) * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith("num_batches_tracked"):
            continue  # the published file has none
        else:
            fill = 1.0 if name.endswith(("running_var", "bn.weight")) else 0.0
            found[name] = torch.full(tuple(tensor.shape), fill)
    found["fc.bias"] = torch.linspace(-1, 1, 1008)
    return found


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "fid.safetensors"
    safetensors.torch.save_file(weights, path)
    return path


# --- an independent table of the network: every convolution as (inputs, outputs, kernel) ----------


def table():
    found = {
        "Conv2d_1a_3x3": (3, 32, 3, 3),
        "Conv2d_2a_3x3": (32, 32, 3, 3),
        "Conv2d_2b_3x3": (32, 64, 3, 3),
        "Conv2d_3b_1x1": (64, 80, 1, 1),
        "Conv2d_4a_3x3": (80, 192, 3, 3),
    }

    def block(name, **convolutions):
        found.update({f"Mixed_{name}.branch{k}": v for k, v in convolutions.items()})

    for name, n, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64)):
        double = {"3x3dbl_1": (n, 64, 1, 1), "3x3dbl_2": (64, 96, 3, 3), "3x3dbl_3": (96, 96, 3, 3)}
        five = {"5x5_1": (n, 48, 1, 1), "5x5_2": (48, 64, 5, 5)}
        block(name, **{"1x1": (n, 64, 1, 1), "_pool": (n, pool, 1, 1)}, **double, **five)
    double = {"3x3dbl_1": (288, 64, 1, 1), "3x3dbl_2": (64, 96, 3, 3), "3x3dbl_3": (96, 96, 3, 3)}
    block("6a", **{"3x3": (288, 384, 3, 3)}, **double)
    for name, c in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        block(name, **{"1x1": (768, 192, 1, 1), "_pool": (768, 192, 1, 1)})
        block(name, **{"7x7_1": (768, c, 1, 1), "7x7_2": (c, c, 1, 7), "7x7_3": (c, 192, 7, 1)})
        block(name, **{"7x7dbl_1": (768, c, 1, 1), "7x7dbl_2": (c, c, 7, 1)})
        block(name, **{"7x7dbl_3": (c, c, 1, 7), "7x7dbl_4": (c, c, 7, 1)})
        block(name, **{"7x7dbl_5": (c, 192, 1, 7)})
    block("7a", **{"3x3_1": (768, 192, 1, 1), "3x3_2": (192, 320, 3, 3)})
    block("7a", **{"7x7x3_1": (768, 192, 1, 1), "7x7x3_2": (192, 192, 1, 7)})
    block("7a", **{"7x7x3_3": (192, 192, 7, 1), "7x7x3_4": (192, 192, 3, 3)})
    for name, n in (("7b", 1280), ("7c", 2048)):
        block(name, **{"1x1": (n, 320, 1, 1), "_pool": (n, 192, 1, 1), "3x3_1": (n, 384, 1, 1)})
        block(name, **{"3x3_2a": (384, 384, 1, 3), "3x3_2b": (384, 384, 3, 1)})
        block(name, **{"3x3dbl_1": (n, 448, 1, 1), "3x3dbl_2": (448, 384, 3, 3)})
        block(name, **{"3x3dbl_3a": (384, 384, 1, 3), "3x3dbl_3b": (384, 384, 3, 1)})
    return found


def test_every_tensor_has_its_name_and_shape():
    with torch.device("meta"):
        state = InceptionV3().state_dict()
    expected = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    for name, (inputs, outputs, high, wide) in table().items():
        expected[f"{name}.conv.weight"] = (outputs, inputs, high, wide)
        for part in ("weight", "bias", "running_mean", "running_var"):
            expected[f"{name}.bn.{part}"] = (outputs,)
    kept = {k: tuple(v.shape) for k, v in state.items() if "num_batches" not in k}
    assert kept == expected
    assert len(kept) == 94 * 5 + 2


def test_parameters_are_those_of_the_published_network():
    """23,834,568 with 1,000 classes and without auxiliary ones; here 1,008."""
    with torch.device("meta"):
        count = sum(p.numel() for p in InceptionV3().parameters())
    own = sum(i * o * h * w + 2 * o for i, o, h, w in table().values()) + 2049 * 1008
    assert count == own == 23_834_568 + 8 * 2049


def test_stages_have_the_sizes_of_the_paper():
    """Szegedy et al. 2015, table 1."""
    x, sizes = torch.zeros(1, 3, 299, 299), {}
    with torch.no_grad():
        for name, stage in InceptionV3().eval().named_children():
            if name != "fc":
                x = stage(x)
                sizes[name] = tuple(x.shape[1:])
    assert sizes == {
        "Conv2d_1a_3x3": (32, 149, 149),
        "Conv2d_2a_3x3": (32, 147, 147),
        "Conv2d_2b_3x3": (64, 147, 147),
        "maxpool1": (64, 73, 73),
        "Conv2d_3b_1x1": (80, 73, 73),
        "Conv2d_4a_3x3": (192, 71, 71),
        "maxpool2": (192, 35, 35),
        "Mixed_5b": (256, 35, 35),
        "Mixed_5c": (288, 35, 35),
        "Mixed_5d": (288, 35, 35),
        **{f"Mixed_6{letter}": (768, 17, 17) for letter in "abcde"},
        "Mixed_7a": (1280, 8, 8),
        "Mixed_7b": (2048, 8, 8),
        "Mixed_7c": (2048, 8, 8),
    }


def pooled(block, x):
    """The pooling branch alone: its convolution passes the first channel through."""
    layer = block.branch_pool.eval()
    with torch.no_grad():
        layer.conv.weight.zero_()[0, 0] = 1.001**0.5  # the norm adds 0.001 to the variance, 1
        return block.eval()(x)[:, -layer.conv.out_channels]


def test_averages_leave_out_the_padding_and_the_last_block_takes_maxima():
    net = InceptionV3()
    ones = torch.ones(1, 2048, 8, 8)
    spike = torch.zeros(1, 2048, 8, 8)
    spike[:, :, 0, 0] = 1
    spread = torch.zeros(8, 8)
    spread[:2, :2] = 1
    for name in ("5b", "5c", "5d", "6b", "6c", "6d", "6e", "7b"):
        block = net.get_submodule(f"Mixed_{name}")
        assert isinstance(block, Mixed)
        channels = block.branch_pool.conv.in_channels
        torch.testing.assert_close(pooled(block, ones[:, :channels]), torch.ones(1, 8, 8))
        corner = pooled(block, spike[:, :channels])[0]
        # The corner averages 4 pixels, its neighbours on the edge 6, the one inside 9.
        expected = torch.zeros(8, 8)
        expected[:2, :2] = torch.tensor([[1 / 4, 1 / 6], [1 / 6, 1 / 9]])
        torch.testing.assert_close(corner, expected)
    torch.testing.assert_close(pooled(net.Mixed_7c, spike)[0], spread)


# --- the resize ----------------------------------------------------------------------------------


def test_pixels_share_their_first_corner_and_not_their_centre():
    """The 2015 rule: from 2 pixels to 4, places 0, ½, 1 and 1½, the last pixel repeated."""
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    row = torch.tensor([0, 0.5, 1, 1])
    expected = 1 + row + 2 * row[:, None]
    assert torch.equal(resize(x, 4)[0, 0], expected)


@pytest.mark.parametrize(("height", "width"), [(7, 5), (299, 13), (640, 300)])
def test_a_ramp_stays_a_ramp(height, width):
    """Bilinear interpolation is exact on planes, up to where the last pixel is repeated."""
    down, right = torch.arange(height).float(), torch.arange(width).float()
    x = (0.5 * down[:, None] + 2 * right).view(1, 1, height, width)
    places = [(torch.arange(299) * (n / 299)).clamp(max=n - 1) for n in (height, width)]
    expected = 0.5 * places[0][:, None] + 2 * places[1]
    torch.testing.assert_close(resize(x, 299)[0, 0], expected, rtol=1e-5, atol=1e-3)


def test_the_same_size_is_left_alone():
    x = Noise.of(0, "x", 2).uniform(0, (3, 299, 299))
    assert torch.equal(resize(x, 299), x)


# --- the extractor -------------------------------------------------------------------------------


def test_features_are_the_networks_and_the_name_says_whose(file, weights, monkeypatch):
    x = Noise.of(0, "x", 2).integers(0, 256, (3, 12, 9)).to(torch.uint8)
    found = Inception.read(file, info(), CPU)
    assert found.weights == hashlib.sha256(file.read_bytes()).hexdigest()
    assert found.name == f"FID network ({found.weights[:12]})"
    assert found.published
    features = found.features(x.numpy())
    assert features.shape == (2, 2048)
    assert features.dtype == torch.float64
    net = InceptionV3().eval()
    net.load_state_dict(weights, strict=False)
    with torch.no_grad():
        direct = net((resize(x.float(), 299) - 128) / 128)
    torch.testing.assert_close(features, direct.double(), rtol=1e-5, atol=1e-6)
    assert float(features.std()) > 0.1  # not all alike
    monkeypatch.setattr(inception, "_CHUNK", 1)
    torch.testing.assert_close(found.features(x.numpy()), features, rtol=1e-4, atol=1e-5)
    logits = features @ weights["fc.weight"].double().T  # no bias
    torch.testing.assert_close(found.probabilities(features), logits.softmax(1), rtol=1e-4, atol=0)


def test_native_values_become_the_bytes_of_a_picture():
    x = np.array([[[[0, 4, 16]]]], dtype=np.uint8)
    found = inception._bytes(x, info((1, 1, 3), (0.0, 16.0)))
    assert found.dtype == np.uint8
    assert found.shape == (1, 3, 1, 3)
    assert (found == np.array([0, 64, 255])).all()
    signed = np.array([[[[-1.0, 0.0, 1.0, 3.0]]]], dtype=np.float32)
    assert (
        inception._bytes(signed, info((1, 1, 4), (-1.0, 1.0)))[0, 2, 0] == [0, 128, 255, 255]
    ).all()
    as_they_are = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    assert (inception._bytes(as_they_are, info((1, 16, 16)))[0, 1] == as_they_are[0, 0]).all()


@pytest.mark.parametrize(
    "data",
    [info((2,), None, "vector"), info((4, 8, 8)), info((3, 8, 8), None)],
    ids=["vectors", "four channels", "no range"],
)
def test_data_that_it_cannot_look_at_are_refused(data):
    with torch.device("meta"), pytest.raises(ConfigError, match="write --extractor pixels"):
        Inception(InceptionV3(), "0" * 64, data, CPU)


# --- wrong files: one sentence each --------------------------------------------------------------


def refused(content, match, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=match) as caught:
        Inception.read(path, info(), CPU)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_no_safetensors(tmp_path, file):
    good = file.read_bytes()
    for bad in (b"", b"hello", b"\xff" * 1000, good[:-1], good[: len(good) // 2], good[:100]):
        refused(bad, "no whole safetensors file", tmp_path)
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "net.pth")
    refused((tmp_path / "net.pth").read_bytes(), "safetensors.torch.save_file", tmp_path)
    for path in (tmp_path, tmp_path / "none.safetensors"):
        with pytest.raises(ConfigError, match="cannot be read"):
            Inception.read(path, info(), CPU)


def test_a_flipped_bit_in_the_header_is_never_a_traceback(tmp_path):
    """It is refused as no file of this kind, or leaves tensors of other names or shapes."""
    tensors = {"fc.bias": torch.zeros(4), "fc.weight": torch.zeros(4, 2)}
    content = safetensors.torch.save(tensors)
    head = 8 + int.from_bytes(content[:8], "little")
    messages = []
    for bit in range(8 * head):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            inception._read(bytes(flipped), "w")
        except ConfigError as error:
            messages.append(str(error))
    assert len(messages) > head
    assert all(m.startswith("w is no whole safetensors file (") for m in messages)
    flipped = content.replace(b"fc.bias", b"fc.bias"[:-1] + b"\xf3")
    refused(flipped, "no whole safetensors file", tmp_path)
    refused(content.replace(b"fc.bias", b"fc.bhas"), r"it has no Conv2d_1a_3x3", tmp_path)


def test_tensors_of_another_network(weights):
    def refused(match, **changes):
        tensors = {k: v for k, v in {**weights, **changes}.items() if v is not None}
        with pytest.raises(ConfigError, match="here does not hold the .* FID network: " + match):
            inception._network(tensors, "here")

    name = "Mixed_7c.branch3x3_2a.conv.weight"
    refused(f"it has no {name}$", **{name: None})
    refused(r"it has no .* \(and 1 more problems\)$", **{name: None, "fc.bias": None})
    refused("it has AuxLogits, which the network has not", AuxLogits=torch.zeros(1))
    classes = {"fc.weight": torch.zeros(1000, 2048)}
    refused(r"its fc.weight .* \[1000, 2048\], not \[1008, 2048\]", **classes)
    refused("its fc.bias is torch.float16", **{"fc.bias": torch.zeros(1008).half()})
    refused("its fc.bias .* not finite", **{"fc.bias": torch.full((1008,), torch.nan)})
    counted = {"Conv2d_1a_3x3.bn.num_batches_tracked": torch.tensor(7)}
    inception._network({**weights, **counted}, "here")  # newer files say it
