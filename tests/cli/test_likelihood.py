"""`ornstein evaluate` measures likelihoods of held-out data, with their parts: the bound on any
grid, and that of the probability flow, whose latents `ornstein interpolate` walks between."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from ornstein import Run
from ornstein.cli import run
from ornstein.errors import ConfigError
from ornstein.interpolation import ends, interpolated
from ornstein.nats import bits_per_dim
from ornstein.scores import Scores

TINY = ["model.network=unet", "model.network.channels=[8,16]", "optim.batch=32", "optim.warmup=0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: `fixed` of DDPM and `learned` of improved DDPM, a few updates each."""
    folder = tmp_path_factory.mktemp("runs")
    for recipe, name in (("ddpm", "fixed"), ("improved_ddpm", "learned")):
        words = ["train", recipe, "--samples", "640", "--run", name, "--runs", str(folder)]
        assert run([*words, "--no-previews", *TINY]) == 0
    return folder


def evaluated(capsys, runs, *words):
    capsys.readouterr()
    assert run(["evaluate", *words, "--runs", str(runs), "-n", "8"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["fixed", "learned"])
@pytest.mark.parametrize("steps", [3, 17])
def test_bits_per_dimension_on_any_grid(name, steps, runs, capsys):
    out = evaluated(capsys, runs, name, "--steps", str(steps), "--json", "--likelihood", "20")
    found = Scores.model_validate(json.loads(out)).likelihood
    assert found is not None
    assert (found.count, found.split, found.exact) == (20, "held_out", False)
    assert set(found.parts) == {"L_T", "L_t", "L_0"}
    assert sum(found.parts.values()) == pytest.approx(found.bits_per_dim.value, rel=1e-9)
    assert found.bits_per_dim.value == pytest.approx(found.nats.value / (64 * math.log(2)))
    assert found.bits_per_dim.low < found.bits_per_dim.value < found.bits_per_dim.high


def test_all_of_few_held_out_samples_are_used(runs):
    """180 digits are held out: with all of them the record is the mean of `Run.likelihood`."""
    opened = Run.open("fixed", runs)
    how = opened.recipe.generation.but(steps=3)
    found = opened.scores(8, generation=how, likelihood=10_000).likelihood
    assert found.count == 180
    x = opened.dataset.x[opened.dataset.held_out]
    nats = opened.likelihood(x, 0, generation=how, batch=250)
    assert found.nats.value == pytest.approx(nats.mean(), rel=1e-6)
    error = 1.96 * nats.std() / math.sqrt(180)
    assert found.nats.high - found.nats.value == pytest.approx(error, rel=1e-3)
    uniform = bits_per_dim(64 * math.log(17), (1, 8, 8))
    assert 0 < found.bits_per_dim.value < 3 * uniform
    assert np.isfinite(nats).all()


def test_the_table_says_it_in_words(runs, capsys):
    out = evaluated(capsys, runs, "fixed", "--steps", "3")
    assert "bits/dim, at most" in out
    assert "bits/dim: of 180 held-out samples, L_T" in out
    assert "nats per sample" in out


def test_a_sampler_without_a_law_says_what_to_write(runs, capsys):
    out = evaluated(capsys, runs, "fixed", "step=renoise", "--steps", "3")
    assert "no bits/dim: steps of the kind 'renoise'" in out
    assert "step=heun" in out
    assert "step=ancestral" in out
    some_noise = evaluated(capsys, runs, "fixed", "step=jump", "step.eta=0.5", "--steps", "3")
    assert "no bits/dim: steps of the kind 'jump' with eta above 0" in some_noise
    assert "no bits/dim" not in evaluated(
        capsys, runs, "fixed", "step=renoise", "--steps", "3", "--likelihood", "0"
    )


# --- the probability flow -------------------------------------------------------------------------

FLOW = ("step=heun", "--steps", "2", "--likelihood", "6")


@pytest.mark.parametrize("name", ["fixed", "learned"])
def test_steps_that_follow_the_flow_have_its_likelihood(name, runs, capsys):
    out = evaluated(capsys, runs, name, *FLOW, "flow.probes=3", "--json")
    found = Scores.model_validate(json.loads(out)).likelihood
    assert found is not None
    assert (found.count, found.exact) == (6, False)
    assert set(found.parts) == {"prior", "flow", "bins"}
    assert sum(found.parts.values()) == pytest.approx(found.bits_per_dim.value, rel=1e-9)
    assert found.parts["bins"] == pytest.approx(3)  # a bin is 1/8 wide on [−1, 1]
    assert 0 < found.probes < found.bits_per_dim.high - found.bits_per_dim.value
    assert 0 < found.bits_per_dim.value < 2 * math.log2(17)


def test_the_table_says_what_the_flow_is(runs, capsys):
    out = evaluated(capsys, runs, "fixed", *FLOW, "flow.probes=2", "flow.tolerance=0.01")
    assert "bits/dim, at most" in out
    assert "of 6 held-out samples, prior " in out
    assert "of the probability flow, at most, since whole numbers are given noise" in out
    assert "of standard error is the probes'" in out
    out = evaluated(capsys, runs, "fixed", *FLOW, "flow.tolerance=0.01")
    assert "of standard error" not in out  # of one probe it is unknown


def test_all_steps_along_the_flow_have_one_likelihood(runs):
    """It is that of the flow itself, whatever the steps, their grid in t and their number."""
    opened = Run.open("fixed", runs)
    x = opened.dataset.x[opened.dataset.held_out[:3]]
    how = opened.recipe.generation
    found = [
        opened.likelihood(x, generation=how.but(step=step, steps=steps, clip=False))
        for step, steps in (
            ({"kind": "heun"}, 3),
            ({"kind": "multistep"}, 7),
            ({"kind": "jump"}, 2),
        )
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-9)
    alone = opened.nats(x[1:2], generation=how.but(step={"kind": "adaptive"}, clip=False))
    assert set(alone.parts) == {"prior", "flow", "bins"}


def test_real_numbers_have_a_density_in_their_own_units(tmp_path):
    """Of moons: exact traces, nothing added, and the change of scale among the parts."""
    words = ["train", "edm", "--data", "moons", "--samples", "640", "--run", "m", "--no-previews"]
    assert run([*words, "--runs", str(tmp_path), "optim.warmup=0", "model.network=mlp"]) == 0
    opened = Run.open("m", tmp_path)
    x = opened.dataset.x[opened.dataset.held_out[:5]]
    nats = opened.nats(x)
    assert nats.exact
    assert nats.error is None
    assert set(nats.parts) == {"prior", "flow", "scale"}
    scale, _ = opened.info.affine(opened.recipe.objective.range)
    np.testing.assert_allclose(nats.parts["scale"], -2 * math.log(scale))
    # A law on the plane: its density adds up to one over a square that holds nearly all of it.
    side = np.linspace(-6, 6, 31)
    grid = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2) * opened.info.std
    grid = (grid + opened.info.mean).astype(np.float32)
    cell = ((side[1] - side[0]) * opened.info.std) ** 2
    density = np.exp(-opened.likelihood(grid, batch=4000))
    assert density.sum() * cell == pytest.approx(1, abs=0.1)


