"""Sparsity, a function of the whole batch in parts; contraction, known Jacobians and estimates."""

import itertools
import math

import pytest
import torch
from torch.autograd.functional import jacobian

from ornstein.autoencoders.codec import Codec
from ornstein.autoencoders.continuous import GaussianModule, PlainModule, TopKModule
from ornstein.autoencoders.penalties import (
    Contraction,
    Sparsity,
    coin_kl,
    coin_kl_slope,
    estimated_norm,
    jacobian_norm,
    one_layer_norm,
)
from ornstein.errors import ConfigError
from ornstein.nn.codec import ConvEncoder, DenseEncoder
from ornstein.noise import Noise
from tests.helpers import f64

SHAPE, UNITS = (1, 3, 4), 5


def normal(purpose, count, shape):
    return Noise.of(0, purpose, count).normal(0, shape, torch.float64)


def codec(encoder, bottleneck, units=UNITS):
    """A codec with no more than what encodes, in float64."""
    nothing = torch.nn.Identity()
    return Codec(encoder, bottleneck, nothing, nothing, (units,)).double()


def dense(hidden=(), features=UNITS, activation="tanh"):
    encoder = DenseEncoder(SHAPE, hidden, features, activation)
    with torch.no_grad():
        for i, parameter in enumerate(encoder.parameters()):
            parameter.copy_(0.5 * normal(f"weights {i}", 1, parameter.shape)[0])
    return encoder


# --- sparsity ---------------------------------------------------------------------------------


def direct(sparsity, h):
    """Notes eq 3 as it is written, over all of the batch."""
    rho, mean = sparsity.rho, h.flatten(2).mean((0, 2)) if h.dim() > 2 else h.mean(0)
    coins = [torch.stack((p, 1 - p)) for p in (torch.full_like(mean, rho), mean)]
    return sparsity.weight * (coins[0] * (coins[0] / coins[1]).log()).sum()


def in_parts(sparsity, z, cuts):
    """The mean loss as a trainer takes it: sums first, then a loss for each sample."""
    edges = [0, *cuts, len(z)]
    parts = [z[a:b] for a, b in itertools.pairwise(edges)]
    sums = [sparsity.sums(part) for part in parts]
    totals = {name: sum(s[name] for s in sums) for name in sums[0]}
    return torch.cat([sparsity(part, sparsity.mean(totals)) for part in parts]).sum() / len(z)


@pytest.mark.parametrize("rho", [0.05, 0.25])
def test_the_divergence_of_coins(rho):
    """Figure 1-3 of the notes: 0 at ρ, rising to both sides."""
    below, above = (torch.linspace(end, rho, 99, dtype=torch.float64) for end in (0.005, 0.995))
    assert coin_kl(rho, f64([rho])) == 0 == coin_kl_slope(rho, f64([rho]))
    for side in (below, above):  # towards ρ
        assert (coin_kl(rho, side).diff() < 0).all()
    half = coin_kl(rho, f64([0.5])).item()
    assert half == pytest.approx(math.log(2) + rho * math.log(rho) + (1 - rho) * math.log(1 - rho))


@pytest.mark.parametrize("rho", [0.05, 0.7])
def test_its_slope_is_its_derivative(rho):
    q = torch.linspace(0.01, 0.99, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(coin_kl(rho, q).sum(), q)
    torch.testing.assert_close(coin_kl_slope(rho, q), slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cuts", [[], [1], [4, 5, 9], list(range(1, 12))], ids=str)
@pytest.mark.parametrize("places", [(), (2, 3)], ids=["flat", "places"])
def test_value_and_gradient_are_those_of_the_whole_batch(cuts, places):
    sparsity = Sparsity(rho=0.1, weight=2.5)
    h = normal("h", 12, (UNITS, *places)).requires_grad_()
    found = in_parts(sparsity, h.sigmoid(), cuts)
    wanted = direct(sparsity, h.sigmoid())
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)
    gradients = [torch.autograd.grad(value, h)[0] for value in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-12)


def test_means_of_parts_would_be_another_penalty():
    """What the first pass is for: the two differ by far more than rounding."""
    sparsity, z = Sparsity(), normal("h", 12, (UNITS,)).sigmoid()
    parts = torch.stack([direct(sparsity, part) for part in z.split(3)]).mean()
    assert (parts - direct(sparsity, z)) / direct(sparsity, z) > 0.02


def test_units_that_are_as_active_as_asked_cost_nothing():
    sparsity = Sparsity(rho=0.3)
    h = torch.full((4, UNITS), 0.3, dtype=torch.float64, requires_grad=True)
    loss = in_parts(sparsity, h, [2])
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, h)
    assert (gradient.abs() < 1e-12).all()


