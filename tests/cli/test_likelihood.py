"""`ornstein evaluate` measures the bound: of held-out data, on any grid, with its parts."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from ornstein import Run
from ornstein.cli import run
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
    out = evaluated(capsys, runs, "fixed", "step=jump", "--steps", "3")
    assert "no bits/dim: steps of the kind 'jump'" in out
    assert "step=ancestral" in out
    assert "no bits/dim" not in evaluated(
        capsys, runs, "fixed", "step=jump", "--steps", "3", "--likelihood", "0"
    )
