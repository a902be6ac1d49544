"""Explicit and sliced score matching against denoising: one loss on average, by quadrature where
that can be had, and one optimum; and what a network needs for its gradient's gradient."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from ornstein.data.info import Batch
from ornstein.data.sources import Digits
from ornstein.diffusion.denoiser import Denoiser
from ornstein.diffusion.levels import Level, expand, level_at
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.oracle import Mixture
from ornstein.diffusion.prediction import EDM, X0, Eps, Score, V, resolve
from ornstein.diffusion.process import VE, VP, Cosine, Straight
from ornstein.errors import ConfigError
from ornstein.nn.networks import MLP, UNet
from ornstein.noise import Noise
from ornstein.objectives.base import Context
from ornstein.objectives.denoising import SNR, VLB, Denoising, LogNormal, Simple, UniformTime
from ornstein.objectives.score_matching import ScoreMatching
from ornstein.optim import Optim
from ornstein.recipe import Recipe
from ornstein.training import Learner, TrainState, flops_per_sample, train
from tests.helpers import PAIRS, PROCESSES, TARGETS, ZERO_TERMINAL_SNR, f64, two_dim_mixture


class Nodes:
    """The noise of an objective as a test gives it, by purpose."""

    def __init__(self, **given):
        self.given = given

    def child(self, purpose):
        return Nodes(now=self.given[purpose])

    def uniform(self, draw, shape, dtype):
        return self.given["now"]

    def normal(self, draw, shape, dtype):
        now = self.given["now"]
        return now[draw] if isinstance(now, list) else now

    def integers(self, draw, high, shape):
        return (self.given["now"][draw] + 1) // 2


def hermite(count):
    """Nodes and weights of E[f(z)], z ~ N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return f64(nodes), f64(weights / weights.sum())


TIMES = (0.05, 0.4, 0.9)
WEIGHTS, MEANS, STDS = (0.7, 0.3), (-0.8, 1.1), (0.3, 0.5)


def quadrature(process):
    """Batch, context and weights [K, N]: for each of K levels the sum over N is the expectation
    over x0 of a mixture and ε, to rounding for functions as smooth as those below."""
    (z, wz), (e, we) = hermite(24), hermite(48)
    x0, weight = [], []
    for share, mean, std in zip(WEIGHTS, MEANS, STDS, strict=True):
        x0.append(mean + std * z)
        weight.append(share * wz)
    pairs = torch.cartesian_prod(torch.cat(x0), e)
    weights = torch.cartesian_prod(torch.cat(weight), we).prod(1)
    u = f64([(t - process.smallest) / (1 - process.smallest) for t in TIMES])
    count = len(u)
    noise = Nodes(
        level=u.repeat_interleave(len(pairs)),
        eps=pairs[:, 1:].repeat(count, 1),
        direction=[torch.ones(count * len(pairs), 1, dtype=torch.float64)],
    )
    batch = Batch(pairs[:, :1].repeat(count, 1), torch.arange(count * len(pairs)))
    return batch, Context(0, 0.0, noise), weights


class Wave(nn.Module):
    """a sin(b x + c) + d x + e: smooth, and not the truth."""

    def __init__(self):
        super().__init__()
        self.of = nn.Parameter(f64([0.7, 1.3, 0.4, -0.2, 0.1]))

    def forward(self, x, label, cond):
        a, b, c, d, e = self.of
        return a * torch.sin(b * x + c) + d * x + e


def means_and_slopes(objective, model, batch, context, weights):
    """The expected loss at each level, and its gradient."""
    loss = objective(model, batch, context).per_sample.view(len(TIMES), -1) @ weights
    parameters = [p for p in model.parameters() if p.requires_grad]
    slopes = [torch.autograd.grad(one, parameters, retain_graph=True) for one in loss]
    return loss.detach(), torch.stack([torch.cat([g.flatten() for g in s]) for s in slopes])


# --- one loss ---------------------------------------------------------------------------------

WITH_SIGNAL = [(t, p) for t, p in PAIRS if p not in ZERO_TERMINAL_SNR]


