"""What the recipes `ncsn` and `ncsnv2` leave to the data is measured once, and stays."""

import json

import numpy as np
import pytest

from ornstein.data.distances import farthest
from ornstein.data.sources import Digits, Toy
from ornstein.diffusion import ncsn
from ornstein.diffusion.process import VE, Straight
from ornstein.errors import CheckpointError, ConfigError
from ornstein.nn.networks import MLP, UNet
from ornstein.objectives.denoising import Discrete
from ornstein.recipe import named
from ornstein.run import Run

SMALL = UNet(channels=(8, 8), blocks=1, middle_attention=False)
OPEN = {
    "model.process.sigma_max",
    "objective.levels.steps",
    "generation.steps",
    "generation.step.corrector.size.eps",
}


def small(**changes):
    recipe = named("ncsnv2")
    optim = recipe.optim.but(samples=16, batch=8, warmup=0)
    return recipe.but(
        **{"model": recipe.model.but(network=SMALL), "optim": optim, "preview": None, **changes}
    )


def values(recipe):
    eps = recipe.generation.step.corrector.size.eps
    levels, steps = recipe.objective.levels.steps, recipe.generation.steps
    return recipe.model.process.sigma_max, levels, steps, eps


def train(run):
    for _ in run.train(previews=False):
        pass


def test_what_ncsnv2_leaves_open_is_measured_and_written_down(tmp_path):
    """Numbers in the recipe, those of the rules, with `measured` as their source."""
    run = Run.create(small(), tmp_path)
    data = Digits().load()
    found = ncsn.rules(farthest(data).distance / 16, 64)
    assert values(run.recipe) == (found.sigma_max, found.levels, found.levels, found.eps)
    assert values(Run.open(run.path).recipe) == values(run.recipe)
    origins = json.loads((run.path / "provenance.json").read_text())["from"]
    assert {key for key, source in origins.items() if source == "measured"} >= OPEN
    lines = map(str.strip, (run.path / "recipe.yaml").read_text().splitlines())
    assert not {"eps: null", "steps: null"} & set(lines)


def test_a_run_goes_on_with_what_was_measured(tmp_path, monkeypatch):
    """The same request resumes, a longer one extends, and neither measures again."""
    run = Run.create(small(), tmp_path, "one")
    train(run)
    kept = values(run.recipe)
    monkeypatch.setattr("ornstein.run.farthest", None)
    again = Run.create(small(), tmp_path, "one")
    assert again.finished
    assert values(again.recipe) == kept
    longer = small(optim=small().optim.but(samples=32))
    again = Run.create(longer, tmp_path, "one")
    assert not again.finished
    assert values(again.recipe) == kept
    train(again)
    assert np.isfinite(again.generate(2)).all()
    other = small(model=small().model.but(process=VE(sigma_max=3.0)))
    with pytest.raises(CheckpointError, match="sigma_max"):
        Run.create(other, tmp_path, "one")


def test_a_change_that_is_insisted_on_is_followed_by_the_rest(tmp_path):
    Run.create(small(), tmp_path, "one")
    model = small().model.but(process=VE(sigma_max=2.0))
    run = Run.create(small(model=model), tmp_path, "one", allow=("model.process",))
    found = ncsn.rules(2.0, 64)
    assert values(run.recipe) == (2.0, found.levels, found.levels, found.eps)
    back = Run.create(small(), tmp_path, "one", allow=("model.process",))
    assert values(back.recipe)[0] == pytest.approx(4.815)


def test_what_is_written_is_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("ornstein.run.farthest", None)
    recipe = small()
    levels = recipe.objective.levels.but(steps=7)
    recipe = recipe.but(
        model=recipe.model.but(process=VE(sigma_max=3.0)),
        objective=recipe.objective.but(levels=levels),
    )
    run = Run.create(recipe, tmp_path)
    gamma = 300 ** (1 / 6)
    eps = ncsn.rounded(ncsn.step_size(0.01, gamma, 5))
    assert values(run.recipe) == (3.0, 7, 7, eps)  # sampling follows the training levels
    Run.create(named("edm").but(optim=recipe.optim), tmp_path)  # nothing is open there


def test_steps_without_a_grid_to_follow_are_those_of_the_rule(tmp_path):
    """Eq 1.16 for the process and the data, whatever the training levels are; a process without
    a first level has no answer."""
    recipe = small(objective=named("ddpm").objective.but(levels=Discrete(steps=50)))
    run = Run.create(recipe, tmp_path)
    sigma_max = run.recipe.model.process.sigma_max
    assert sigma_max == pytest.approx(2 * 4.815, abs=1e-3)  # at the range -1 to 1
    assert run.recipe.generation.steps == ncsn.count(sigma_max, 0.01, 64)
    flow = named("flow")
    with pytest.raises(ConfigError, match=r"generation.*pure noise"):
        Run.create(flow.but(generation=flow.generation.but(steps=None)), tmp_path)
    assert flow.model.process == Straight()


def test_vectors_are_standardised_and_levels_wide_apart(tmp_path):
    data = Toy(name="moons", count=200)
    recipe = small(data=data, model=small().model.but(network=MLP(width=8, depth=1)))
    run = Run.create(recipe, tmp_path)
    dataset = data.load()
    distance = farthest(dataset).distance / dataset.info.std
    assert values(run.recipe)[0] == pytest.approx(distance, rel=1e-3)
    assert values(run.recipe)[1] == ncsn.count(distance, 0.01, 2)


def test_a_largest_level_that_cannot_be_is_refused():
    """Not above the smallest one, or not measured at all."""
    info, recipe = Digits().load().info, small()
    with pytest.raises(ConfigError, match=r"at most 0\.005 apart"):
        recipe.fitted(info, lambda: 16 * 0.005)
    for ask in (recipe.fitted, lambda info: recipe.model.build(info, lambda reference: None)):
        with pytest.raises(ConfigError, match="sigma_max is left to the data"):
            ask(info)


def test_ncsn_is_the_published_one():
    """§4 of arXiv:1907.05600: ten levels from 1 to 0.01, ε = 2e-5, T = 100, data in [0, 1]."""
    recipe = named("ncsn")
    process, step = recipe.model.process, recipe.generation.step
    assert (process.sigma_max, process.sigma_min) == (1.0, 0.01)
    assert recipe.objective.levels.steps == recipe.generation.steps == 10
    assert (step.corrector.updates, step.corrector.form) == (100, "half")
    assert step.corrector.size.eps == 2e-5
    assert recipe.objective.range == (0.0, 1.0)
    assert recipe.generation.evaluations == 1000


def test_inspect_says_what_the_recipe_will_choose(tmp_path, capsys):
    """The settings that it prints, written out, are those that the run would measure."""
    from ornstein.cli import run as command
    from ornstein.settings import resolve

    assert command(["inspect", "digits", "--out", str(tmp_path / "sheet.png")]) == 0
    out = capsys.readouterr().out
    assert "sigma_max 4.815 at the range 0 to 1: the largest distance" in out
    (line,) = [line for line in out.splitlines() if "model.process.sigma_max=" in line]
    written = resolve(type(small()), small(), None, line.split()).value
    assert values(written) == values(Run.plan(small(), tmp_path).recipe)
    assert command(["inspect", "digits", "--json", "--out", str(tmp_path / "sheet.png")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["farthest"]["distance"] == pytest.approx(77.039, abs=1e-3)
    assert found["ncsnv2"]["levels"] == written.generation.steps
