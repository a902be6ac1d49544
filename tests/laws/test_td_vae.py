"""TD-VAE's bound against a linear Gaussian state-space model, of which everything is known.

    z_0 ~ N(μ, P),  z_t = A z_{t−1} + a + N(0, Q),  x_t = C z_t + N(0, R)

All states and frames together are one Gaussian, and every law of some of them given others is read
off its mean and covariance: beliefs p(z_t|x_≤t), smoothing p(z₁|z₂, x_≤t₂), and what the bound is
to be compared with. Expectations over draws of states are exact: the bound is quadratic in the
draws, and of a quadratic the mean over ± √n e_i is the one over N(0, I). The Kalman filter, coded
from its own equations, gives the same beliefs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, distributions, nn

from ornstein.autoencoders.jumps import bound, whole
from ornstein.noise import Noise
from tests.helpers import f64

T, D, E = 6, 2, 3  # frames, numbers of a state, numbers of a frame
CLOSE = {"rtol": 0, "atol": 1e-8}
PAIRS = [(0, 1), (0, 3), (1, 2), (2, 5), (3, 6), (5, 6)]
LONG = [pair for pair in PAIRS if pair[1] > pair[0] + 1]
SHORT = [pair for pair in PAIRS if pair[1] == pair[0] + 1]


class Full(NamedTuple):
    """N(mean, covariance), mean [*, D]: a law as `jumps.Law` asks for one."""

    mean: Tensor
    covariance: Tensor

    @property
    def law(self):
        return distributions.MultivariateNormal(self.mean, self.covariance)

    def draw(self, noise):
        return self.at(noise.normal(0, self.mean.shape[1:], self.mean.dtype))

    def at(self, eps):
        return self.mean + eps @ torch.linalg.cholesky(self.covariance).mT

    def nats(self, z):
        return -self.law.log_prob(z)

    def kl(self, other, z):
        return distributions.kl_divergence(self.law, other.law)


class Model(NamedTuple):
    """A state-space model, and all of its states and frames as one Gaussian."""

    start: Tensor
    spread: Tensor
    move: Tensor
    drift: Tensor
    moved: Tensor
    shown: Tensor
    error: Tensor

    def joint(self):
        """The Gaussian of (z_0 ... z_T, x_1 ... x_T)."""
        size = D * (T + 1)
        mean, factor = [self.start], torch.zeros(size, size, dtype=torch.float64)
        factor[:D, :D] = torch.linalg.cholesky(self.spread)
        for t in range(1, T + 1):
            mean.append(self.move @ mean[-1] + self.drift)
            here, before = slice(D * t, D * (t + 1)), slice(D * (t - 1), D * t)
            factor[here] = self.move @ factor[before]
            factor[here, here] = torch.linalg.cholesky(self.moved)
        reads = torch.zeros(E * T, size, dtype=torch.float64)
        for t in range(1, T + 1):
            reads[E * (t - 1) : E * t, D * t : D * (t + 1)] = self.shown
        states = torch.cat(mean)
        whole_map = torch.cat((torch.eye(size, dtype=torch.float64), reads))
        covariance = whole_map @ factor @ factor.T @ whole_map.T
        covariance[size:, size:] += torch.block_diag(*[self.error] * T)
        return Full(whole_map @ states, covariance)


def model():
    return Model(
        start=f64([0.5, -1.0]),
        spread=f64([[1.2, 0.3], [0.3, 0.8]]),
        move=f64([[0.9, -0.4], [0.3, 0.8]]),
        drift=f64([0.1, 0.2]),
        moved=f64([[0.3, 0.1], [0.1, 0.2]]),
        shown=f64([[1.0, 0.2], [-0.5, 0.7], [0.1, 0.4]]),
        error=f64([[0.4, 0.0, 0.1], [0.0, 0.3, 0.0], [0.1, 0.0, 0.6]]),
    )


def z(t):
    """Where z_t is in the joint Gaussian."""
    return list(range(D * t, D * (t + 1)))


def x(*times):
    """Where the frames at these times are."""
    first = D * (T + 1)
    return [first + E * (t - 1) + i for t in times for i in range(E)]


def up_to(t):
    return x(*range(1, t + 1))


def given(joint, wanted, known, values):
    """The law of some coordinates given others, values [B, len(known)]."""
    mean, covariance = joint
    own = covariance[wanted][:, wanted]
    if not known:
        return Full(mean[wanted].expand(len(values), -1), own)
    cross = covariance[wanted][:, known]
    gain = torch.linalg.solve(covariance[known][:, known], cross.T).T
    return Full(mean[wanted] + (values - mean[known]) @ gain.T, own - gain @ cross.T)


class Exact:
    """The four laws of the model, as `jumps.Laws` asks for them; a belief [B, 1] is its time, and
    what it is about are the frames x [B, T, E] themselves."""

    def __init__(self, model, frames):
        self.model, self.joint = model, model.joint()
        self.frames = frames.flatten(1)

    def belief(self, b):
        t = int(b[0, 0])
        return given(self.joint, z(t), up_to(t), self.frames[:, : E * t])

    def smoothing(self, z2, b1, b2, jump):
        t1, t2 = int(b1[0, 0]), int(b2[0, 0])
        assert (jump == t2 - t1).all()
        values = torch.cat((z2, self.frames[:, : E * t2]), dim=1)
        return given(self.joint, z(t1), [*z(t2), *up_to(t2)], values)

    def transition(self, z1, jump):
        mean, covariance = z1, torch.zeros(D, D, dtype=torch.float64)
        for _ in range(int(jump[0])):
            mean = mean @ self.model.move.T + self.model.drift
            covariance = self.model.move @ covariance @ self.model.move.T + self.model.moved
        return Full(mean, covariance)

    def frame_nats(self, z, x):
        return Full(z @ self.model.shown.T, self.model.error).nats(x)


class Off(Exact):
    """Laws that are not those of one model."""

    def belief(self, b):
        law = super().belief(b)
        return Full(0.9 * law.mean + 0.1, 1.3 * law.covariance)

    def smoothing(self, z2, b1, b2, jump):
        law = super().smoothing(z2, b1, b2, jump)
        return Full(law.mean - 0.2, 0.8 * law.covariance)


class Short(Exact):
    """Smoothing that knows nothing of the frames in between."""

    def smoothing(self, z2, b1, b2, jump):
        t1, t2 = int(b1[0, 0]), int(b2[0, 0])
        values = torch.cat((z2, self.frames[:, : E * t1]), dim=1)
        return given(self.joint, z(t1), [*z(t2), *up_to(t1)], values)


class Points:
    """Noise whose draws are ± √n e_i, of n numbers in all: `place` says which are whose."""

    def __init__(self, places, width, start=None):
        self.places, self.width, self.start = places, width, start

    def child(self, purpose):
        return Points(self.places, self.width, self.places[purpose])

    def normal(self, draw, shape, dtype):
        n = len(self.places) * self.width
        points = math.sqrt(n) * torch.cat((torch.eye(n), -torch.eye(n))).to(dtype)
        return points[:, self.start : self.start + self.width].reshape(-1, *shape)

    @classmethod
    def of(cls, *purposes):
        return cls({name: D * i for i, name in enumerate(purposes)}, D)

    @property
    def count(self):
        return 2 * len(self.places) * self.width


def sequences(count, seed=0):
    """Sequences [count, T, E] of the model."""
    joint = model().joint()
    eps = Noise.of(seed, "sequences", count).normal(0, joint.mean.shape, torch.float64)
    drawn = joint.mean + eps @ torch.linalg.cholesky(joint.covariance).T
    return drawn[:, D * (T + 1) :].view(count, T, E)


def at(t, count):
    return torch.full((count, 1), float(t), dtype=torch.float64)


def expected(of, frames, t1, t2):
    """E[−J] over the two states, for each of the sequences: exact."""
    points = Points.of("later state", "earlier state")
    found = []
    for row in frames:
        n = points.count
        laws = of(model(), row.expand(n, -1, -1))
        jump = torch.full((n,), t2 - t1)
        terms = bound(laws, at(t1, n), at(t2, n), row[t2 - 1].expand(n, -1), jump, points)
        found.append(sum(terms).mean())
    return torch.stack(found)


def predictive(frames, t1, t2):
    """−log p(x_t₂|x_≤t₁) of each sequence."""
    values = frames.flatten(1)
    law = given(model().joint(), x(t2), up_to(t1), values[:, : E * t1])
    return law.nats(frames[:, t2 - 1])


def gap(frames, t1, t2, both):
    """KL of the posterior of the states `both` given x_≤t₂ from that given x_≤t₁ and x_t₂."""
    values, joint = frames.flatten(1), model().joint()
    known = [*up_to(t1), *x(t2)]
    seen = torch.cat((values[:, : E * t1], frames[:, t2 - 1]), dim=1)
    q = given(joint, both, up_to(t2), values[:, : E * t2])
    return q.kl(given(joint, both, known, seen), None)


def test_the_beliefs_are_those_of_the_kalman_filter():
    m, frames = model(), sequences(4)
    mean, covariance = m.start.expand(4, -1), m.spread
    for t in range(T + 1):
        if t:
            mean = mean @ m.move.T + m.drift
            covariance = m.move @ covariance @ m.move.T + m.moved
            innovation = m.shown @ covariance @ m.shown.T + m.error
            gain = covariance @ m.shown.T @ torch.linalg.inv(innovation)
            mean = mean + (frames[:, t - 1] - mean @ m.shown.T) @ gain.T
            covariance = covariance - gain @ m.shown @ covariance
        law = Exact(m, frames).belief(at(t, 4))
        torch.testing.assert_close(law.mean, mean, **CLOSE)
        torch.testing.assert_close(law.covariance, covariance, **CLOSE)


@pytest.mark.parametrize(("t1", "t2"), SHORT)
def test_with_exact_laws_a_step_of_one_is_tight(t1, t2):
    frames = sequences(5)
    found = expected(Exact, frames, t1, t2)
    torch.testing.assert_close(found, predictive(frames, t1, t2), **CLOSE)


@pytest.mark.parametrize(("t1", "t2"), LONG)
def test_over_a_longer_jump_the_gap_is_what_the_frames_between_say(t1, t2):
    frames = sequences(5)
    least = predictive(frames, t1, t2)
    of_both = gap(frames, t1, t2, [*z(t1), *z(t2)])
    assert (of_both > 1e-3).all()
    torch.testing.assert_close(expected(Exact, frames, t1, t2), least + of_both, **CLOSE)
    # The best that smoothing can do is to forget them; then the later state alone costs.
    of_later = gap(frames, t1, t2, z(t2))
    torch.testing.assert_close(expected(Short, frames, t1, t2), least + of_later, **CLOSE)
    assert (of_later < of_both).all()


@pytest.mark.parametrize(("t1", "t2"), PAIRS)
def test_it_bounds_what_the_laws_say_whatever_they_are(t1, t2):
    """p(x_t₂|x_≤t₁) = ∫ p_B(z₁|b_t₁) p_T p_D, of these laws and not of the model."""
    frames, m = sequences(5), model()
    laws = Off(m, frames)
    before = laws.belief(at(t1, 5))
    moved = laws.transition(before.mean, torch.full((5,), t2 - t1))
    power = torch.linalg.matrix_power(m.move, t2 - t1)
    spread = power @ before.covariance @ power.T + moved.covariance
    law = Full(moved.mean @ m.shown.T, m.shown @ spread @ m.shown.T + m.error)
    excess = expected(Off, frames, t1, t2) - law.nats(frames[:, t2 - 1])
    assert (excess > 1e-3).all()


@pytest.mark.parametrize(("t1", "t2"), [(2, 3), (1, 4)])
def test_draws_estimate_it(t1, t2):
    """The mean over sequences is the entropy of x_t₂ given x_≤t₁, plus the gap, which is the same
    for all of them but for a mean."""
    count = 20_000
    frames = sequences(count, seed=1)
    jump = torch.full((count,), t2 - t1)
    terms = bound(
        Exact(model(), frames), at(t1, count), at(t2, count), frames[:, t2 - 1], jump,
        Noise.of(0, "draws", count),
    )  # fmt: skip
    joint = model().joint()
    law = given(joint, x(t2), up_to(t1), frames.flatten(1)[:, : E * t1]).law
    truth = law.entropy()[0] + gap(frames, t1, t2, [*z(t1), *z(t2)]).mean()
    total = sum(terms)
    error = total.std() / math.sqrt(count)
    assert abs(total.mean() - truth) < 4 * error
    assert error < 0.02


def test_the_parts_are_what_they_are_called():
    """nats = E −log p_D; kl = E KL(q_S ‖ p_B); the rest is the third."""
    t1, t2, frames = 1, 3, sequences(3)
    points = Points.of("later state", "earlier state")
    n, row = points.count, frames[0]
    laws, m = Exact(model(), row.expand(n, -1, -1)), model()
    found = bound(
        laws, at(t1, n), at(t2, n), row[t2 - 1].expand(n, -1), torch.full((n,), 2), points
    )
    later = given(m.joint(), z(t2), up_to(t2), row.flatten()[None, : E * t2])
    mean, spread = later.mean[0] @ m.shown.T, m.shown @ later.covariance @ m.shown.T
    nats = Full(mean, m.error).nats(row[t2 - 1]) + 0.5 * torch.trace(
        torch.linalg.solve(m.error, spread)
    )
    torch.testing.assert_close(found.nats.mean(), nats, **CLOSE)
    # KL(q(z₁,z₂) ‖ p_B(z₁) q(z₂)): what z₂ and the later frames say of z₁.
    both = given(m.joint(), [*z(t1), *z(t2)], up_to(t2), row.flatten()[None, : E * t2])
    before = given(m.joint(), z(t1), up_to(t1), row.flatten()[None, : E * t1])
    apart = Full(
        torch.cat((before.mean, later.mean), dim=1),
        torch.block_diag(before.covariance, later.covariance),
    )
    torch.testing.assert_close(found.kl.mean(), both.kl(apart, None)[0], **CLOSE)


def test_smoothing_from_the_end_bounds_whole_sequences():
    """With exact laws it is −log p(x), with others more."""
    frames, joint = sequences(3), model().joint()
    points = Points.of("last state", *[f"state {t}" for t in range(T)])
    n = points.count
    times = torch.arange(T + 1, dtype=torch.float64).expand(n, -1).unsqueeze(-1)
    known = x(*range(1, T + 1))
    for row in frames:
        many = row.expand(n, -1, -1)
        found = sum(whole(Exact(model(), many), times, many, points)).mean()
        truth = given(joint, known, [], row[None]).nats(row.flatten()[None])[0]
        torch.testing.assert_close(found, truth, **CLOSE)
        assert sum(whole(Off(model(), many), times, many, points)).mean() > truth + 1e-3


class Recurrence(nn.Module):
    """b_t = U b_{t−1} + V e_t + c, b_0 learned: a memory that the Kalman filter is one of."""

    def __init__(self, features, width):
        super().__init__()
        self.step = nn.Linear(features + width, width)
        self.start = nn.Parameter(torch.zeros(width))

    def forward(self, e):
        b = [self.start.expand(len(e), -1)]
        for seen in e.unbind(1):
            b.append(self.step(torch.cat((seen, b[-1]), dim=1)))
        return torch.stack(b, dim=1)


@pytest.mark.slow
def test_a_linear_model_learns_to_be_tight():
    """Linear maps in the place of networks, layers of one number each (which makes covariances
    full): trained on steps of 1, −J comes to −log p(x_t|x_<t) of the Kalman filter."""
    from ornstein.autoencoders.laws import NormalModule
    from ornstein.autoencoders.states import States
    from ornstein.autoencoders.tdvae_model import TDVAEModule
    from ornstein.data.info import DataInfo

    m = model()._replace(error=0.3 * torch.eye(E, dtype=torch.float64))
    joint = m.joint()
    root = torch.linalg.cholesky(joint.covariance)[D * (T + 1) :].float()
    centre = joint.mean[D * (T + 1) :].float()

    def drawn(count, step):
        eps = Noise.of(3, "linear", count).at(step).normal(0, (len(joint.mean),))
        return (centre + eps @ root.T).view(count, T, 1, 1, E)

    torch.manual_seed(0)
    info = DataInfo(
        name="test", kind="image", shape=(1, 1, E), count=1, mean=0, std=1.0, fingerprint=""
    )
    laws = [States(given, D, 1, 1) for given in (D, 3 * D, D)]
    for law, given_ in zip(laws, (D, 3 * D, D), strict=True):
        law.maps = nn.ModuleList(nn.Linear(given_ + i, 2) for i in range(D))
    trained = TDVAEModule(
        nn.Flatten(), Recurrence(E, D), nn.Sequential(nn.Linear(D, E), nn.Unflatten(1, (1, 1, E))),
        NormalModule(info, None), *laws, reach=1, timed=False,
    )  # fmt: skip

    def cost(frames, noise):
        b = trained.beliefs(frames)
        jump = torch.ones(len(frames), dtype=torch.int64)
        return sum(bound(trained, b[:, -2], b[:, -1], frames[:, -1], jump, noise))

    optim = torch.optim.Adam(trained.parameters(), lr=2e-2)
    steps = 1500
    for step in range(steps):
        for group in optim.param_groups:
            group["lr"] = 2e-2 * (1 - step / steps)
        optim.zero_grad()
        cost(drawn(256, step), Noise.of(0, "states", 256).at(step)).mean().backward()
        optim.step()
    with torch.no_grad():
        frames = drawn(20_000, 10**6)
        found = cost(frames, Noise.of(1, "states", 20_000)).double()
    values = frames.double().flatten(1)
    exact = given(joint, x(T), up_to(T - 1), values[:, : E * (T - 1)]).nats(values[:, -E:])
    excess = (found - exact).mean()
    error = (found - exact).std() / math.sqrt(len(exact))
    assert -3 * error < excess < 0.02
    # Before, the model knew no more than the spread of the data.
    alone = given(joint, x(T), [], values).nats(values[:, -E:])
    assert (alone - exact).mean() > 0.1


def chain(start, steps):
    """The law of z_1 ... z_T, z_t = A z_{t−1} + b + N(0, S), from a z_0 that is known; steps: of
    each, (A, b, S)."""
    size = D * len(steps)
    mean, factor = [start], torch.zeros(size + D, size, dtype=torch.float64)
    for t, (move, shift, spread) in enumerate(steps, 1):
        mean.append(move @ mean[-1] + shift)
        here, before = slice(D * t, D * (t + 1)), slice(D * (t - 1), D * t)
        factor[here] = move @ factor[before]
        factor[here, D * (t - 1) : D * t] = torch.linalg.cholesky(spread)
    return Full(torch.cat(mean[1:]), factor[D:] @ factor[D:].T)


class Affine(nn.Module):
    """u -> N(W u + c, S), as a law of a state."""

    def __init__(self, weight, bias, covariance):
        super().__init__()
        self.weight, self.bias, self.covariance = weight, bias, covariance

    def forward(self, u, around=None):
        return Full(u @ self.weight.T + self.bias, self.covariance)


class Last(nn.Module):
    """A memory that keeps the last frame only."""

    def forward(self, e):
        return torch.cat((torch.zeros_like(e[:, :1]), e), dim=1)


def test_the_baselines_bound_is_short_of_the_truth_by_what_filtering_does_not_know():
    """A posterior that sees the frame and the state before, p(z_t|z_{t−1}, x_t), knows nothing of
    later frames: −log p(x) + KL(q(z|x) ‖ p(z|x)), in closed form."""
    from ornstein.autoencoders.laws import NormalModule
    from ornstein.autoencoders.state_space_model import StateSpaceModule
    from ornstein.data.info import DataInfo

    std = 0.6
    eye = torch.eye(E, dtype=torch.float64)
    m = model()._replace(error=std**2 * eye)
    # Of the Gaussians of a step: p(z_t|z_{t−1}, x_t) has mean (1 − K C) (A z + a) + K x_t.
    inverse = torch.linalg.inv(m.moved) + m.shown.T @ m.shown / std**2
    spread = torch.linalg.inv(inverse)
    gain = spread @ m.shown.T / std**2
    kept = torch.eye(D, dtype=torch.float64) - gain @ m.shown
    info = DataInfo(
        name="test", kind="image", shape=(1, 1, E), count=1, mean=0, std=1.0, fingerprint=""
    )
    decoder = nn.Linear(D, E, bias=False, dtype=torch.float64)
    decoder.weight = nn.Parameter(m.shown)
    found = StateSpaceModule(
        nn.Flatten(), Last(), nn.Sequential(decoder, nn.Unflatten(1, (1, 1, E))),
        NormalModule(info, std),
        Affine(torch.cat((kept @ m.move, gain), dim=1), kept @ m.drift, spread),
        Affine(m.move, m.drift, m.moved), D,
    )  # fmt: skip
    found.start = nn.Parameter(m.start)
    points = Points({"states": 0}, D * T, 0)
    prior = chain(m.start, [(m.move, m.drift, m.moved)] * T)
    reads = torch.block_diag(*[m.shown] * T)
    both = torch.cat((torch.eye(D * T, dtype=torch.float64), reads))
    covariance = both @ prior.covariance @ both.T
    covariance[D * T :, D * T :] += std**2 * torch.eye(E * T, dtype=torch.float64)
    joint = Full(both @ prior.mean, covariance)
    states, shown = list(range(D * T)), list(range(D * T, (D + E) * T))
    for row in sequences(3):
        x = row.view(1, T, 1, 1, E).expand(points.count, -1, -1, -1, -1)
        bounded = sum(found.bound(x, x, points)).mean()
        steps = [(kept @ m.move, kept @ m.drift + gain @ seen, spread) for seen in row]
        q = chain(m.start, steps)
        values = row.flatten()[None]
        gap = q.kl(given(joint, states, shown, values), None)[0]
        truth = given(joint, shown, [], values).nats(values)[0]
        assert gap > 0.1
        torch.testing.assert_close(bounded, truth + gap, **CLOSE)
