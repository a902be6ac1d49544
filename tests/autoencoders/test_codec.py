"""Nets, bottlenecks and the objective: identities, and equality for any split of a batch."""

from __future__ import annotations

import math

import pytest
import torch

from ornstein.autoencoders.bottlenecks import FSQ, VQ, Gaussian, Hierarchy, Plain, TopK
from ornstein.autoencoders.continuous import HORIZON, Moments
from ornstein.autoencoders.decoding import Decoding
from ornstein.autoencoders.likelihoods import Bernoulli, Normal
from ornstein.autoencoders.model import Autoencoder
from ornstein.autoencoders.penalties import Contraction, Sparsity
from ornstein.data.info import Batch, DataInfo
from ornstein.data.sources import Digits
from ornstein.errors import ConfigError
from ornstein.nn.codecnets import Conv, Dense
from ornstein.noise import Noise
from ornstein.objectives.autoencoding import Autoencoding, Beta, Capacity, Constrained
from ornstein.objectives.base import Context
from ornstein.optim import Optim
from ornstein.recipe import Recipe
from ornstein.run import Run

SIGMOID = Plain(activation="sigmoid")


def info(*shape: int, bounded: bool = True) -> DataInfo:
    return DataInfo(
        name="some",
        kind="image" if len(shape) == 3 else "vector",
        shape=shape,
        range=(-1.0, 1.0) if bounded else None,
        bins=256 if bounded else None,
        count=100,
        held_out=10,
        mean=0.0,
        std=0.5,
        fingerprint="none",
    )


def codec(model: Autoencoder, *shape: int, bounded: bool = True):
    torch.manual_seed(0)
    return model.build(info(*shape, bounded=bounded), lambda _: None)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 33, 21), (2, 7, 16)])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("patch", [1, 2])
def test_convolutions_take_images_of_any_size(shape, flat, patch):
    nets = Conv(channels=(8, 16), flat=flat, patch=patch)
    model = codec(Autoencoder(nets=nets, units=5, bottleneck=Plain()), *shape)
    x = torch.randn(3, *shape)
    code = model.encode(x)
    places = () if flat else tuple(math.ceil(math.ceil(side / patch) / 2) for side in shape[1:])
    assert code.z.shape == (3, 5, *places) == (3, *model.latent)
    assert model.mean(code.z).shape == x.shape


@pytest.mark.parametrize("shape", [(6,), (1, 8, 8), (3, 5, 7)])
@pytest.mark.parametrize("hidden", [(), (12,), (20, 10)])
def test_dense_nets_take_any_shape(shape, hidden):
    model = codec(Autoencoder(nets=Dense(hidden=hidden), units=4, bottleneck=Plain()), *shape)
    x = torch.randn(3, *shape)
    assert model.encode(x).z.shape == (3, 4)
    assert model.reconstruct(x).shape == x.shape
    layers = [m for m in model.encoder.modules() if isinstance(m, torch.nn.Linear)]
    assert [layer.out_features for layer in layers] == [*hidden, 4]


def test_nets_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"write model\.nets=dense"):
        codec(Autoencoder(nets=Conv()), 6)
    with pytest.raises(ConfigError, match="cannot be halved 2 times"):
        codec(Autoencoder(nets=Conv(channels=(8, 8, 8))), 1, 3, 3)


@pytest.mark.parametrize("shape", [(20,), (4, 3, 5)])
def test_the_largest_keep_values_and_gradients(shape):
    k = 6
    bottleneck = TopK(k=k, start=1, evaluated=1.5).build(shape)
    h = torch.randn(7, *shape, requires_grad=True)
    z = bottleneck.train()(h).z
    flat, chosen = h.flatten(1), z.flatten(1) != 0
    assert (chosen.sum(1) == k).all()
    assert torch.equal(z.flatten(1)[chosen], flat[chosen])
    least = flat.masked_fill(~chosen, math.inf).amin(1)
    assert (least >= flat.masked_fill(chosen, -math.inf).amax(1)).all()
    weights = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((weights * z).sum(), h)
    assert torch.equal(gradient, weights * chosen.view_as(weights))
    assert ((bottleneck.eval()(h).z != 0).flatten(1).sum(1) == 9).all()
    with pytest.raises(ConfigError, match="has no 61 largest"):
        TopK(k=61).build((4, 3, 5))


def test_fewer_units_are_kept_as_training_goes_on():
    bottleneck = TopK(k=10, start=4).build((100,)).train()
    h = torch.randn(3, 100)
    for progress, kept in ((0.0, 40), (0.25, 25), (0.5, 10), (1.0, 10)):
        bottleneck.anneal(progress)
        assert ((bottleneck(h).z != 0).sum(1) == kept).all()
        assert ((bottleneck.eval()(h).z != 0).sum(1) == 10).all()
        bottleneck.train()


