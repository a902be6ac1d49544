"""The gated PixelCNN: raster order to the last zero, no blind spot, cached logits = full pass."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ornstein.nn.layers import key_dropout
from ornstein.nn.pixelcnn import CausalAttention, GatedLayer, PixelCNNModule
from ornstein.nn.raster import chosen, drawn, incremental
from ornstein.noise import Noise
from tests.nn.test_networks import perturbed


def network(
    layout: tuple[int, int, int],
    coarser: tuple[tuple[int, int, int], ...] = (),
    classes: int = 0,
    layers: int = 3,
    kernel: int = 3,
    attention: bool = True,
) -> PixelCNNModule:
    """A small network in float64, none of whose parameters is zero."""
    torch.manual_seed(0)
    net = PixelCNNModule(
        layout,
        coarser,
        classes,
        channels=8,
        layers=layers,
        kernel=kernel,
        attention=attention,
        head_width=4,
    )
    perturbed(net)
    return net.eval()


def codes(layout: tuple[int, int, int], batch: int, seed: int = 1) -> Tensor:
    k, h, w = layout
    return torch.randint(k, (batch, h, w), generator=torch.Generator().manual_seed(seed))


def full(net: PixelCNNModule, k: Tensor, s: Tensor) -> Tensor:
    """Logits [B, K, h, w] of codes and a condition, of all places at once."""
    return net.logits(net.embed(k).movedim(-1, 1), s)


def influence(net: PixelCNNModule) -> Tensor:
    """How much the logits of place p (rows) change with the embedded code of place q, [P, P]."""
    k = codes(net.layout, 1)
    e = net.embed(k).movedim(-1, 1).detach()
    s = net.condition().detach()
    jacobian = torch.autograd.functional.jacobian(lambda e: net.logits(e, s), e)
    places = e.shape[2] * e.shape[3]
    found: Tensor = jacobian.abs().reshape(-1, places, e.shape[1], places).sum((0, 2))
    return found


@pytest.mark.parametrize(
    ("attention", "layers", "kernel"), [(True, 1, 3), (False, 4, 3), (False, 2, 5)]
)
def test_a_place_depends_on_all_earlier_ones_and_on_no_other(attention, layers, kernel):
    """Strictly lower triangular in raster order, with exact zeros, and nothing below is zero where
    convolutions reach over the width (layers · (kernel // 2) ≥ w − 1), or places attend."""
    found = influence(network((3, 4, 5), layers=layers, kernel=kernel, attention=attention))
    earlier = torch.ones_like(found).tril(-1) > 0
    assert (found[~earlier] == 0).all()
    assert (found[earlier] > 0).all()


def test_the_reach_of_one_layer_is_what_its_kernels_say():
    """Along the row: the last two places of the raster before each of two columns. Above: two rows
    of three columns."""
    height, width = 4, 6
    found = influence(network((3, height, width), layers=1, attention=False)) > 0
    for i in range(height):
        for j in range(width):
            p = i * width + j
            seen = {p - 1} | ({p - 2} if j else set())
            seen |= {
                row * width + column
                for row in (i - 2, i - 1)
                for column in (j - 1, j, j + 1)
                if row >= 0 and 0 <= column < width
            }
            assert set(found[p].nonzero().flatten().tolist()) == {q for q in seen if q >= 0}


def test_a_layer_is_written_out():
    """Eq 2 and 4 of the paper with sums over places: what each stack sees, what the gate does with
    it and the condition, and what is added."""
    torch.manual_seed(0)
    layer = GatedLayer(3, 2, 5, 0.0, last=False).double()
    (v, h), s = torch.randn(2, 1, 3, 4, 5).double(), torch.randn(1, 2, 4, 5).double()
    found_v, found_h = layer(v, h, s)
    r = 2

    def at(x: Tensor, i: int, j: int) -> Tensor:
        inside = 0 <= i < 4 and 0 <= j < 5
        return x[0, :, i, j] if inside else torch.zeros_like(x[0, :, 0, 0])

    def point(conv: nn.Conv2d, x: Tensor) -> Tensor:
        return conv.weight[:, :, 0, 0] @ x + (0 if conv.bias is None else conv.bias)

    def gated(x: Tensor) -> Tensor:
        return torch.tanh(x[:3]) / (1 + torch.exp(-x[3:]))

    for i, j in itertools.product(range(4), range(5)):
        a, b = layer.down.bias, layer.right.bias
        for up, over in itertools.product(range(r + 1), range(-r, r + 1)):
            a = a + layer.down.weight[:, :, r - up, r + over] @ at(v, i - up, j + over)
        for left in range(r + 1):
            b = b + layer.right.weight[:, :, 0, r - left] @ at(h, i, j - left)
        given = point(layer.given, s[0, :, i, j])
        expected = v[0, :, i, j] + point(layer.out_v, gated(a + given[:6]))
        torch.testing.assert_close(found_v[0, :, i, j], expected)
        along = gated(b + point(layer.across, a) + given[6:])
        torch.testing.assert_close(found_h[0, :, i, j], h[0, :, i, j] + point(layer.out_h, along))


def test_attention_is_over_the_places_up_to_one():
    """softmax(q·k/√d) over p' ≤ p, head by head, added to its input."""
    torch.manual_seed(0)
    attention = CausalAttention(8, 4).double()
    nn.init.normal_(attention.out.weight)
    h = torch.randn(1, 5, 8).double()
    found = attention(h)
    q, k, v = attention.qkv(attention.norm(h[0])).view(5, 3, 2, 4).unbind(1)
    for p in range(5):
        weight = torch.einsum("nd,pnd->np", q[p], k[: p + 1] / 2).softmax(1)
        mixed = torch.einsum("np,pnd->nd", weight, v[: p + 1]).flatten()
        torch.testing.assert_close(found[0, p], h[0, p] + attention.out(mixed))


@pytest.mark.parametrize("layout", [(5, 7, 7), (4, 3, 5), (6, 1, 1), (3, 1, 6), (3, 5, 1)])
@pytest.mark.parametrize(("attention", "kernel", "layers"), [(True, 3, 3), (False, 5, 2)])
def test_cached_logits_are_those_of_the_full_pass(layout, attention, kernel, layers):
    coarser = (2, -(-layout[1] // 2), -(-layout[2] // 2))
    net = network(layout, (coarser,), 3, layers, kernel, attention)
    k, label = codes(layout, 4), torch.tensor([0, 2, 1, 0])
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        net.to(dtype)
        with torch.no_grad():
            s = net.condition([codes(coarser, 4, seed=2)], label)
            whole = full(net, k, s).flatten(2)
            places = incremental(net, s, len(k))
            found = [next(places)]
            for code in k.flatten(1).unbind(1)[:-1]:
                found.append(places.send(code))
            torch.testing.assert_close(torch.stack(found, 2), whole, atol=close, rtol=0)
            with pytest.raises(StopIteration):
                places.send(k.flatten(1)[:, -1])


def test_a_condition_without_samples_serves_all():
    """One map for the whole batch, where neither classes nor coarser codes are known."""
    net = network((4, 3, 3))
    k = codes(net.layout, 3)
    s = net.condition()
    assert len(s) == 1
    with torch.no_grad():
        torch.testing.assert_close(full(net, k, s), full(net, k, s.expand(3, -1, -1, -1)))
        one = next(incremental(net, s, 3))
        torch.testing.assert_close(one, next(incremental(net, s.repeat(3, 1, 1, 1), 3)))


def test_classes_and_coarser_codes_reach_every_place():
    coarse = (3, 2, 3)
    net = network((4, 4, 5), (coarse,), 2, attention=False)
    k, top, label = codes(net.layout, 1), codes(coarse, 1), torch.tensor([0])
    with torch.no_grad():
        base = full(net, k, net.condition([top], label))
        other_class = full(net, k, net.condition([top], label + 1))
        assert ((base - other_class).abs().sum(1) > 0).all()
        for i in range(2):
            for j in range(3):
                changed = top.clone()
                changed[0, i, j] = (top[0, i, j] + 1) % 3
                moved = (full(net, k, net.condition([changed], label)) - base).abs().sum(1)[0] > 0
                assert moved[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].all()


def test_coarser_features_stand_above_their_places():
    """Place (i, j) of an odd layout gets the features of (i // 2, j // 2) of one half its size."""
    from ornstein.nn.pixelcnn import Coarser

    torch.manual_seed(0)
    net = Coarser((50, 4, 3), (7, 5), 16, blocks=0)
    with torch.no_grad():  # `Residual` is the identity at first
        net.first.weight.copy_(F.pad(torch.eye(16)[:, :, None, None], (1, 1, 1, 1)))
        net.first.bias.zero_()
    k = torch.arange(12).view(1, 4, 3)
    rows, columns = torch.arange(7) // 2, torch.arange(5) // 2
    expected = net.embed(k[0][rows][:, columns]).movedim(-1, 0)
    torch.testing.assert_close(net(k)[0], expected)


def untrained(layout: tuple[int, int, int]) -> PixelCNNModule:
    return PixelCNNModule(layout, channels=8, layers=2).eval()


def test_all_codes_are_equally_likely_at_first():
    """So −log p = P log K to the last digit, and a draw is the whole part of u K."""
    net = untrained((7, 3, 4))
    k = codes(net.layout, 5)
    with torch.no_grad():
        logits = full(net, k, net.condition())
        nats = F.cross_entropy(logits.double(), k, reduction="none").flatten(1).sum(1)
        torch.testing.assert_close(nats, torch.full_like(nats, 12 * math.log(7)))
        noise = Noise.of(0, "draw", 5)
        found = drawn(net, net.condition(), noise)
    marks = noise.uniform(0, (12,), torch.float64)
    assert torch.equal(found.flatten(1), (marks * 7).long())


def test_a_sample_is_the_same_in_any_batch():
    net = network((5, 4, 4))
    with torch.no_grad():
        whole = drawn(net, net.condition(), Noise.of(3, "draw", 6))
        part = drawn(net, net.condition(), Noise.of(3, "draw", [4, 1]))
    assert torch.equal(whole[[4, 1]], part)
    assert len({tuple(k.flatten().tolist()) for k in whole}) == 6


def test_what_is_chosen_has_the_law_of_the_logits():
    """Marks that stand evenly choose code k as often as p_k says, and p_k^(1/T) at temperature T;
    near 0 the likeliest code."""
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.1]], dtype=torch.float64)
    marks = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    for temperature in (1.0, 0.5, 2.0):
        found = chosen(logits.expand(10_000, 4), marks, temperature).bincount(minlength=4)
        law = logits[0].softmax(0) ** (1 / temperature)
        torch.testing.assert_close(found / 10_000, (law / law.sum()).float(), atol=2e-4, rtol=0)
    assert (chosen(logits.expand(10_000, 4), marks, 1e-3) == 2).all()


def test_a_code_that_is_impossible_is_never_chosen():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf]])
    ends = torch.tensor([2.0**-52, 1 - 2.0**-52], dtype=torch.float64)
    assert (chosen(logits.expand(2, 3), ends, 1.0) == 1).all()


def test_dropout_has_a_key_and_is_not_drawn_with():
    net = PixelCNNModule((4, 3, 3), channels=8, layers=2, dropout=0.5)
    perturbed(net)
    k, s = codes(net.layout, 3), net.condition()
    key_dropout(net, Noise.of(0, "dropout", 3))
    first = full(net, k, s)
    assert torch.equal(first, full(net, k, s))
    key_dropout(net, Noise.of(1, "dropout", 3))
    assert not torch.equal(first, full(net, k, s))
    with pytest.raises(AssertionError):
        next(incremental(net, s, 3))


def test_every_parameter_has_a_gradient():
    """Or ranks would wait for each other."""
    net = PixelCNNModule((4, 4, 4), [(3, 2, 2)], 2, channels=8, layers=2)
    perturbed(net).float()
    net(codes(net.layout, 2), [codes((3, 2, 2), 2)], torch.tensor([0, 1])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
