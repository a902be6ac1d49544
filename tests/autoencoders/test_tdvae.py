"""Models of sequences: laws of layered states, the objective coded again, jumps and rollouts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import distributions

from ornstein.autoencoders.jumps import bound
from ornstein.autoencoders.likelihoods import Bernoulli, Logistic, Normal
from ornstein.autoencoders.rollout import Rollout, predict
from ornstein.autoencoders.states import Layered, States
from ornstein.autoencoders.states import Normal as Gaussian
from ornstein.autoencoders.tdvae import TDVAE, StateSpace
from ornstein.data.info import Batch, DataInfo
from ornstein.errors import ConfigError
from ornstein.nn.codecnets import Conv, Dense
from ornstein.nn.sequence import GatedMap, Memory
from ornstein.noise import Noise
from ornstein.objectives.base import Context
from ornstein.objectives.temporal import Jumps, WholeSequence, times

SMALL = {"nets": Dense(hidden=(16,)), "features": 12, "belief": 10, "units": 3, "hidden": 8}


def film(frames=6, shape=(1, 4, 5), **known):
    known = {"range": (-1.0, 1.0), "bins": 256, "kind": "sequence", **known}
    return DataInfo(
        name="film", shape=(frames, *shape), count=1, mean=0.0, std=0.5, fingerprint="", **known
    )


def built(choice, info=None):
    torch.manual_seed(0)
    return choice.build(info or film(), lambda reference: reference)


def td_vae(info=None, **changed):
    return built(TDVAE(**{**SMALL, "reach": 3, "likelihood": Normal(std=0.5), **changed}), info)


def state_space(info=None, **changed):
    return built(StateSpace(**{**SMALL, "likelihood": Normal(std=0.5), **changed}), info)


def frames(count=5, info=None):
    info = info or film()
    return 2 * Noise.of(0, "frames", count).uniform(0, info.shape) - 1


BOTH = pytest.mark.parametrize("make", [td_vae, state_space])


# --- laws of states -------------------------------------------------------------------------------


def affine(seed, layers=3, units=2):
    """A layered law whose layers depend on those above linearly: one Gaussian of all."""
    generator = torch.Generator().manual_seed(seed)

    def layer(number):
        weight = torch.randn(units, number * units, generator=generator, dtype=torch.float64)
        bias = torch.randn(units, generator=generator, dtype=torch.float64)
        log_std = 0.3 * torch.randn(units, generator=generator, dtype=torch.float64)
        return lambda above: Gaussian(
            above @ weight.T + bias, log_std.expand(*above.shape[:-1], units)
        )

    return tuple(map(layer, range(layers))), units


def law_of(seed, count, layers=3):
    maps, units = affine(seed, layers)
    return Layered(maps, units, torch.zeros(count, 0, dtype=torch.float64))


def joint_of(seed, layers=3):
    """The same as one Gaussian: what is drawn is affine in the draws, one by one."""
    size = 2 * layers

    units = torch.cat((torch.zeros(1, size), torch.eye(size))).double()
    mean, *columns = law_of(seed, size + 1, layers).at(units)
    factor = torch.stack([column - mean for column in columns], dim=1)
    return distributions.MultivariateNormal(mean, factor @ factor.T)


def test_a_layered_law_is_drawn_and_has_the_density_of_one_gaussian():
    count = 4000
    law = law_of(0, count)
    z = law.draw(Noise.of(0, "z", count))
    joint = joint_of(0)
    torch.testing.assert_close(law_of(0, count).nats(z), -joint.log_prob(z))
    assert torch.equal(law.nats(z), law_of(0, count).nats(z))  # of what it drew, from memory
    scale = joint.variance.sqrt()
    torch.testing.assert_close(z.mean(0) / scale, joint.mean / scale, atol=0.07, rtol=0)
    correlation = (z.T.cov() - joint.covariance_matrix) / scale.outer(scale)
    assert correlation.abs().max() < 0.1


def test_the_divergence_of_layered_laws_is_that_of_the_gaussians():
    count = 6000
    q, p = law_of(0, count), law_of(1, count)
    z = q.draw(Noise.of(0, "z", count))
    found = q.kl(p, z)
    truth = distributions.kl_divergence(joint_of(0), joint_of(1))
    error = found.std() / math.sqrt(count)
    assert abs(found.mean() - truth) < 4 * error < 0.1 * truth
    # It knows more than the draw itself does, and all of it where there is one layer.
    assert found.std() < (p.nats(z) - q.nats(z)).std()
    one, other = law_of(0, 3, 1), law_of(1, 3, 1)
    closed = one.kl(other, one.draw(Noise.of(0, "z", 3)))
    exact = distributions.kl_divergence(joint_of(0, 1), joint_of(1, 1))
    torch.testing.assert_close(closed, exact.expand(3))
    assert (q.kl(q, z) == 0).all()


def test_a_gated_map_is_the_papers():
    torch.manual_seed(0)
    net = GatedMap(3, 4, 2)
    u = torch.randn(5, 7, 3)
    weight, bias = net.both.weight, net.both.bias
    gated = torch.tanh(u @ weight[:4].T + bias[:4]) * torch.sigmoid(u @ weight[4:].T + bias[4:])
    torch.testing.assert_close(net(u), gated @ net.last.weight.T + net.last.bias)


def test_layers_see_those_above_them_and_the_condition():
    torch.manual_seed(0)
    law = States(4, 2, 3, 8)(torch.randn(5, 4))
    z = law.draw(Noise.of(0, "z", 5))
    assert z.shape == (5, 6)
    top, bottom = law.layers
    assert not torch.equal(bottom(z[:, :3]).mean, bottom(z[:, :3] + 1).mean)
    torch.testing.assert_close(
        law.nats(z), top(z[:, :0]).nats(z[:, :3]) + bottom(z[:, :3]).nats(z[:, 3:])
    )
    means = law.draw(None)
    torch.testing.assert_close(means[:, 3:], bottom(means[:, :3]).mean)


# --- beliefs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_belief_knows_the_past_only(kind):
    torch.manual_seed(0)
    memory = Memory(3, 5, kind)
    e = torch.randn(2, 6, 3)
    b = memory(e)
    changed = e.clone()
    changed[:, 3] += 1
    later = memory(changed)
    assert b.shape == (2, 7, 8)  # what the cell keeps, and the last frame's features
    assert torch.equal(b[:, :4], later[:, :4])
    assert not torch.isclose(b[:, 4:], later[:, 4:]).all(2).any()
    torch.testing.assert_close(memory(e[:, :2]), b[:, :3])
    torch.testing.assert_close(memory(e[:, :0]), b[:, :1])


@BOTH
def test_a_state_after_some_frames_does_not_depend_on_the_others(make):
    model, x = make(), frames()
    torch.testing.assert_close(model.states(x)[:, 2], model.state(x[:, :3], None))
    assert model.state(x[:, :0], Noise.of(0, "z", 5)).shape == (5, 6)


# --- the objective, coded again -------------------------------------------------------------------


def log_normal(z, mean, log_std):
    return distributions.Normal(mean, log_std.exp()).log_prob(z).sum(-1)


def by_hand(model, x, b, t1, t2, noise):
    """−J of one pair of times of one sequence, from notes eq 14 and the paper's two layers."""
    jump = torch.zeros(1, model.reach)
    jump[0, t2 - t1 - 1] = 1
    b1, b2 = b[t1][None], b[t2][None]

    def outputs(maps, i, given, above):
        return maps[i](torch.cat((given, above), -1)).chunk(2, -1)

    def p_b(i, above, of):
        return outputs(model.p_b.maps, i, of, above)

    def q_s(i, above, of):  # around the belief at t₁
        mean, log_std = p_b(i, above, b1)
        shift, widening = outputs(model.q_s.maps, i, torch.cat((of, b1, b2, jump), -1), above)
        return mean + log_std.exp() * shift, log_std + widening

    def p_t(i, above, of):  # around the state at t₁
        by_length = (of[0, :, None] * jump[0, None, :]).reshape(1, -1)
        told = torch.cat((of, jump, by_length), -1)
        shift, log_std = outputs(model.p_t.maps, i, told, above)
        return of[:, 3 * i : 3 * i + 3] + shift, log_std

    def draw(law, of, noise):
        z = of[:, :0]
        for i in (0, 1):
            mean, log_std = law(i, z, of)
            z = torch.cat((z, mean + log_std.exp() * noise[i]), -1)
        return z

    def log_p(law, of, z):
        parts = [log_normal(z[:, 3 * i : 3 * i + 3], *law(i, z[:, : 3 * i], of)) for i in (0, 1)]
        return sum(parts)

    z2 = draw(p_b, b2, noise["later"])
    z1 = draw(q_s, z2, noise["earlier"])
    decoded = model.decoder(z2)
    log_x = distributions.Normal(decoded, 0.5).log_prob(x[t2 - 1][None]).flatten(1).sum(1)
    log_p_b1, log_q_s = log_p(p_b, b1, z1), log_p(q_s, z2, z1)
    j = log_x + log_p_b1 + log_p(p_t, z1, z2) - log_p(p_b, b2, z2) - log_q_s
    # The library takes the divergence of each layer in closed form where those above are drawn.
    exact = log_q_s - log_p_b1
    closed = 0.0
    for i in (0, 1):
        above = z1[:, : 3 * i]
        both = (q_s(i, above, z2), p_b(i, above, b1))
        laws = [distributions.Normal(mean, log_std.exp()) for mean, log_std in both]
        closed = closed + distributions.kl_divergence(*laws).sum(-1)
    return (-j - exact + closed)[0]