def test_descent_ends_at_rho():
    """Its minimum in closed form: free biases under fixed features all reach ρ̂ = ρ."""
    sparsity = Sparsity(rho=0.2, weight=1.0)
    features = normal("h", 16, (UNITS,))
    bias = torch.zeros(UNITS, dtype=torch.float64, requires_grad=True)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(
            in_parts(sparsity, (features + bias).sigmoid(), [3, 8]), bias
        )
        bias = (bias - 4 * gradient).detach().requires_grad_()
    means = (features + bias).sigmoid().mean(0)
    torch.testing.assert_close(means, torch.full_like(means, 0.2), rtol=1e-6, atol=0)


def test_saturated_units_have_finite_gradients():
    h = torch.tensor([[-200.0, 200.0, 0.0]] * 4, requires_grad=True)
    loss = in_parts(Sparsity(), h.sigmoid(), [])
    (gradient,) = torch.autograd.grad(loss, h)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert (gradient[:, :2] == 0).all()
    assert (gradient[:, 2] > 0).all()


def test_sparsity_is_of_units_between_0_and_1():
    Sparsity().check(codec(dense(), PlainModule((UNITS,), "sigmoid")))
    for bottleneck in (PlainModule((UNITS,)), TopKModule((UNITS,), 2), GaussianModule((UNITS,))):
        with pytest.raises(ConfigError, match=r"write model\.bottleneck\.kind=plain"):
            Sparsity().check(codec(dense(), bottleneck))


# --- contraction ------------------------------------------------------------------------------


def by_torch(encode, x):
    """‖∂z/∂x‖_F² of each sample by itself."""
    return torch.stack([jacobian(encode, one.unsqueeze(0)).square().sum() for one in x])


def conv(flat):
    encoder = ConvEncoder(SHAPE, (8, 16), 1, 2, flat)
    with torch.no_grad():
        for i, parameter in enumerate(encoder.parameters()):
            parameter.copy_(0.3 * normal(f"weights {i}", 1, parameter.shape)[0])
    return encoder


NETS = {
    "one layer": (dense, lambda: PlainModule((UNITS,), "sigmoid")),
    "one layer, linear": (dense, lambda: PlainModule((UNITS,))),
    "one layer, tanh": (dense, lambda: PlainModule((UNITS,), "tanh")),
    "one layer, relu": (dense, lambda: PlainModule((UNITS,), "relu")),
    "one layer, top-k": (dense, lambda: TopKModule((UNITS,), 2)),
    "one layer, mean": (lambda: dense(features=2 * UNITS), lambda: GaussianModule((UNITS,))),
    "two layers": (lambda: dense((7,)), lambda: PlainModule((UNITS,), "sigmoid")),
    "convolutions": (lambda: conv(True), lambda: PlainModule((2,), "sigmoid")),
    "places": (lambda: conv(False), lambda: PlainModule((2, 2, 2), "sigmoid")),
}


@pytest.mark.parametrize("net", NETS)
def test_the_norm_is_that_of_the_jacobian(net):
    encoder, bottleneck = (make() for make in NETS[net])
    model, x = codec(encoder, bottleneck), normal("x", 4, SHAPE)
    wanted = 0.7 * by_torch(lambda x: model.encode(x).z, x)
    found = Contraction(weight=0.7)(model, x, Noise.of(0, "probes", 4))
    # GaussianModule computes in float32 whatever it is given.
    rtol = 1e-6 if isinstance(bottleneck, GaussianModule) else 1e-12
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=0)
    with torch.no_grad():  # as in evaluation
        torch.testing.assert_close(
            Contraction(weight=0.7)(model, x, Noise.of(0, "probes", 4)), found
        )


