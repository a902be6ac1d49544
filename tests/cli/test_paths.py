"""`ornstein paths`: what is drawn follows the laws it claims, for every kind of process."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.cli import run
from ornstein.diffusion.process import VE, VP, Cosine
from ornstein.diffusion.steps import Heun
from ornstein.diffusion.stochastic import StochasticHeun
from ornstein.noise import Noise
from ornstein.paths import (
    MEANS,
    SHOWN,
    STD,
    WEIGHTS,
    Vertical,
    data,
    density,
    forward,
    portrait,
    reverse,
    row,
    shares,
    vertical,
)

from ..helpers import PROCESSES, f64

X = np.linspace(-400, 400, 200_001)


def normal(count, seed=0):
    return Noise.of(seed, "z", count).normal(0, (1,), torch.float64)


def moments(process, t):
    """Mean and variance of p_t, of the mixture's own."""
    alpha, sigma = (c.item() for c in process(f64(t)))
    mean = sum(w * m for w, m in zip(WEIGHTS, MEANS, strict=True))
    variance = sum(w * m * m for w, m in zip(WEIGHTS, MEANS, strict=True)) + STD**2 - mean**2
    return alpha * mean, alpha**2 * variance + sigma**2


@pytest.mark.parametrize("name", ["vp", "ve", "sub_vp", "cosine", "linear"])
def test_the_shade_is_the_density(name):
    """It integrates to 1 at every time, with the moments of α x0 + σ ε."""
    process, t = PROCESSES[name], np.array([0.05, 0.5, 1.0])
    p, dx = density(process, t, X), X[1] - X[0]
    for column, time in zip(p.T, t, strict=True):
        mean, variance = moments(process, time)
        assert column.sum() * dx == pytest.approx(1, abs=1e-6)
        assert (column * X).sum() * dx == pytest.approx(mean, abs=1e-6)
        assert (column * (X - mean) ** 2).sum() * dx == pytest.approx(variance, rel=1e-5)


@pytest.mark.parametrize("name", ["vp", "ve", "cosine"])
def test_forward_paths_have_the_marginals_and_the_steps_of_the_sde(name):
    """At each time the moments of p_t, within five standard errors; and the increments' variance
    over a short time is g² Δt."""
    from ornstein.diffusion.process import drift_diffusion

    process, count = PROCESSES[name], 4000
    x0 = data().sample(Noise.of(1, "data", count))
    walks = forward(process, x0, Noise.of(0, "paths", count), steps=100)
    assert walks.t[0] == 0
    assert walks.t[-1] == 1
    for i in (1, 20, 50, 100):
        mean, variance = moments(process, walks.t[i])
        assert walks.x[:, i].mean() == pytest.approx(mean, abs=5 * math.sqrt(variance / count))
        assert walks.x[:, i].var() == pytest.approx(variance, rel=5 * math.sqrt(2 / count))
    f, g = drift_diffusion(process, f64(0.505))
    gap = walks.x[:, 51] - (1 + f.item() * 0.01) * walks.x[:, 50]
    assert gap.var() == pytest.approx(0.01 * g.item() ** 2, rel=0.15)


@pytest.mark.parametrize("step", [StochasticHeun(), Heun()], ids=lambda s: s.kind)
@pytest.mark.parametrize("name", ["vp", "ve", "sub_vp"])
def test_reverse_paths_arrive_at_the_data(name, step):
    """The share of each mode within 4.5 standard errors."""
    count = 2000
    process = VE(sigma_max=4.0) if name == "ve" else PROCESSES[name]
    walks = reverse(process, step, normal(count), Noise.of(0, "back", count), steps=100)
    assert walks.t[0] == 1
    assert walks.t[-1] == 0
    for found, weight in zip(shares(walks.x[:, -1]), WEIGHTS, strict=True):
        assert found == pytest.approx(weight, abs=4.5 * math.sqrt(weight * (1 - weight) / count))


def test_paths_of_the_flow_start_where_the_sde_does_and_never_cross():
    found = portrait(VP(), count=50, steps=100)
    np.testing.assert_array_equal(found.sde.x[:, 0], found.flow.x[:, 0])
    assert (np.diff(found.flow.x, axis=0) > 0).all()
    crossings = (np.diff(np.sign(np.diff(found.sde.x, axis=0)), axis=1) != 0).sum()
    assert crossings > 20
    assert found.forward.x.shape[0] == SHOWN


def test_a_path_is_its_own_whatever_else_is_drawn():
    one = portrait(Cosine(), seed=4, count=20, steps=40)
    other = portrait(Cosine(), seed=4, count=30, steps=40)
    np.testing.assert_allclose(one.of_sde, other.of_sde[:20])
    np.testing.assert_array_equal(one.sde.x, other.sde.x)
    assert not np.allclose(one.sde.x, portrait(Cosine(), seed=5, count=20, steps=40).sde.x)


@pytest.mark.parametrize("axis", [Vertical(3.2, False), Vertical(150.0, True)])
def test_the_axis_places_what_it_reads(axis):
    rows = np.linspace(0, 300, 31)
    np.testing.assert_allclose(axis.place(axis.at(rows, 300), 300), rows, atol=1e-9)
    assert axis.place(np.array([axis.reach, 0, -axis.reach]), 300).tolist() == [0, 150, 300]
    marks = axis.ticks()
    assert marks == sorted(marks)
    assert 0 in marks
    assert max(marks) < axis.reach


def test_only_a_process_that_explodes_bends_the_axis():
    assert not any(vertical(PROCESSES[name]).bent for name in ("vp", "sub_vp", "cosine", "linear"))
    assert vertical(VE()).bent
    assert vertical(VE()).reach > 150


@pytest.mark.parametrize("name", PROCESSES)
def test_every_process_can_be_drawn(name):
    """The flow's pixels lie where its paths are, on the right panel."""
    found = portrait(PROCESSES[name], count=30, steps=40)
    assert all(np.isfinite(part.x).all() for part in (found.forward, found.sde, found.flow))
    assert row(name, PROCESSES[name], found).width > 1500


def test_the_command_writes_a_picture_and_says_the_shares(tmp_path, capsys):
    out = tmp_path / "deep" / "mine.png"
    assert run(["paths", "vp", "--out", str(out), "--seed", "3"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert [float(v) for v in lines[0].split()[-3:]] == list(WEIGHTS)
    for line, kind in zip(lines[1:3], ("reverse SDE", "probability flow"), strict=True):
        assert line.startswith("vp")
        assert kind in line
        assert sum(map(float, line.split()[-3:])) == pytest.approx(1, abs=2e-3)
    with Image.open(out) as image:
        assert image.width > 1500
    assert lines[-1] == str(out)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["vpp"], "did you mean 'vp'?"),
        (["vp", "--out", "x.jpg"], "--out x.png"),
        (["ncsnv2"], "sigma_max"),
    ],
)
def test_a_mistake_is_one_sentence(words, hint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["paths", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert hint in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