def test_the_objective_is_the_notes_equation():
    model, x = td_vae(), frames()
    objective = Jumps(pairs=2)
    context = Context(7, 0.5, Noise.of(0, "train", 5).at(7))
    loss = objective(model, Batch(x, torch.arange(5)), context)
    first, jump = times(context.noise.child("times"), 6, 3, 2)
    states = context.noise.child("states")
    drawn = {
        name: states.child(f"{name} state").normal(0, (2, 6)).split(3, -1)
        for name in ("later", "earlier")
    }
    e = torch.stack([model.encoder(row) for row in x])
    b = torch.cat((model.memory.cell(e)[0], e), -1)  # the belief has the last frame beside it
    b = torch.cat((model.memory.start.expand(5, 1, -1), b), 1)
    for row in range(5):
        expected = [
            by_hand(
                model, x[row], b[row], t1, t1 + d,
                {name: [part[row, pair][None] for part in drawn[name]] for name in drawn},
            )
            for pair, (t1, d) in enumerate(torch.stack((first, jump), -1)[row].tolist())
        ]  # fmt: skip
        torch.testing.assert_close(loss.per_sample[row], torch.stack(expected).mean())
    parts = sum(value for value, _ in loss.metrics.values())
    torch.testing.assert_close(parts, loss.per_sample.sum().detach())