@pytest.mark.parametrize("trace", ["exact", "sliced"])
@pytest.mark.parametrize(("target", "process"), WITH_SIGNAL)
def test_the_expectation_is_denoising_s(target, process, trace):
    """The loss and its gradient, at every level, for all targets and processes: by quadrature over
    data and noise."""
    law, aim = PROCESSES[process], TARGETS[target]
    model = Denoiser(Wave(), law, aim, sigma_data=0.9)
    batch, context, weights = quadrature(law)
    ours = ScoreMatching(trace=trace, range=None)
    theirs = Denoising(range=None)
    found, slope = means_and_slopes(ours, model, batch, context, weights)
    expected, expected_slope = means_and_slopes(theirs, model, batch, context, weights)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    for one, other in zip(slope, expected_slope, strict=True):
        assert (one - other).norm() < 1e-6 * other.norm()
    assert (expected_slope.norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize("weighting", [Simple(), SNR(), VLB()], ids=lambda w: w.kind)
def test_so_it_is_under_any_weighting(weighting):
    law = VP()
    model = Denoiser(Wave(), law, V())
    given = quadrature(law)
    found = means_and_slopes(ScoreMatching(weighting=weighting, range=None), model, *given)
    expected = means_and_slopes(Denoising(weighting=weighting, range=None), model, *given)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


class Mixing(nn.Module):
    """Two dimensions that see each other, in float64."""

    def forward(self, x, label, cond):
        a, b = x[:, :1], x[:, 1:]
        return torch.cat((torch.sin(a * b) + 0.3 * b, a * a - torch.cos(2 * b) + 0.1 * a * b), 1)


def drawn(count=6, dim=2):
    x0 = Noise.of(1, "data", count).normal(0, (dim,), torch.float64)
    return Batch(x0, torch.arange(count)), Noise.of(7, "train", count).at(3)


def given(noise, dim, directions):
    """The noise of a batch with its random directions replaced."""
    return Nodes(
        level=noise.child("level").uniform(0, (), torch.float64),
        eps=noise.child("eps").normal(0, (dim,), torch.float64),
        direction=directions,
    )


def test_slices_average_to_the_exact_trace():
    """Over all four sign vectors, and over Gaussian directions (by quadrature, which is exact for
    a quadratic form): sample by sample."""
    batch, noise = drawn()
    model = Denoiser(Mixing(), VP(), Eps())
    exact = ScoreMatching(trace="exact", range=None)(model, batch, Context(0, 0.0, noise))
    signs = [f64(v).expand(6, 2) for v in itertools.product((-1.0, 1.0), repeat=2)]
    sliced = ScoreMatching(projections=4, range=None)
    loss = sliced(model, batch, Context(0, 0.0, given(noise, 2, signs)))
    torch.testing.assert_close(loss.per_sample, exact.per_sample)

    nodes, weights = hermite(3)
    mean = torch.zeros(6, dtype=torch.float64)
    for i, j in itertools.product(range(3), repeat=2):
        v = torch.stack((nodes[i], nodes[j])).expand(6, 2)
        gaussian = ScoreMatching(directions="gaussian", range=None)
        loss = gaussian(model, batch, Context(0, 0.0, given(noise, 2, [v])))
        mean += (weights[i] * weights[j] * loss.per_sample).detach()
    torch.testing.assert_close(mean, exact.per_sample.detach())


def test_directions_are_drawn_for_each_sample_and_projection():
    """The loss with the directions of its own noise, drawn here again."""
    batch, noise = drawn()
    model = Denoiser(Mixing(), VP(), Eps())
    for name in ("rademacher", "gaussian"):
        objective = ScoreMatching(projections=3, directions=name, range=None)
        own = noise.child("direction")
        rows = [
            2.0 * own.integers(i, 2, (2,)) - 1.0
            if name == "rademacher"
            else own.normal(i, (2,), torch.float64)
            for i in range(3)
        ]
        ours = objective(model, batch, Context(0, 0.0, noise)).per_sample
        rows = [row.double() for row in rows]
        again = objective(model, batch, Context(0, 0.0, given(noise, 2, rows))).per_sample
        torch.testing.assert_close(ours, again)
        one = noise.of_samples(slice(2, 3))
        alone = objective(model, Batch(batch.x[2:3], batch.ids[2:3]), Context(0, 0.0, one))
        torch.testing.assert_close(alone.per_sample, ours[2:3])


def test_notes_eq_1_13():
    """tr ∇s + ½ ‖s‖² at x, times 2/D, plus the constant 1/σ²: the Jacobian by another road."""
    sigma = 0.6
    batch, noise = drawn()
    model = Denoiser(Mixing(), VE(), Score())
    law = LogNormal(mean=math.log(sigma), std=1e-12)
    objective = ScoreMatching(trace="exact", levels=law, range=None)
    loss = objective(model, batch, Context(0, 0.0, noise)).per_sample
    x = batch.x + sigma * noise.child("eps").normal(0, (2,), torch.float64)
    level = level_at(VE(), VE().time(f64(-2 * math.log(sigma))).item())

    def score(one):
        return model(one.unsqueeze(0), level).score.squeeze(0)

    for b in range(6):
        trace = torch.func.jacrev(score)(x[b]).trace()
        expected = trace + 0.5 * score(x[b]).square().sum()
        torch.testing.assert_close((loss[b] - 1 / sigma**2) * 2 / 2, expected)


# --- one optimum ------------------------------------------------------------------------------


class Truth(nn.Module):
    """The score of a Gaussian mixture in one dimension, whose parameters are to be learned."""

    def __init__(self, process):
        super().__init__()
        self.process, self.target, self.network = process, Eps(), None
        self.logits, self.means = nn.Parameter(f64(WEIGHTS).log()), nn.Parameter(f64(MEANS))
        self.log_stds = nn.Parameter(f64(STDS).log())

    def forward(self, x, level):
        alpha, sigma = (expand(c, x) for c in (level.alpha, level.sigma))
        variance = alpha**2 * (2 * self.log_stds).exp() + sigma**2
        gap = x - alpha * self.means
        joint = self.logits - 0.5 * variance.log() - 0.5 * gap**2 / variance
        share = torch.softmax(joint, 1)
        return resolve(x, level, sigma * (share * gap / variance).sum(1, keepdim=True), 0.0, 1.0)

    def output(self, x, level):
        return self(x, level).eps


@pytest.mark.parametrize("process", ["vp", "sub_vp", "linear"])
def test_all_three_are_stationary_at_the_truth(process):
    """On a mixture, for a model that can be the truth: no gradient there, and one elsewhere."""
    law = PROCESSES[process]
    model, given = Truth(law), quadrature(law)
    exact = Mixture(f64(WEIGHTS), f64(MEANS).view(2, 1), (f64(STDS) ** 2).view(2, 1, 1))
    for t in TIMES:
        level, x = level_at(law, t), torch.linspace(-3, 3, 50, dtype=torch.float64).unsqueeze(1)
        torch.testing.assert_close(model(x, level).eps, exact(x, level).eps)
    objectives = (
        ScoreMatching(trace="exact", range=None),
        ScoreMatching(trace="sliced", range=None),
        Denoising(range=None),
    )
    for objective in objectives:
        _, slope = means_and_slopes(objective, model, *given)
        # At t = 0.05 the mixture is sharp, and the quadrature has an error of its own.
        assert slope[1:].abs().max() < 2e-6
        assert slope[0].abs().max() < 2e-3
    with torch.no_grad():
        model.means += 0.2
    for objective in objectives:
        _, slope = means_and_slopes(objective, model, *given)
        assert slope.abs().max() > 0.01


class Scaled:
    """c times the exact score of a mixture in the plane: its best multiple is c = 1."""

    def __init__(self, c):
        self.c, self.oracle = c, two_dim_mixture()
        self.process, self.target, self.network = VP(), Eps(), None

    def __call__(self, x, level: Level):
        return resolve(x, level, self.c * self.oracle(x, level).eps, 0.0, 1.0)

    def output(self, x, level):
        return self(x, level).eps


def test_the_exact_score_is_the_best_multiple_of_itself():
    """L(c) is a parabola in c for every sample, so that ½ (L(2) − L(0)) is its slope at c = 1:
    zero on average, by 4,000 draws, within four standard errors that are small beside L''."""
    count = 4000
    x0 = two_dim_mixture().sample(Noise.of(2, "data", count))
    batch, context = Batch(x0, torch.arange(count)), Context(0, 0.0, Noise.of(3, "train", count))
    errors = {}
    for name, objective in {
        "exact": ScoreMatching(trace="exact", range=None),
        "sliced": ScoreMatching(range=None),
        "four": ScoreMatching(projections=4, range=None),
        "gaussian": ScoreMatching(directions="gaussian", range=None),
        "denoising": Denoising(range=None),
    }.items():
        low, middle, high = (
            objective(Scaled(c), batch, context).per_sample.detach() for c in (0.0, 1.0, 2.0)
        )
        slope, bend = 0.5 * (high - low), high - 2 * middle + low
        errors[name] = (slope.std() / math.sqrt(count)).item()
        assert slope.mean().abs() < 4 * errors[name]
        assert 4 * errors[name] < 0.12 * bend.mean()
    assert errors["exact"] < errors["four"] < errors["sliced"] < errors["gaussian"]


def fields(objective, target, batches=300):
    """What an MLP trained on a mixture in the plane says at some points, beside the truth: the
    mean squared errors of ε̂ and of saying nothing."""
    oracle, process = two_dim_mixture(), VP()

    class Source:
        def at(self, position, count):
            ids = torch.arange(position, position + count)
            return Batch(oracle.sample(Noise.of(3, "data", ids)).float(), ids)

    torch.manual_seed(0)
    learner = Learner(Denoiser(MLP(width=64, depth=2).build((2,), 1), process, target), objective)
    optim = Optim(lr=3e-3, batch=256, samples=256 * batches, warmup=0, averages=(), compile="off")
    for _ in train(TrainState(learner, optim), Source(), optim, optim.samples, seed=0):
        pass
    found, nothing = 0.0, 0.0
    for t in (0.2, 0.5, 0.8):
        level, clean = level_at(process, t), Source().at(10**9, 1000).x
        x = level.alpha * clean + level.sigma * Noise.of(5, "test", 1000).normal(0, (2,))
        with torch.no_grad():
            said, truth = learner.model(x, level).eps, oracle(x, level).eps
        found += (said - truth).square().mean().item() / 3
        nothing += (truth - truth.mean(0)).square().mean().item() / 3
    return found, nothing


@pytest.mark.slow
def test_all_three_train_to_one_score_field():
    """Within 2 % of the truth's own variation, on levels of t ≥ 0.1 (where the trace is tame)."""
    levels = LogNormal(mean=0.0, std=1.0)
    for objective in (
        ScoreMatching(trace="exact", levels=levels, range=None),
        ScoreMatching(levels=levels, range=None),
        Denoising(levels=levels, range=None),
    ):
        found, nothing = fields(objective, Eps())
        assert found < 0.02 * nothing, objective


# --- what it asks of networks and of the trainer ----------------------------------------------


def attending():
    """A small U-Net with attention whose last layers are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = UNet(channels=(8, 16), blocks=1, attention=(2,)).build((1, 8, 8), 1)
        for weight in network.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.05)
    return network


def gradient(objective, model, batch, context):
    model.zero_grad()
    loss = objective(model, batch, context).per_sample
    loss.mean().backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("way", ["recompute", "compile"])
def test_attention_recomputed_blocks_and_compilation(way):
    """A network with fused attention has second derivatives once the objective is built for it,
    where blocks are computed again in the backward pass and where it was compiled as well; and
    its gradient is that of finite differences along a random direction."""
    x0 = Noise.of(1, "data", 4).normal(0, (1, 8, 8))
    batch, context = Batch(x0, torch.arange(4)), Context(0, 0.0, Noise.of(2, "train", 4))
    info = Digits().load().info
    objective = ScoreMatching()
    plain = Denoiser(attending(), VP(), V())
    objective.build(plain, info, None)
    loss, slope = gradient(objective, plain, batch, context)
    assert torch.isfinite(slope).all()

    other = Denoiser(attending(), VP(), V())
    objective.build(other, info, None)
    if way == "recompute":
        for part in other.modules():
            if hasattr(part, "recompute"):
                part.recompute = True
    else:
        other.network.compile(backend="aot_eager")  # whose functions have one derivative
    again = gradient(objective, other, batch, context)
    torch.testing.assert_close(again[0], loss)
    torch.testing.assert_close(again[1], slope, rtol=1e-4, atol=1e-5)

    parameters = list(plain.parameters())
    v = [Noise.of(9, f"v{i}", 1).normal(0, p.shape)[0] for i, p in enumerate(parameters)]
    ends = []
    for h in (1e-3, -1e-3):
        with torch.no_grad():
            for p, d in zip(parameters, v, strict=True):
                p.add_(h * d)
        ends.append(objective(plain, batch, context).per_sample.double().mean().item())
        with torch.no_grad():
            for p, d in zip(parameters, v, strict=True):
                p.sub_(h * d)
    along = torch.dot(slope, torch.cat([d.flatten() for d in v])).item()
    assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(along, rel=0.02)


def test_micro_batches_and_empty_ones_change_nothing():
    """One update with micro-batches of 3 and with the whole batch; a rank may have no sample."""
    weights = []
    for micro in (None, 3):
        torch.manual_seed(0)
        learner = Learner(
            Denoiser(MLP(width=8, depth=1).build((2,), 1), VP(), Eps()), ScoreMatching()
        )
        for weight in learner.parameters():
            if not weight.any():
                nn.init.normal_(weight, std=0.05)
        optim = Optim(lr=1e-2, batch=8, micro_batch=micro, samples=16, warmup=0, compile="off")

        class Source:
            def at(self, position, count):
                ids = torch.arange(position, position + count)
                return Batch(Noise.of(0, "data", ids).normal(0, (2,)), ids)

        for _ in train(TrainState(learner, optim), Source(), optim, 16, seed=0):
            pass
        weights.append(torch.cat([p.detach().flatten() for p in learner.parameters()]))
        none = Noise.of(0, "train", torch.arange(0))
        empty = learner(Batch(torch.zeros(0, 2), torch.arange(0)), Context(0, 0.0, none))
        assert empty.per_sample.shape == (0,)
        empty.per_sample.sum().backward()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_sliced_on_digits_trains_a_unet(tmp_path):
    """Through a run, from the recipe's own words, with the network that digits get by default."""
    from ornstein.run import Run

    recipe = Recipe(
        name="sliced",
        model=Diffusion(target=V()),
        objective=ScoreMatching(),
        optim=Optim(lr=1e-3, batch=32, samples=192, warmup=0),
    )
    losses = [event.loss.item() for event in Run.create(recipe, tmp_path).train(previews=False)]
    assert len(losses) == 6
    assert np.isfinite(losses).all()


def test_its_work_can_be_counted():
    """Floating-point operations of an update, as `train` reports them: about twice denoising's,
    which has no second derivative."""
    counts = []
    for objective in (Denoising(), ScoreMatching(), ScoreMatching(projections=3)):
        info = Digits().load().info
        learner = Learner(Denoiser(attending(), VP(), V()), objective)
        objective.build(learner.model, info, None)

        class Source:
            def at(self, position, count):
                return Batch(torch.zeros(count, 1, 8, 8), torch.arange(count))

        counts.append(flops_per_sample(learner, Source(), 0))
    assert 1.7 < counts[1] / counts[0] < 2.5
    assert counts[2] > 1.7 * counts[1]


REFUSED = [
    (ScoreMatching(trace="exact"), VP(), (1, 9, 9), "each of the 81 dimensions"),
    (ScoreMatching(), Cosine(), (2,), "pure noise, whose score says nothing"),
    (ScoreMatching(), Straight(), (2,), "write model.process=vp"),
]


@pytest.mark.parametrize(("objective", "process", "shape", "words"), REFUSED)
def test_what_cannot_work_is_refused_when_it_is_built(objective, process, shape, words):
    info = Digits().load().info.model_copy(update={"shape": shape})
    model = Denoiser(nn.Identity(), process, V())
    with pytest.raises(ConfigError, match=words):
        objective.build(model, info, None)
    assert ScoreMatching(trace="exact").build(
        Denoiser(nn.Identity(), VP(), X0()), info.model_copy(update={"shape": (1, 8, 8)}), None
    )


def test_sharded_networks_are_refused(monkeypatch):
    batch, noise = drawn()
    monkeypatch.setattr("torch.distributed.fsdp.FSDPModule", Mixing)
    with pytest.raises(ConfigError, match=r"write optim\.shard=off"):
        ScoreMatching()(Denoiser(Mixing(), VP(), V()), batch, Context(0, 0.0, noise))


def test_it_is_denoising_s_twin_in_its_settings():
    assert ScoreMatching().levels == UniformTime()
    assert {"levels", "weighting", "range"} <= set(ScoreMatching.model_fields)
    assert EDM(sigma_data=0.5)  # any target will do
