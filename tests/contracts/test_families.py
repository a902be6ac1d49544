"""Scores, SDEs, autoencoders and models of sequences keep what every family promises: one result
however training is cut up, shared out or stopped, the same sample in any batch, and nothing learned
from NaN."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import multiprocessing

from ornstein.errors import NumericsError
from ornstein.run import Run
from tests.contracts.test_contracts import hashes
from tests.contracts.test_ranks import weights_after, worker
from tests.reliability.families import CODECS, FAMILIES, SCORES, SEQUENCES

BOTH = [*SCORES, *CODECS, *SEQUENCES]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def fitted(name, folder):
    """The recipe with what is measured filled in, as a run has it."""
    return Run.create(FAMILIES[name](folder), folder, "planned").recipe


@pytest.mark.parametrize("name", BOTH)
def test_training_is_a_function_of_its_recipe(name, tmp_path):
    runs = [Run.create(FAMILIES[name](tmp_path), tmp_path / place) for place in ("a", "b")]
    for _ in runs[0].train():
        pass
    for event in itertools.islice(runs[1].train(), 7):
        assert torch.isfinite(event.loss)
    again = Run.open(runs[1].path)
    for _ in again.train(previews=False):
        pass
    assert hashes(again) == hashes(runs[0])
    drawn = again.generate(10, seed=1)
    # Of whole numbers, one may be rounded up in one batch and down in another.
    close = 2e-3 if drawn.dtype == np.float32 else 1
    other = runs[0].generate(10, seed=1, batch=3).astype(np.float64)
    np.testing.assert_allclose(other, drawn, atol=close)
    assert (other != drawn).mean() < 0.01 or close < 1


@pytest.mark.parametrize("name", BOTH)
def test_micro_batches_change_nothing(name, tmp_path):
    recipe = fitted(name, tmp_path)
    torch.testing.assert_close(weights_after(recipe), weights_after(recipe, micro=20), **CLOSE)


def test_two_processes_do_what_one_does(tmp_path):
    """One pair of processes for all families: to start it takes longer than all they do."""
    names = ["ncsnv2", "ve-sde", "scoreflow", "explicit", "sliced", *CODECS, *SEQUENCES]
    for name in names:
        (tmp_path / name).mkdir()
    recipes = {name: fitted(name, tmp_path / name) for name in names}
    multiprocessing.spawn(worker, (recipes, 9, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, recipe in recipes.items():
        first, second = (weights[name] for weights in found)
        torch.testing.assert_close(weights_after(recipe), first, msg=name, **CLOSE)
        assert all(torch.equal(b, c) for b, c in zip(first, second, strict=True)), name


@pytest.mark.parametrize("name", BOTH)
def test_what_is_not_finite_is_not_learned(name, tmp_path):
    run = Run.create(FAMILIES[name](tmp_path), tmp_path, "job")
    for event in run.train(previews=False):
        if event.step == 3:
            break
    kept = hashes(run)
    x = run.dataset.x[:].astype(np.float32)
    x[run.dataset.train[::2]] = np.nan
    run._dataset = run.dataset._replace(x=x)
    with pytest.raises(NumericsError, match="before update 4"):
        next(run.train(previews=False))
    assert hashes(run) == kept
    assert Run.open(run.path).samples == 3 * run.recipe.optim.batch


@pytest.mark.parametrize("name", BOTH)
def test_a_damaged_checkpoint_costs_what_came_after_the_one_before(name, tmp_path):
    run = Run.create(FAMILIES[name](tmp_path), tmp_path, "job")
    for stop in (3, 6):
        for event in run.train(previews=False):
            if event.step == stop:
                break
    whole = Run.create(FAMILIES[name](tmp_path), tmp_path, "whole")
    for _ in whole.train(previews=False):
        pass
    file = run.path / "ckpt" / "step-00000006" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    again = Run.open(run.path)
    steps = [event.step for event in again.train(previews=False)]
    assert steps[0] == 4
    assert hashes(again) == hashes(whole)