def test_the_whole_bound_is_the_sum_of_steps_of_one_where_there_is_one_frame():
    """For T = 1 both are −log p(x_1) from no past."""
    info = film(frames=1)
    count = 4000
    model, x = td_vae(info, reach=1), frames(count, info)
    noise = Noise.of(0, "draws", count)
    with torch.no_grad():
        whole = sum(model.bound(x, x, noise))
        b = model.beliefs(x)
        jump = torch.ones(count, dtype=torch.int64)
        step = sum(bound(model, b[:, 0], b[:, 1], x[:, 0], jump, noise))
    apart = whole - step
    assert abs(apart.mean()) < 4 * apart.std() / math.sqrt(count)


def test_a_step_by_step_bound_is_the_papers_sum():
    """Σ −log p(x_t|z_t) + log q(z_t|z_{t−1}, b_t) − log p_T(z_t|z_{t−1}), in expectation."""
    model, x = state_space(layers=1), frames(3)
    terms = model.bound(x, x, Noise.of(0, "z", 3))
    b = model.beliefs(x)
    z, kl, nats = model.start.expand(3, -1), 0.0, 0.0
    for t in range(6):
        shift, spread = model.p_t.maps[0](z).chunk(2, -1)
        prior = z + shift, spread
        shift, widening = model.q.maps[0](torch.cat((z, b[:, t + 1]), -1)).chunk(2, -1)
        mean, log_std = prior[0] + spread.exp() * shift, spread + widening
        z = mean + log_std.exp() * Noise.of(0, "z", 3).normal(0, (6, 3))[:, t]
        q, p = (distributions.Normal(m, s.exp()) for m, s in ((mean, log_std), prior))
        kl = kl + distributions.kl_divergence(q, p).sum(-1)
        said = distributions.Normal(model.decoder(z), 0.5)
        nats = nats - said.log_prob(x[:, t]).flatten(1).sum(1)
    torch.testing.assert_close(terms.kl, kl)
    torch.testing.assert_close(terms.nats, nats)
    loss = WholeSequence()(
        model, Batch(x, torch.arange(3)), Context(0, 0.0, Noise.of(0, "train", 3))
    )
    assert loss.per_sample.shape == (3,)


