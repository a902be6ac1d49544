"""Norm groups, exact upsampling, dropout that is a function of its key."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from ornstein.nn.attention import SelfAttention, head_count
from ornstein.nn.embeddings import sinusoidal
from ornstein.nn.layers import (
    Dropout,
    UpsampleConv,
    groups,
    keep_mask,
    key_dropout,
    norm,
    upsample,
)
from ornstein.noise import Noise


@given(st.integers(1, 2048))
def test_groups_divide_and_are_wide(channels: int) -> None:
    g = groups(channels)
    assert channels % g == 0
    assert 1 <= g <= 32
    assert g == 1 or channels // g >= 8
    # and no larger number does the same
    assert all(channels % m or m > 32 or channels // m < 8 for m in range(g + 1, channels + 1))


def test_groups_of_common_widths() -> None:
    widths = (1, 7, 32, 64, 96, 128, 256, 512)
    assert [groups(c) for c in widths] == [1, 1, 4, 8, 12, 16, 32, 32]


def test_norm_standardises_each_group_of_each_sample() -> None:
    x = 5 + 3 * torch.randn(2, 32, 4, 4, dtype=torch.float64)
    y = norm(32).double()(x).view(2, 4, -1)
    torch.testing.assert_close(y.mean(2), torch.zeros(2, 4, dtype=torch.float64))
    torch.testing.assert_close(
        y.var(2, correction=0), torch.ones(2, 4, dtype=torch.float64), rtol=1e-5, atol=0
    )


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6))
def test_upsample_is_interpolate(b: int, c: int, h: int, w: int) -> None:
    x = torch.randn(b, c, h, w)
    assert torch.equal(upsample(x), F.interpolate(x, scale_factor=2, mode="nearest"))


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (3, 5)])
def test_upsample_conv_is_upsampling_then_convolution(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = UpsampleConv(3, 5).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    y, expected = layer(x), layer.conv(upsample(x))
    torch.testing.assert_close(y, expected)
    inputs = (x, *layer.parameters())
    direction = torch.randn_like(y)
    for a, b in zip(
        torch.autograd.grad(y, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_sinusoidal_ends_at_the_published_frequencies() -> None:
    label = torch.tensor([0.0, 3.0, 999.0], dtype=torch.float64)
    e = sinusoidal(label, 8)
    torch.testing.assert_close(e[:, 0], label.sin())
    torch.testing.assert_close(e[:, 3], (1e-4 * label).sin())
    torch.testing.assert_close(e[:, 4], label.cos())
    torch.testing.assert_close(e[:, 7], (1e-4 * label).cos())
    for width in (1, 2, 3, 7):
        assert sinusoidal(label, width).shape == (3, width)


def test_head_count_comes_near_the_width_asked_for() -> None:
    widths = (1, 7, 32, 64, 96, 100, 128, 130, 192, 127, 512)
    assert [head_count(c, 64) for c in widths] == [1, 1, 1, 1, 1, 2, 2, 2, 3, 1, 8]


@pytest.mark.parametrize(("channels", "size"), [(6, (3, 5)), (128, (4, 4)), (8, (1, 1))])
def test_attention_is_an_explicit_softmax(channels: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = SelfAttention(channels).double()
    x = torch.randn(2, channels, *size, dtype=torch.float64)
    assert torch.equal(layer(x), x)  # the output projection begins at zero
    nn.init.normal_(layer.out.weight)
    nn.init.normal_(layer.out.bias)

    tokens = layer.norm(x).flatten(2).mT
    parts = []
    width = channels // layer.heads
    for head in range(layer.heads):
        rows = slice(head * width, (head + 1) * width)
        q, k, v = (
            tokens @ w[rows].T + b[rows]
            for w, b in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True)
        )
        parts.append((q @ k.mT / width**0.5).softmax(2) @ v)
    out = torch.cat(parts, 2) @ layer.out.weight.T + layer.out.bias
    torch.testing.assert_close(layer(x), x + out.mT.reshape(x.shape))


def noise(ids: range | list[int], step: int = 0) -> Noise:
    return Noise.of(7, "dropout", ids).at(step)


@given(st.permutations(range(12)), st.integers(1, 11))
def test_a_mask_is_the_same_in_any_order_and_split(order: list[int], cut: int) -> None:
    x = torch.randn(12, 3, 4)
    layer = Dropout(0.3)
    key_dropout(layer, noise(range(12)))
    whole = layer(x)
    for part in (order[:cut], order[cut:]):
        key_dropout(layer, noise(part))
        assert torch.equal(layer(x[part]), whole[part])


def test_masks_differ_between_layers_steps_and_samples() -> None:
    x = torch.ones(2, 256)
    net = nn.ModuleList([Dropout(0.5), nn.Sequential(Dropout(0.5))])
    key_dropout(net, noise(range(2)))
    first, second = net[0](x), net[1](x)
    key_dropout(net, noise(range(2), step=1))
    later = net[0](x)
    drawn = [first[0], first[1], second[0], second[1], later[0], later[1]]
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            # independent fair coins agree on half of 256 values, give or take 8
            assert abs(int((a == b).sum()) - 128) < 48


def test_key_dropout_sees_through_wrappers() -> None:
    net = nn.Sequential(Dropout(0.5), nn.Linear(64, 64), Dropout(0.5))
    key_dropout(net, noise(range(2)))
    plain = [net[0].key, net[2].key]
    key_dropout(nn.ModuleDict({"_orig_mod": net}), noise(range(2)))
    assert torch.equal(net[0].key, plain[0])
    assert torch.equal(net[2].key, plain[1])
    assert not list(net[0].state_dict())


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drop_rate_scale_and_independence(p: float) -> None:
    b, n = 64, 16384
    layer = Dropout(p)
    key_dropout(layer, noise(range(b)))
    kept = keep_mask(layer.key, n, p)
    keep = kept.double()
    z = (keep - (1 - p)) / (p * (1 - p)) ** 0.5  # mean 0, variance 1
    # Six standard deviations of sums of b·n, n, b and b·n terms.
    assert abs(z.mean()) < 6 / (b * n) ** 0.5
    assert z.mean(1).abs().max() < 6 / n**0.5
    assert z.mean(0).abs().max() < 6 / b**0.5
    for lag in (1, 2, 3, 4, 8, 32, 1024):  # neighbours in a row, a column, a channel
        assert abs((z[:, lag:] * z[:, :-lag]).mean()) < 6 / (b * (n - lag)) ** 0.5
    between = z @ z.T / n - torch.diag((z * z).mean(1))
    assert between.abs().max() < 6 / n**0.5

    x = torch.rand(b, n) + 1
    torch.testing.assert_close(layer(x), torch.where(kept, x / (1 - p), 0.0))


def test_dropout_in_eval_mode_is_the_identity() -> None:
    x = torch.randn(3, 4)
    assert Dropout(0.9).eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_dropout_without_the_right_key_says_so() -> None:
    layer = Dropout(0.5)
    with pytest.raises(RuntimeError, match="call key_dropout"):
        layer(torch.ones(3, 4))
    key_dropout(layer, noise(range(2)))
    with pytest.raises(RuntimeError, match="keyed for 2 samples and got 3"):
        layer(torch.ones(3, 4))


def test_dropout_replays_under_checkpointing() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), Dropout(0.5), nn.SiLU(), nn.Linear(16, 1))
    key_dropout(net, noise(range(8)))
    x = torch.randn(8, 16)
    plain = torch.autograd.grad(net(x).sum(), list(net.parameters()))
    replayed = checkpoint(net, x, use_reentrant=False, preserve_rng_state=False)
    for a, b in zip(
        plain, torch.autograd.grad(replayed.sum(), list(net.parameters())), strict=True
    ):
        assert torch.equal(a, b)
