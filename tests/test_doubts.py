"""A run whose σ_d can hardly be meant says so, once, and trains all the same."""

from __future__ import annotations

import logging

import pytest

from ornstein.data.sources import Toy
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.prediction import EDM, V
from ornstein.nn.networks import MLP
from ornstein.objectives.denoising import Denoising, EDMWeight
from ornstein.optim import Optim
from ornstein.recipe import Recipe
from ornstein.run import Run


def recipe(target, weighting=None, name="doubtful"):
    """On a toy whose standard deviation is 1."""
    objective = Denoising() if weighting is None else Denoising(weighting=weighting)
    return Recipe(
        name=name,
        data=Toy(name="moons", count=2000),
        model=Diffusion(target=target, network=MLP(width=8, depth=1)),
        objective=objective,
        optim=Optim(samples=16, batch=8, warmup=0),
    )


@pytest.mark.parametrize("sigma_data", [0.5, 1.2, 1000.0])
def test_a_sigma_data_that_is_off_is_told_once(sigma_data, tmp_path, caplog):
    wrong = recipe(EDM(sigma_data=sigma_data))
    run = Run.create(wrong, tmp_path)
    (message,) = caplog.messages
    assert caplog.records[0].levelno == logging.WARNING
    assert message.startswith(f"model.target.sigma_data is {sigma_data:g}, but the standard dev")
    assert message.endswith("at the model's scale is 1; leave it out to have it measured")
    assert message in (run.path / "notes.log").read_text()
    for _ in Run.create(wrong, tmp_path).train(previews=False):
        pass
    assert caplog.messages == [message]  # the same run again: nothing new to say


def test_the_weight_has_a_sigma_data_too(tmp_path, caplog):
    Run.create(recipe(V(), EDMWeight(sigma_data=0.5)), tmp_path)
    (message,) = caplog.messages
    assert message.startswith("objective.weighting.sigma_data is 0.5")
    assert message.endswith("is 1; write 1")


def test_what_is_right_nearly_right_or_measured_is_not_told(tmp_path, caplog):
    for i, target in enumerate((EDM(), EDM(sigma_data=1.0), EDM(sigma_data=0.9), V())):
        Run.create(recipe(target, name=f"r{i}"), tmp_path)
    assert not caplog.messages