def test_times_are_uniform_and_within_the_sequence():
    count, reach, total = 40_000, 4, 9
    first, jump = (t[:, 0] for t in times(Noise.of(0, "times", count), total, reach, 1))
    assert jump.min() == 1
    assert jump.max() == reach
    error = 4 * math.sqrt(0.25 * 0.75 / count)
    for length in range(1, reach + 1):
        chosen = first[jump == length]
        assert len(chosen) / count == pytest.approx(1 / reach, abs=error)
        share = torch.bincount(chosen, minlength=total) / len(chosen)
        places = total - length + 1  # the empty past is one
        assert (share[places:] == 0).all()
        torch.testing.assert_close(
            share[:places], torch.full((places,), 1 / places), atol=0.02, rtol=0
        )
    again = times(Noise.of(0, "times", torch.arange(10, 20)), total, reach, 1)
    assert torch.equal(again[0][:, 0], first[10:20])


# --- jumps and rollouts ---------------------------------------------------------------------------


class Counted:
    """A model whose jumps are written down."""

    def __init__(self, model):
        self.model, self.jumps = model, []

    def __getattr__(self, name):
        return getattr(self.model, name)

    def jump(self, z, frames, noise):
        self.jumps.append(frames)
        return self.model.jump(z, frames, noise)


def test_a_prediction_makes_no_steps_between():
    model, x, noise = Counted(td_vae(reach=4)), frames(), Noise.of(0, "predict", 5)
    found = predict(model, x[:, :2], [4], noise)
    assert found.shape == (5, 1, 1, 4, 5)
    assert model.jumps == [4]
    # One jump is p_T(·|z, 4) on the state after two frames.
    z = model.state(x[:, :2], noise.child("state"))
    there = model.transition(z, torch.full((5,), 4)).draw(noise.child("to 4").child("jump from 0"))
    torch.testing.assert_close(found[:, 0], model.mean(there))
    model.jumps.clear()
    predict(model, x, [1, 9], noise)
    assert model.jumps == [1, 4, 4, 1]
    model.jumps.clear()
    predict(model, x, [3], noise, longest=1)
    assert model.jumps == [1, 1, 1]


def test_states_do_not_depend_on_the_other_horizons_or_the_batch():
    model, x = td_vae(), frames()
    alone = predict(model, x[2:3], [3], Noise.of(0, "predict", [2]))
    together = predict(model, x, [1, 3], Noise.of(0, "predict", 5))
    torch.testing.assert_close(alone[0, 0], together[2, 1])


