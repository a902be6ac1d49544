"""An average that nobody kept, made of others: against the one that was kept after all."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from ornstein import checkpoint
from ornstein.averages import Profile, coefficients, inner
from ornstein.errors import ConfigError
from ornstein.optim import Optim, Power
from ornstein.recipe import Recipe, named
from ornstein.run import Run
from ornstein.settings import resolve

N, BATCH = 20_000, 20
WIDTHS = (0.05, 0.10)


def path(seed=0):
    """Weights along a training: a decay to a random walk [N / BATCH, 3]."""
    k = np.arange(N // BATCH)[:, None]
    steps = np.random.default_rng(seed).normal(size=(N // BATCH, 3))
    return 5 * np.exp(-k / 100) + 0.1 * np.cumsum(steps, axis=0)


def averaged(theta, width):
    """The running average after every update, as training computes it."""
    gamma, average, found = Power(width=width).gamma, None, {}
    for k, weights in enumerate(theta):
        n = (k + 1) * BATCH
        beta = (1 - BATCH / n) ** (gamma + 1)
        average = weights if average is None else beta * average + (1 - beta) * weights
        found[n] = average
    return found


@functools.cache
def everything(width, seed=0):
    return averaged(path(seed), width)


def kept(count):
    """Profiles and values of `count` snapshots of each width, evenly over the training."""
    times = [N * i // count // BATCH * BATCH for i in range(1, count + 1)]
    profiles = [Profile(Power(width=w).gamma, n) for w in WIDTHS for n in times]
    values = [everything(w)[n] for w in WIDTHS for n in times]
    return profiles, np.array(values)


@pytest.mark.parametrize("a", [Profile(3.0, 700), Profile(16.97, 1000)])
@pytest.mark.parametrize("b", [Profile(6.94, 1000), Profile(0.5, 300)])
def test_inner_products_are_integrals(a, b):
    tau = (np.arange(200_000) + 0.5) / 200_000 * 1000

    def density(p):
        return np.where(
            tau <= p.samples, (p.gamma + 1) * tau**p.gamma / p.samples ** (p.gamma + 1), 0
        )

    assert inner(a, b) == pytest.approx((density(a) * density(b)).mean() * 1000, rel=1e-4)
    assert inner(a, b) == pytest.approx(inner(b, a), rel=1e-12)


@pytest.mark.parametrize("width", WIDTHS)
def test_one_that_was_kept_is_itself(width):
    profiles, _ = kept(8)
    wanted = Profile(Power(width=width).gamma, N)
    found, left = coefficients(profiles, wanted)
    expected = [float(profile == wanted) for profile in profiles]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert left < 1e-6


@pytest.mark.parametrize("width", [0.04, 0.07, 0.15, 0.2])
def test_any_width_is_made_to_second_order_of_the_distance_between_snapshots(width):
    """Half the distance leaves a quarter of the difference, in the weighting and in the weights."""
    theta, wanted = path(), Profile(Power(width=width).gamma, N)
    exact = everything(width)[N]
    left, errors = [], []
    for count in (8, 16, 32):
        profiles, values = kept(count)
        found, missing = coefficients(profiles, wanted)
        assert found.sum() == pytest.approx(1, abs=1e-9)
        left.append(missing)
        errors.append(np.abs(found @ values - exact).max())
    assert left[1] < 0.4 * left[0]
    assert left[2] < 0.4 * left[1]
    assert left[2] < 0.01
    assert errors[2] < 0.1 * errors[0]
    assert errors[2] < 0.002 * theta.std()


def test_weights_that_do_not_move_stay_what_they_are():
    profiles, _ = kept(4)
    for width in (0.02, 0.12, 0.27):
        found, _ = coefficients(profiles, Profile(Power(width=width).gamma, N))
        assert found @ np.full(len(profiles), 3.7) == pytest.approx(3.7, rel=1e-9)


# --- of a run ---------------------------------------------------------------------------------


def trained(folder, snapshots, *widths, stop=None):
    words = ["data.kind=toy", "data.name=moons", "model.network.kind=mlp", "model.network.width=16"]
    words += ["model.network.depth=1", "optim.batch=16", "optim.samples=3200", "optim.lr=0.01"]
    recipe = resolve(Recipe, named("edm"), None, words).value
    optim = recipe.optim.but(snapshots=snapshots, averages=tuple(Power(width=w) for w in widths))
    run = Run.create(recipe.but(optim=optim), folder, "run")
    for event in run.train(previews=False, save_every=0.1):
        if event.step == stop:
            break
    return run


def weights(learner):
    return torch.cat([p.flatten() for p in learner.parameters()])


def test_a_run_makes_the_average_that_it_did_not_keep(tmp_path):
    other = trained(tmp_path / "b", 0, 0.05, 0.10, 0.07)
    run = trained(tmp_path / "a", 40, 0.05, 0.10)
    exact, made = (weights(r.learner("power-0.07")) for r in (other, run))
    last, near = weights(run.learner("none")), weights(run.learner("power-0.05"))
    assert torch.equal(last, weights(other.learner("none")))
    # Of the distance between averages of neighbouring widths, next to nothing is left.
    assert (made - exact).norm() < 0.01 * (near - exact).norm()
    assert len(list((run.path / "averages").iterdir())) == 40
    assert run.weights("power-0.07") != run.weights("power-0.08")
    assert run.generate(3, average="power-0.07").shape == (3, 2)
    assert Run.open(run.path).weights("power-0.07") == run.weights("power-0.07")


def test_what_is_set_aside_survives_an_interruption(tmp_path):
    """Stopped between two saves: what is set aside twice is the same, bit for bit."""
    whole = trained(tmp_path / "a", 10, 0.05, 0.10)
    run = trained(tmp_path / "b", 10, 0.05, 0.10, stop=77)
    for _ in run.train(previews=False):
        pass
    first, second = (checkpoint.whole(r.path / "averages") for r in (whole, run))
    assert [c.state["samples"] for c in first] == [320 * i for i in range(1, 11)]
    assert [c.manifest["files"] for c in first] == [c.manifest["files"] for c in second]


def test_an_average_that_cannot_be_made_is_refused_in_a_sentence(tmp_path):
    run = trained(tmp_path / "a", 2, 0.05)
    with pytest.raises(ConfigError, match="cannot make 'power-0.25': .* would be missing"):
        run.learner("power-0.25")
    with pytest.raises(ConfigError, match="lies between 0.001 and 0.28"):
        run.learner("power-0.5")
    with pytest.raises(ConfigError, match="keeps no average 'power-x'"):
        run.learner("power-x")
    none = trained(tmp_path / "b", 0, 0.05)
    with pytest.raises(ConfigError, match=r"optim\.snapshots=32"):
        none.learner("power-0.1")


def test_snapshots_need_a_power_average():
    with pytest.raises(ValueError, match="snapshots are of power averages"):
        Optim(samples=1, snapshots=3, averages=())


def test_what_a_kill_or_damage_leaves_is_cleared_away(tmp_path, caplog):
    """Half a snapshot is removed, a damaged one set aside and named; the others do without it."""
    run = trained(tmp_path, 20, 0.05, 0.10, stop=150)
    folder = run.path / "averages"
    (folder / ".tmp-00000007-abcdef01").mkdir()
    file = folder / "step-00000050" / "average-power-0.05.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    for _ in run.train(previews=False):
        pass
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["quarantine", *(f"step-{10 * i:08d}" for i in range(1, 21) if i != 5)]
    )
    assert "step-00000050 is damaged" in caplog.text
    assert run.learner("power-0.07") is not None