@pytest.mark.parametrize("hidden", [(), (12,)])
def test_a_mirrored_start_is_the_transpose_and_black_says_nothing(hidden):
    model = Autoencoder(nets=Dense(hidden=hidden, mirrored=True), units=5, bottleneck=Plain())
    built = codec(model, 1, 4, 4)
    there = [m.weight for m in built.encoder.modules() if isinstance(m, torch.nn.Linear)]
    back = [m.weight for m in built.decoder.modules() if isinstance(m, torch.nn.Linear)]
    assert all(torch.equal(a, b.T) for a, b in zip(there, back[::-1], strict=True))
    black = torch.full((1, 1, 4, 4), -1.0)
    assert built.encode(black).z.abs().max() < 1e-5
    torch.testing.assert_close(built.reconstruct(black), black)
    with pytest.raises(ConfigError, match=r"write model\.nets\.mirrored=false"):
        codec(model.but(bottleneck=Gaussian()), 1, 4, 4)


def test_gaussian_codes_and_their_divergence():
    bottleneck = Gaussian().build((4, 2, 3))
    h = torch.randn(5, 8, 2, 3, dtype=torch.float32)
    noise = Noise.of(0, "test", 5)
    code = bottleneck(h, noise)
    law = torch.distributions.Normal(code.mean, code.std)
    exact = torch.distributions.kl_divergence(law, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(code.kl, exact.flatten(1).sum(1))
    torch.testing.assert_close(code.z, code.mean + code.std * noise.normal(0, (4, 2, 3)))
    assert torch.equal(bottleneck(h).z, h[:, :4])
    many = bottleneck.draw(Noise.of(1, "prior", 4000), (4,))
    assert many.mean().abs() < 5 / math.sqrt(16000)
    assert (many.std() - 1).abs() < 5 / math.sqrt(32000)


def test_moments_are_those_of_what_was_seen():
    """The running means are exact while the horizon is not reached, whatever the split."""
    torch.manual_seed(0)
    batches = [torch.randn(32, 3, 4) @ torch.randn(4, 4) + 1 for _ in range(5)]
    whole, parts = Moments(3), Moments(3)
    for z in batches:
        whole.add(whole.sums(z, Noise.of(0, "a", 32)))
        sums: dict[str, torch.Tensor] = {}
        for start in range(0, 32, 7):
            ids = torch.arange(32)[start : start + 7]
            for name, value in parts.sums(z[ids], Noise.of(0, "a", ids)).items():
                sums[name] = sums.get(name, 0) + value
        parts.add(sums)
    rows = torch.cat([z[:16].movedim(1, -1).reshape(-1, 3) for z in batches])
    for moments in (whole, parts):
        torch.testing.assert_close(moments.mean, rows.mean(0))
        torch.testing.assert_close(moments.second, rows.T @ rows / len(rows))
    drawn = whole.draw(Noise.of(0, "draw", 5000), (3, 4)).movedim(1, -1).reshape(-1, 3)
    covariance = torch.cov(rows.T, correction=0)
    torch.testing.assert_close(torch.cov(drawn.T), covariance, atol=0.1, rtol=0.05)
    assert HORIZON > 5


def parts_of(model, objective, x, noise_of, splits, progress=0.5):
    """Gradient and statistics of a global batch that is looked at in parts, as the trainer does."""
    model.zero_grad()
    sums: dict[str, torch.Tensor] = {}
    contexts = [Context(3, progress, noise_of(torch.arange(start, stop))) for start, stop in splits]
    batches = [Batch(x[start:stop], torch.arange(start, stop)) for start, stop in splits]
    if objective.looks and len(splits) > 1:
        for batch, context in zip(batches, contexts, strict=True):
            for name, value in objective.look(model, batch, context).items():
                sums[name] = sums.get(name, 0) + value
        contexts = [context._replace(totals=sums) for context in contexts]
    stats: dict[str, torch.Tensor] = {}
    total = 0.0
    for batch, context in zip(batches, contexts, strict=True):
        loss = objective(model, batch, context)
        (loss.per_sample.sum() / len(x)).backward()
        total += float(loss.per_sample.detach().sum()) / len(x)
        for name, value in loss.stats.items():
            stats[name] = stats.get(name, 0) + value
    return total, [p.grad.clone() for p in model.parameters() if p.grad is not None], stats


@pytest.mark.parametrize(
    ("model", "objective"),
    [
        (Autoencoder(bottleneck=SIGMOID, units=6), Autoencoding(sparsity=Sparsity())),
        (Autoencoder(bottleneck=SIGMOID, units=6), Autoencoding(contraction=Contraction(probes=2))),
        (Autoencoder(bottleneck=TopK(k=2), units=6), Autoencoding()),
        (Autoencoder(likelihood=Bernoulli()), Autoencoding(divergence=Capacity())),
        (Autoencoder(likelihood=Normal(std=None)), Autoencoding(divergence=Constrained())),
        (Autoencoder(bottleneck=VQ(codes=8), units=3), Autoencoding()),
        (Autoencoder(bottleneck=VQ(codes=8, update="gradient"), units=3), Autoencoding()),
        (Autoencoder(bottleneck=FSQ(levels=(3, 4))), Autoencoding()),
        (Autoencoder(bottleneck=Hierarchy(channels=8), units=6), Autoencoding()),
    ],
    ids=lambda value: value.bottleneck.kind if isinstance(value, Autoencoder) else "",
)
def test_an_update_does_not_depend_on_the_split(model, objective):
    layout = model.bottleneck.kind in ("vq", "fsq", "hierarchy")
    nets = Conv(channels=(8, 8), flat=False) if layout else None
    built = codec(model.but(nets=nets or Dense(hidden=(10,))), 1, 8, 8)
    loss = objective.build(built, info(1, 8, 8), lambda _: None)
    x = torch.rand(24, 1, 8, 8) * 2 - 1

    def noise_of(ids):
        return Noise.of(0, "train", ids)

    whole = parts_of(built, loss, x, noise_of, [(0, 24)])
    split = parts_of(built, loss, x, noise_of, [(0, 5), (5, 16), (16, 24)])
    assert whole[0] == pytest.approx(split[0], rel=1e-5)
    for one, other in zip(whole[1], split[1], strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    assert whole[2].keys() == split[2].keys()
    for name in whole[2]:
        torch.testing.assert_close(whole[2][name], split[2][name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("rule", "progress", "expected"),
    [
        (Beta(weight=4.0), 0.5, lambda kl: 4 * kl),
        (Beta(weight=4.0, warmup=0.8), 0.2, lambda kl: kl),
        (Capacity(capacity=10, weight=3, rise=0.5), 0.25, lambda kl: 3 * (kl - 5).abs()),
        (Capacity(capacity=10, weight=3, rise=0.5), 0.9, lambda kl: 3 * (kl - 10).abs()),
        (Constrained(delta=5, start=2.0), 0.5, lambda kl: 2 * (kl - 5)),
    ],
)
def test_what_a_divergence_costs(rule, progress, expected):
    built = codec(Autoencoder(nets=Dense(hidden=()), units=3, likelihood=Bernoulli()), 1, 4, 4)
    objective = Autoencoding(divergence=rule).build(built, info(1, 4, 4), lambda _: None)
    x = torch.rand(6, 1, 4, 4) * 2 - 1
    noise = Noise.of(0, "train", 6)
    found = objective(built, Batch(x, torch.arange(6)), Context(0, progress, noise))
    binary = built.likelihood.seen(x, noise.child("binarise"))
    code = built.encode(binary, noise.child("code"))
    nats = built.likelihood.nats(built.decode(code.z), binary)
    torch.testing.assert_close(found.per_sample, nats + expected(code.kl))
    assert found.metrics["kl"][0] == pytest.approx(float(code.kl.detach().sum()), rel=1e-5)


def test_only_gaussian_codes_have_a_constraint():
    built = codec(Autoencoder(bottleneck=Plain()), 1, 8, 8)
    with pytest.raises(ConfigError, match=r"write model\.bottleneck\.kind=gaussian"):
        Autoencoding(divergence=Constrained()).build(built, info(1, 8, 8), lambda _: None)


def test_a_family_holds_together():
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match=r"write objective\.kind=autoencoding"):
        Recipe(name="x", model=Autoencoder(), generation=Decoding())
    with pytest.raises(ValidationError, match=r"write generation\.kind=sampling"):
        Recipe(name="x", generation=Decoding())


@pytest.mark.parametrize("delta", [4.0, 12.0])
def test_the_multiplier_reaches_its_delta(delta, tmp_path):
    """Eq 8 and 9 of the notes: as likely as can be while KL ≤ δ."""
    recipe = Recipe(
        name="constrained",
        data=Digits(),
        model=Autoencoder(nets=Dense(hidden=(64,)), units=8, likelihood=Normal(std=0.3)),
        objective=Autoencoding(divergence=Constrained(delta=delta, rate=0.05)),
        optim=Optim(samples=60_000, batch=128, lr=3e-3, warmup=1000),
        generation=Decoding(samples=1),
    )
    run = Run.create(recipe, tmp_path)
    kl = [float(event.metrics["kl"]) for event in run.train(previews=False)]
    assert sum(kl[-50:]) / 50 == pytest.approx(delta, rel=0.03)
    assert 0 < float(run.learner("none").objective.multiplier) < 100