@BOTH
@pytest.mark.parametrize("likelihood", [Normal(std=None), Bernoulli(), Logistic()])
def test_rollouts_and_bounds_of_every_likelihood(make, likelihood):
    info = film()
    model = make(likelihood=likelihood)
    for how in (Rollout(), Rollout(x="draw")):
        *_, drawn = how(model, info, Noise.of(0, "generate", 4))
        assert drawn.shape == (4, *info.shape)
        assert not torch.equal(drawn[0], drawn[1])
        *_, other = how(model, info, Noise.of(0, "generate", [2, 3]))
        torch.testing.assert_close(drawn[2:].detach(), other.detach(), atol=1e-5, rtol=1e-5)
    x = frames()
    nats = Rollout().likelihood(model, info, x, Noise.of(0, "likelihood", 5))
    density = isinstance(likelihood, Normal)
    assert ("bins" in nats.parts) == density
    assert nats.total.shape == (5,)
    if density:
        width = 2 / 255
        assert nats.parts["bins"][0] == pytest.approx(-6 * 20 * math.log(width))
    assert Rollout().reconstruct(model, info, x).shape == x.shape


def test_a_rollout_is_a_chain_of_steps():
    model, info = td_vae(), film()
    noise = Noise.of(0, "generate", 3)
    *_, drawn = Rollout()(model, info, noise)
    z = model.belief(model.memory.start.expand(3, -1)).draw(noise.child("start"))
    for t in range(6):
        one = torch.ones(3, dtype=torch.int64)
        z = model.transition(z, one).draw(noise.child(f"step {t}"))
        torch.testing.assert_close(drawn[:, t], model.mean(z))


def test_cross_entropy_is_no_law():
    model = td_vae(likelihood=Bernoulli(binarise="none"))
    with pytest.raises(ConfigError, match="is no likelihood of anything"):
        Rollout().likelihood(model, film(), frames(), Noise.of(0, "likelihood", 5))


def test_an_untimed_transition_is_told_nothing():
    model = td_vae(timed=False)
    z = torch.randn(4, 6)
    near, far = (model.transition(z, torch.full((4,), d)).draw(None) for d in (1, 3))
    assert torch.equal(near, far)
    timed = td_vae()
    near, far = (timed.transition(z, torch.full((4,), d)).draw(None) for d in (1, 3))
    assert not torch.equal(near, far)


# --- what does not go together --------------------------------------------------------------------


@pytest.mark.parametrize("choice", [TDVAE(), StateSpace()])
def test_data_that_are_no_sequences_are_refused(choice):
    info = film().model_copy(update={"kind": "image", "shape": (1, 8, 8)})
    with pytest.raises(ConfigError, match="are no sequences of frames.*--data moving_digits"):
        choice.build(info, lambda reference: reference)


def test_what_cannot_work_is_refused():
    with pytest.raises(ConfigError, match="no jumps of 9; write model.reach=6"):
        td_vae(reach=9)
    with pytest.raises(ConfigError, match="model.nets.flat=true"):
        td_vae(nets=Conv(channels=(8, 8), flat=False))
    with pytest.raises(ConfigError, match="has no jumps to learn"):
        Jumps().build(state_space(), film(), lambda reference: reference)
    model, noise = td_vae(), Noise.of(0, "predict", 5)
    with pytest.raises(ConfigError, match="1 to 3 frames, not of 4"):
        predict(model, frames(), [5], noise, longest=4)
    with pytest.raises(ConfigError, match="1 or more ahead"):
        predict(model, frames(), [0], noise)


def test_convolutions_see_and_say_frames():
    model = td_vae(film(shape=(3, 8, 8)), nets=Conv(channels=(4, 8)))
    x = frames(2, film(shape=(3, 8, 8)))
    assert model.mean(model.states(x)).shape == x.shape