def test_latents_come_back_as_the_samples_that_they_are_of(runs):
    opened = Run.open("fixed", runs)
    x = opened.dataset.x[opened.dataset.held_out[:5]]
    how = opened.recipe.generation.but(clip=False, flow={"tolerance": 1e-4})
    z = opened.encode(x, generation=how, batch=2)
    assert z.shape == x.shape
    assert z.dtype == np.float32
    np.testing.assert_allclose(opened.encode(x[3:4], generation=how), z[3:4], rtol=0, atol=3e-2)
    back = opened.decode(z, generation=how)
    assert back.dtype == x.dtype
    assert np.abs(back.astype(int) - x.astype(int)).max() <= 1
    with pytest.raises(ConfigError, match=r"decoded are latents \[n, 1, 8, 8\]"):
        opened.decode(z[:, 0])
    with pytest.raises(ConfigError, match="encoded are native values"):
        opened.encode(x[:0])


def test_interpolations_are_drawn_with_their_ends(runs, tmp_path, capsys):
    out = tmp_path / "way.png"
    words = ["interpolate", "fixed", "-n", "2", "--columns", "4", "--runs", str(runs)]
    assert run([*words, "--out", str(out), "clip=false", "flow.tolerance=1e-4"]) == 0
    said = capsys.readouterr().out
    assert f"{out}\n" in said
    error = float(said.split("root mean square error of ")[1].split()[0])
    assert error < 0.5
    with Image.open(out) as image:
        assert image.width > image.height
    assert run([*words, "--out", str(out), "--between", "drawn", "step=heun", "steps=2"]) == 0
    for bad, sentence in (
        (["--columns", "1"], "at least 2 columns"),
        (["-n", "0"], "at least 1, got 0"),
        (["-n", "100"], "--between drawn"),
        (["--out", "x.txt"], "write --out x.png"),
    ):
        assert run([*words[:2], *bad, "--runs", str(runs)]) == 2
        assert sentence in capsys.readouterr().err


def test_the_ends_of_a_row_are_its_samples(runs):
    opened = Run.open("fixed", runs)
    how = opened.recipe.generation.but(clip=False, flow={"tolerance": 1e-4})
    first, last = ends(opened, 2, seed=3)
    rows = interpolated(opened, first, last, 3, generation=how)
    assert rows.between.shape == (2, 3, 1, 8, 8)
    for end, real in ((rows.between[:, 0], first), (rows.between[:, -1], last)):
        assert np.abs(end.astype(int) - real.astype(int)).max() <= 1
    back = interpolated(opened, last, first, 3, generation=how)
    assert np.abs(back.between[:, 1].astype(int) - rows.between[:, 1].astype(int)).max() <= 1
    other, _ = ends(opened, 2, seed=4)
    assert (other != first).any()