def test_one_sigmoid_layer_in_closed_form():
    """Σ_j (h_j (1 − h_j))² ‖W_j‖², Rifai et al. 2011, §4; with frozen weights, too."""
    encoder, x = dense().double(), normal("x", 6, SHAPE)
    weight, h = encoder.net[0].weight, encoder(x).sigmoid()
    wanted = (h * (1 - h)).square() @ weight.square().sum(1)
    bottleneck = PlainModule((UNITS,), "sigmoid")
    torch.testing.assert_close(one_layer_norm(encoder, bottleneck, x), wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        jacobian_norm(lambda x: bottleneck(encoder(x)).z, x), wanted, rtol=1e-12, atol=0
    )
    frozen = encoder.requires_grad_(False)
    torch.testing.assert_close(one_layer_norm(frozen, bottleneck, x), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("net", ["one layer", "two layers", "convolutions"])
@pytest.mark.parametrize("probes", [None, 3])
def test_the_gradient_by_the_weights_is_the_finite_difference(net, probes):
    encoder, bottleneck = (make() for make in NETS[net])
    model, x, keyed = codec(encoder, bottleneck), normal("x", 4, SHAPE), Noise.of(0, "probes", 4)

    def loss():
        return Contraction(weight=1.0, probes=probes)(model, x, keyed).sum()

    parameters = [p for p in encoder.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    for i, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
        way = normal(f"way {i}", 1, parameter.shape)[0]
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(step * way)
            ends.append(loss().item())
            with torch.no_grad():
                parameter.sub_(step * way)
        found = 0.0 if gradient is None else (gradient * way).sum().item()
        assert found == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-7)


def test_samples_do_not_see_each_other():
    encoder, bottleneck = (make() for make in NETS["convolutions"])
    model, x, keyed = codec(encoder, bottleneck), normal("x", 6, SHAPE), Noise.of(0, "probes", 6)
    for chosen in (Contraction(), Contraction(probes=2)):
        whole = chosen(model, x, keyed)
        parts = (slice(0, 1), slice(1, 4), slice(4, 6))
        split = torch.cat([chosen(model, x[part], keyed.of_samples(part)) for part in parts])
        torch.testing.assert_close(split, whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("probes", [1, 4])
def test_the_estimate_is_unbiased(probes):
    """Its mean within 4 standard errors of the norm; its variance is that of random signs,
    2 Σ_{j≠k} A_jk² / n of A = J Jᵀ."""
    encoder, bottleneck = (make() for make in NETS["two layers"])
    model, count = codec(encoder, bottleneck), 4000
    x = normal("x", 1, SHAPE)
    rows = jacobian(lambda x: model.encode(x).z, x).reshape(UNITS, -1)
    product = rows @ rows.T
    norm = product.trace()
    variance = 2 * (product.square().sum() - product.diagonal().square().sum()) / probes
    assert variance.sqrt() > 0.1 * norm  # else it would show nothing
    drawn = estimated_norm(
        lambda x: model.encode(x).z,
        x.expand(count, *SHAPE),
        Noise.of(0, "probes", count),
        probes,
    ).detach()
    assert (drawn.mean() - norm).abs() < 4 * (variance / count).sqrt()
    assert drawn.var().item() == pytest.approx(variance.item(), rel=0.15)


def test_probes_are_other_ones_at_each_step():
    encoder, bottleneck = (make() for make in NETS["two layers"])
    model, x, keyed = codec(encoder, bottleneck), normal("x", 4, SHAPE), Noise.of(0, "probes", 4)
    first, again, other = (Contraction(probes=1)(model, x, n) for n in (keyed, keyed, keyed.at(1)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.slow
def test_compiled_networks_have_second_derivatives(monkeypatch):
    """`aot_eager` takes a second; the compiler itself has none of them either."""
    encoder, bottleneck = (make() for make in NETS["two layers"])
    model, x, keyed = codec(encoder, bottleneck), normal("x", 4, SHAPE), Noise.of(0, "probes", 4)
    wanted = torch.autograd.grad(Contraction()(model, x, keyed).sum(), [*encoder.parameters()][:-1])
    encoder.compile(backend="aot_eager")
    model.encode(x)
    found = torch.autograd.grad(Contraction()(model, x, keyed).sum(), [*encoder.parameters()][:-1])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


def test_contraction_is_of_codes_without_jumps():
    class Jumps(torch.nn.Module):
        pass

    Contraction().check(codec(dense(), PlainModule((UNITS,))))
    with pytest.raises(ConfigError, match=r"write model\.bottleneck\.kind=plain"):
        Contraction().check(codec(dense(), Jumps()))


def test_sharded_weights_are_refused(monkeypatch):
    """What a backward pass within the forward pass finds there has been given back already."""
    monkeypatch.setattr("torch.distributed.fsdp.FSDPModule", DenseEncoder)
    model = codec(dense(), PlainModule((UNITS,)))
    with pytest.raises(ConfigError, match=r"write optim\.shard=off"):
        Contraction()(model, normal("x", 2, SHAPE), Noise.of(0, "probes", 2))
