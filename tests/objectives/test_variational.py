"""Learned variance: its optimum, what L_hybrid trains by which loss, and the choice of times."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from ornstein.data.info import Batch, DataInfo
from ornstein.diffusion.bound import bound, chain_of, kl_nats, term_nats
from ornstein.diffusion.denoiser import Denoiser, bind
from ornstein.diffusion.grid import Trailing
from ornstein.diffusion.levels import level_at
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.oracle import gaussian
from ornstein.diffusion.prediction import Eps
from ornstein.diffusion.process import VE, VP, Cosine, Tabulated
from ornstein.diffusion.steps import Ancestral
from ornstein.diffusion.walk import ancestral_std, sample
from ornstein.errors import ConfigError
from ornstein.nn.networks import MLP
from ornstein.noise import Noise
from ornstein.objectives.base import Context
from ornstein.objectives.denoising import Denoising, Discrete
from ornstein.objectives.importance import MEMORY
from ornstein.objectives.variational import Hybrid, Variational
from ornstein.optim import Optim
from ornstein.training import Learner, TrainState, train
from tests.helpers import Given, f64

INFO = DataInfo(
    name="x", kind="vector", shape=(2,), count=64, mean=0.0, std=0.5, fingerprint="", bins=None
)
PROCESS = Tabulated(rule="cosine", steps=20)


def model(steps_seed=0, learn=True):
    torch.manual_seed(steps_seed)
    net = MLP(width=16, depth=1).build((2,), 2 if learn else 1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return Denoiser(net, PROCESS, Eps(), learn_spread=learn)


def data(count=32):
    return Batch(0.5 * Noise.of(1, "data", count).normal(0, (2,)), torch.arange(count))


def context(count=32, step=0):
    return Context(step, 0.0, Noise.of(7, "train", count).at(step))


# --- the optimum ---------------------------------------------------------------------------------


def posterior_variance(variance, level):
    return 1 / (1 / variance + (level.alpha / level.sigma) ** 2)


@pytest.mark.parametrize("variance", [1e-6, 0.25, 1.0, 4.0])
@pytest.mark.parametrize("process", [VP(), Cosine(), VE()], ids=lambda p: p.kind)
def test_the_optimal_variance_of_gaussian_data(process, variance):
    """σ²_{s|t} + (α_s σ²_{t|s}/σ_t²)² Var[x0|x_t] is where the gradient in v vanishes, t ≥ 2.

    For point data it is β̃ (v = 0), for unit-variance data under VP it is β (v = 1), and for wider
    data v is above 1: it is not clamped.
    """
    levels = Trailing()(process, 8)
    chain = chain_of(levels)
    nodes, weights = np.polynomial.hermite_e.hermegauss(5)
    weights = torch.from_numpy(weights / weights.sum())
    for i, (t, s) in enumerate(itertools.pairwise(levels[:-1])):
        if t.alpha == 0:
            continue  # from pure noise β̃ = β for any data but for rounding
        small = ancestral_std(t, s) ** 2
        large = t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2
        left = posterior_variance(variance, t)
        best = small + (s.alpha * large / t.sigma**2) ** 2 * left
        v = torch.tensor(math.log(best / small) / math.log(large / small), dtype=torch.float64)
        v.requires_grad_()
        error = math.sqrt(left) * torch.from_numpy(nodes)[:, None]  # x̂0 − x0 given x_t
        (weights @ kl_nats(error, v, chain.log_ratio[i], chain.gain[i])).backward()
        assert abs(v.grad.item()) < 1e-7 * chain.log_ratio[i].item() + 1e-9
        if variance == 1.0 and process.kind != "ve":
            assert v.item() == pytest.approx(1, abs=1e-9)
        if variance == 1e-6 and t.sigma > 0.5:
            assert v.item() == pytest.approx(0, abs=1e-3)
        if variance == 4.0 and process.kind != "ve":
            assert v.item() > 1


class Table(nn.Module):
    """Exact ε for N(0, s²) in one dimension, and one free spread for each row of a chain."""

    def __init__(self, steps, variance):
        super().__init__()
        self.spread = nn.Parameter(torch.zeros(steps, dtype=torch.float64))
        self.oracle = gaussian(f64([0.0]), f64([[variance]]))

    def forward(self, x, label, cond):
        i = (label.double() / 1000 * len(self.spread)).round().long()
        t = i.double() / len(self.spread)
        eps = self.oracle(x, level_at(PROCESS, t)).eps
        return torch.cat((eps, self.spread[i - 1].unsqueeze(1)), dim=1)


def test_l_hybrid_trains_the_variance_to_its_optimum():
    """Gradient descent on L_hybrid moves a free v per step to the closed form (with the mean
    exact, all that L_hybrid can still learn)."""
    variance, steps = 0.25, PROCESS.steps
    table = Table(steps, variance)
    denoiser = Denoiser(table, PROCESS, Eps(), learn_spread=True)
    info = INFO.model_copy(update={"shape": (1,)})
    objective = Hybrid(steps=steps, weight=1.0).build(denoiser, info, None)
    optimizer = torch.optim.Adam(table.parameters(), lr=0.02)
    for step in range(400):
        x0 = 0.5 * Noise.of(step, "x", 2000).normal(0, (1,), torch.float64)
        loss = objective(denoiser, Batch(x0, torch.arange(2000)), context(2000, step))
        optimizer.zero_grad()
        loss.per_sample.mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 400)
        optimizer.step()
    chain = chain_of(Trailing()(PROCESS, steps))
    learned = 0.5 * (table.spread.detach().flip(0) + 1)
    snr = (chain.level.alpha / chain.level.sigma) ** 2
    left = 1 / (1 / variance + snr)
    best = torch.log1p(chain.gain * left)[:-1] / chain.log_ratio[:-1]
    # What counts is the log of the variance, v·r: to about the noise of the last updates.
    torch.testing.assert_close(
        learned[:-1] * chain.log_ratio[:-1], best * chain.log_ratio[:-1], atol=0.03, rtol=0
    )
    last = math.log(left[-1] / chain.small) / math.log(chain.large / chain.small)
    assert learned[-1].item() == pytest.approx(last, abs=0.05)


# --- L_hybrid ------------------------------------------------------------------------------------


def test_l_hybrid_is_l_simple_plus_the_bound_in_bits_per_dimension():
    """Each part written out for every sample, T·L_t/(D ln 2) for the bound."""
    denoiser, batch, where = model(), data(), context()
    loss = Hybrid(steps=20, weight=0.25).build(denoiser, INFO, None)(denoiser, batch, where)
    plain = Denoising(levels=Discrete(steps=20), range=None)(denoiser, batch, where)
    torch.testing.assert_close(
        loss.metrics["simple"][0], plain.per_sample.sum(), rtol=1e-6, atol=1e-6
    )
    i = 19 - (20 * where.noise.child("level").uniform(0, (), torch.float64)).floor().long()
    levels = Trailing()(PROCESS, 20)
    chain = chain_of(levels)
    eps = where.noise.child("eps").normal(0, (2,))
    expected = []
    for b in range(len(batch.x)):
        level = levels[i[b]]
        x0 = batch.x[b : b + 1]
        prediction = denoiser(level.alpha * x0 + level.sigma * eps[b : b + 1], level)
        simple = (prediction.eps - eps[b : b + 1]).square().mean()
        nats = term_nats(x0, prediction.x0, prediction.spread, chain, i[b : b + 1], None)
        expected.append(simple + 0.25 * 20 * nats[0] / (2 * math.log(2)))
    torch.testing.assert_close(loss.per_sample, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_the_bound_does_not_move_the_mean():
    """Its gradient reaches the second half of the outputs alone (arXiv:2102.09672, §3.1)."""
    denoiser, batch, where = model(), data(), context()
    caught = {}

    def catch(module, inputs, out):
        out.retain_grad()
        caught["out"] = out

    denoiser.network.register_forward_hook(catch)

    def gradient(weight):
        loss = Hybrid(steps=20, weight=weight).build(denoiser, INFO, None)
        loss(denoiser, batch, where).per_sample.sum().backward()
        return caught["out"].grad.clone()

    none, much = gradient(0.0), gradient(10.0)
    assert torch.equal(none[:, :2], much[:, :2])
    assert torch.count_nonzero(none[:, 2:]) == 0
    assert torch.count_nonzero(much[:, 2:]) > 0


def test_a_fixed_variance_cannot_be_trained():
    denoiser = model(learn=False)
    with pytest.raises(ConfigError, match="write model.variance=learned"):
        Hybrid().build(denoiser, INFO, None)
    Variational(steps=20).build(denoiser, INFO, None)(denoiser, data(), context())  # L_vlb can


# --- L_vlb ---------------------------------------------------------------------------------------


def loss_of(objective, denoiser, draws=4000):
    """Per-sample losses of one point, over many draws of time and noise."""
    x0 = torch.tensor([[0.4, -0.3]]).repeat(draws, 1)
    return objective(denoiser, Batch(x0, torch.arange(draws)), context(draws)).per_sample


def warm(objective, denoiser):
    """Let the objective measure its terms, as training does."""
    for step in range(40):
        x0 = torch.tensor([[0.4, -0.3]]).repeat(200, 1)
        where = context(200, step)
        loss = objective(denoiser, Batch(x0, torch.arange(200)), where)
        objective.after_step(denoiser, loss.stats, where)
    assert bool((objective.seen >= MEMORY).all())


def test_l_vlb_estimates_the_sum_of_terms_whatever_the_times():
    """Even or by importance, its mean is Σ L_t as `bound` has it, and the second varies less."""
    denoiser = model(3)
    even = Variational(steps=20, importance=False).build(denoiser, INFO, None)
    chosen = Variational(steps=20, importance=True).build(denoiser, INFO, None)
    warm(chosen, denoiser)
    assert (chosen.probabilities() - 0.05).abs().max() > 0.02
    assert chosen.probabilities().sum().item() == pytest.approx(1)
    x0 = torch.tensor([[0.4, -0.3]]).repeat(4000, 1)
    nats = bound(bind(denoiser), Trailing()(PROCESS, 20), x0, Noise.of(0, "n", 4000))
    truth = (nats.total - nats.parts["L_T"]).mean().item() / (2 * math.log(2))
    spreads = []
    for objective in (even, chosen):
        losses = loss_of(objective, denoiser).double()
        error = losses.std().item() / math.sqrt(len(losses))
        assert losses.mean().item() == pytest.approx(truth, abs=5 * error)
        spreads.append(losses.std().item())
    assert spreads[1] < 0.5 * spreads[0]


def test_times_are_drawn_as_often_as_they_should():
    denoiser = model(3)
    objective = Variational(steps=20).build(denoiser, INFO, None)
    warm(objective, denoiser)
    p = objective.probabilities()
    x0 = torch.zeros(20_000, 2)
    stats = objective(denoiser, Batch(x0, torch.arange(20_000)), context(20_000)).stats
    drawn = stats["seen"] / 20_000
    assert ((drawn - p).abs() < 5 * torch.sqrt(p / 20_000)).all()


def test_measured_squares_approach_the_mean_square():
    """Constant terms: the corrected average is exact from the first update on."""
    denoiser = model(3)
    objective = Variational(steps=20).build(denoiser, INFO, None)
    count = torch.full((20,), 3.0, dtype=torch.float64)
    square = torch.arange(1, 21, dtype=torch.float64)
    for _ in range(4):
        objective.after_step(None, {"seen": count, "square": 3 * square}, None)
    corrected = objective.square / (1 - (1 - 1 / MEMORY) ** objective.seen.double())
    torch.testing.assert_close(corrected, square)
    expected = 0.999 * square.sqrt() / square.sqrt().sum() + 0.001 / 20
    torch.testing.assert_close(objective.probabilities(), expected)


class Points:
    """A source of the same eight points for ever."""

    def at(self, position, count):
        ids = torch.arange(position, position + count) % 8
        return Batch(torch.stack((ids / 8 - 0.5, 0.25 - ids / 16), 1).float(), ids)


@pytest.mark.parametrize("choice", [Hybrid(steps=20), Variational(steps=20)], ids=lambda c: c.kind)
def test_training_does_not_depend_on_micro_batches(choice):
    """Weights and the measured squares: sums over the global batch are all that counts."""
    ends = []
    for micro in (None, 3):
        denoiser = model(1)
        learner = Learner(denoiser, choice.build(denoiser, INFO, None))
        optim = Optim(batch=16, micro_batch=micro, samples=400, lr=1e-3)
        state = TrainState(learner, optim)
        for event in train(state, Points(), optim, 400, 0):
            assert "vlb" in event.metrics
        ends.append({k: v.clone() for k, v in learner.state_dict().items()})
    for key, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][key], rtol=1e-3, atol=1e-4)


# --- sampling ------------------------------------------------------------------------------------


def test_a_learned_variance_is_drawn_with_on_any_stride():
    """Steps of the trained chain and of strides of it: v belongs to the pair that is joined."""
    denoiser = model(2)
    for steps in (20, 7, 3):
        levels = Trailing()(PROCESS, steps)
        x = Noise.of(0, "x", 3).normal(0, (2,))
        for i in range(steps - 1):
            z = torch.ones_like(x)
            step = Ancestral(spread=0.9)
            mean, _ = step.along(denoiser.process, levels)(
                bind(denoiser), i, x, Given(torch.zeros_like(x)), None
            )
            moved, _ = step.along(denoiser.process, levels)(bind(denoiser), i, x, Given(z), None)
            t, s = levels[i], levels[i + 1]
            small = ancestral_std(t, s)
            large = math.sqrt(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2)
            v = denoiser(x, t).spread
            torch.testing.assert_close(moved - mean, large**v * small ** (1 - v))
        last = list(
            sample(bind(denoiser), denoiser.process, levels, Ancestral(), x, Noise.of(1, "s", 3))
        )[-1].x
        assert torch.isfinite(last).all()


def test_a_network_with_twice_the_outputs_starts_in_the_middle():
    """Zero outputs at first: v = ½, the geometric mean of β̃ and β."""
    choice = Diffusion(variance="learned", network=MLP(width=8, depth=1))
    denoiser = choice.build(INFO, None)
    prediction = denoiser(torch.zeros(1, 2), level_at(VP(), 0.5))
    assert prediction.spread.tolist() == [[0.5, 0.5]]
    assert (
        Diffusion(network=MLP(width=8, depth=1))
        .build(INFO, None)(torch.zeros(1, 2), level_at(VP(), 0.5))
        .spread
        is None
    )


@pytest.mark.parametrize("choice", [Hybrid(), Variational()], ids=lambda c: c.kind)
@pytest.mark.parametrize("rule", ["linear", "cosine"])
def test_gradients_are_finite_on_eight_bit_images_from_the_first_update(choice, rule):
    """Float32, 256 bins, every row of a long chain, the untrained network's absurd estimates."""
    info = INFO.model_copy(update={"range": (-1.0, 1.0), "bins": 256})
    process = Tabulated(rule=rule, steps=1000)
    torch.manual_seed(0)
    net = MLP(width=16, depth=1).build((2,), 2)
    denoiser = Denoiser(net, process, Eps(), learn_spread=True)
    objective = choice.build(denoiser, info, None)
    x0 = torch.linspace(-1, 1, 256).repeat(16).view(-1, 2)
    loss = objective(denoiser, Batch(x0, torch.arange(len(x0))), context(len(x0)))
    loss.per_sample.mean().backward()
    assert torch.isfinite(loss.per_sample).all()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
