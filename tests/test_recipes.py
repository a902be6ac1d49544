"""Every recipe runs in miniature, and those that claim a paper's numbers have them."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from pydantic import Field, create_model

from ornstein.autoencoders.bottlenecks import Hierarchy
from ornstein.autoencoders.likelihoods import Normal
from ornstein.autoencoders.model import Autoencoder
from ornstein.autoencoders.tdvae import TDVAE, Sequential
from ornstein.choice import Choice, references
from ornstein.data.info import DataInfo
from ornstein.data.sources import Moving, Toy
from ornstein.diffusion.langevin import Corrected
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.sampling import Sampling
from ornstein.errors import CheckpointError
from ornstein.nn.codecnets import Dense
from ornstein.nn.networks import MLP, UNet
from ornstein.recipe import Recipe, about, named, names, stored
from ornstein.run import Run

CIFAR = DataInfo(
    name="cifar10",
    kind="image",
    shape=(3, 32, 32),
    range=(0.0, 255.0),
    bins=256,
    count=50_000,
    mean=120.7,
    std=64.1,
    fingerprint="",
)


def miniature(name: str, **changes: object) -> Recipe:
    """The recipe with a small network, two updates and three steps of its own sampler."""
    recipe = named(name)
    optim = recipe.optim.but(batch=8, micro_batch=None, samples=16, minutes=None, warmup=0)
    if isinstance(recipe.model, Autoencoder):
        return recipe.but(**{"optim": optim, "preview": None, **changes})
    if isinstance(recipe.model, Sequential):
        data = Moving(name="moving_digits", frames=4, size=8, count=50)
        shorter = {"reach": 3} if isinstance(recipe.model, TDVAE) else {}
        model = recipe.model.but(nets=Dense(hidden=(16,)), **shorter)
        return recipe.but(**{"optim": optim, "data": data, "model": model, **changes})
    generation = recipe.generation.but(steps=3)
    if isinstance(generation.step, Corrected):
        corrector = generation.step.corrector.but(updates=2)
        generation = generation.but(step=generation.step.but(corrector=corrector))
    model = recipe.model.but(network=UNet(channels=(8, 8), blocks=1, middle_attention=False))
    return recipe.but(
        **{"optim": optim, "generation": generation, "preview": None, "model": model, **changes}
    )


@pytest.mark.parametrize("name", [n for n in names() if not list(references(named(n)))])
def test_every_recipe_trains_resumes_and_draws(name, tmp_path):
    run = Run.create(miniature(name), tmp_path)
    for _ in run.train():
        break  # stopped after the first update, which saves
    for event in run.train():
        assert torch.isfinite(event.loss)
    assert run.finished
    x = run.generate(2)
    assert x.shape == (2, *run.info.shape)
    assert x.dtype == np.uint8
    assert about(name).endswith(".")
    if run.recipe.generation.no_law is None:
        nats = run.likelihood(run.dataset.x[:2])
        assert np.isfinite(nats).all()
        assert (nats > 0).all()  # of whole numbers, a probability
    if isinstance(run.recipe.model, Autoencoder):
        x = run.dataset.x[:3]
        assert run.reconstruct(x).shape == x.shape
        z = run.encode(x)
        assert z.shape == (3, *run.learner().model.latent)
        np.testing.assert_array_equal(run.decode(z), run.reconstruct(x))


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in names()
        if isinstance(model := named(n).model, Autoencoder)
        and not isinstance(model.bottleneck, Hierarchy)  # which is of layouts
    ],
)
def test_autoencoders_take_vectors_too(name, tmp_path):
    recipe = named(name)
    model = recipe.model.but(nets=Dense(hidden=(8,)), likelihood=Normal(std=None))
    run = Run.create(miniature(name, data=Toy(name="moons", count=200), model=model), tmp_path)
    for _ in run.train(previews=False):
        pass
    assert np.isfinite(run.generate(3)).all()
    if run.recipe.generation.no_law is None:
        assert np.isfinite(run.likelihood(run.dataset.x[:2])).all()


@pytest.mark.parametrize(
    "name",
    [
        n
        for n in names()
        if named(n).augment == Recipe(name="x").augment and isinstance(named(n).model, Diffusion)
    ],
)
def test_recipes_take_vectors_too(name, tmp_path):
    recipe = miniature(name, data=Toy(name="moons", count=200), generation=Sampling(steps=2))
    recipe = recipe.but(model=recipe.model.but(network=MLP(width=8, depth=1)))
    if recipe.model.process.kind in ("cosine", "straight"):
        recipe = recipe.but(generation=named(name).generation.but(steps=2))
    run = Run.create(recipe, tmp_path)
    for _ in run.train(previews=False):
        pass
    assert np.isfinite(run.generate(3)).all()


def test_ddpm_cifar10_is_the_published_network_and_schedule():
    """Ho et al. 2020, appendix B: 35.7 million parameters, T = 1000, β to 0.02, dropout 0.1, flips,
    the rate 2e-4, batches of 128, 800,000 updates, decay 0.9999 an update."""
    recipe = named("ddpm_cifar10")
    with torch.device("meta"):
        model = recipe.model.build(CIFAR.scaled((-1.0, 1.0)), None)
    assert sum(p.numel() for p in model.parameters()) == 35_746_307
    assert recipe.augment.flip
    assert (recipe.optim.lr, recipe.optim.batch) == (2e-4, 128)
    assert recipe.optim.samples == 800_000 * 128
    (average,) = recipe.optim.averages
    assert average.decay(recipe.optim.samples, 128) == pytest.approx(0.9999, abs=1e-8)
    assert recipe.model.network.dropout == 0.1
    table = recipe.model.process
    assert (table.steps, table.betas()[0].item(), table.betas()[-1].item()) == (1000, 1e-4, 0.02)


def test_improved_ddpm_is_ddpm_with_two_changes():
    """The cosine table and the learned variance, and what follows from them."""
    from ornstein.settings import difference

    changed = set(difference(named("ddpm"), named("improved_ddpm")))
    assert {"model.process.rule", "model.variance", "objective.kind"} <= changed
    assert not {key for key in changed if key.startswith(("optim", "data", "model.network"))}


def test_v_prediction_and_flow_go_down_to_no_signal():
    one = torch.ones(1, dtype=torch.float64)
    for name in ("v_prediction", "flow"):
        assert named(name).model.process(one)[0].item() == 0


class Later(Choice):
    """A choice of a later version: as `Part`, with one more setting."""

    kind: Literal["part"] = "part"
    size: int = 1
    more: float = 0.5


class Part(Choice):
    kind: Literal["part"] = "part"
    size: int = 1


class Other(Choice):
    kind: Literal["other"] = "other"


def schema_of(part):
    return create_model(
        "Schema",
        __base__=Recipe,
        part=(Annotated[part | Other, Field(discriminator="kind")], part()),
        parts=(tuple[part, ...], ()),
    )


@pytest.mark.parametrize("size", [1, 2])
def test_a_new_setting_leaves_keys_and_runs_as_they_are(size, tmp_path):
    """Recipes of this version and of the next: the same run, and the file of one opens in both."""
    before, after = schema_of(Part), schema_of(Later)
    values = {"name": "x", "part": {"kind": "part", "size": size}, "parts": [{"size": 3}]}
    old, new = before.model_validate(values), after.model_validate(values)
    assert old.key() == new.key()
    assert new.but(part={"kind": "part", "size": size, "more": 1.0}).key() != new.key()
    assert new.but(part=Other()).key() != new.key()
    (tmp_path / "recipe.yaml").write_bytes(old.stored())
    assert stored(after, tmp_path) == new


def test_what_is_written_out_is_the_same_run_as_what_is_left_out():
    recipe = named("ddpm")
    assert Recipe.model_validate(recipe.model_dump()).key() == recipe.key()
    keys = {named(name).model_copy(update={"name": "x"}).key() for name in names()}
    assert len(keys) == len(names()) - 1  # ddim differs from ddpm in the generation alone


def test_a_stored_recipe_that_lacks_a_line_is_damaged(tmp_path):
    """Any line of it, the last one too unless all the others are there; but for the kind of a
    section whose other lines only one kind has."""
    recipe = named("improved_ddpm")
    lines = recipe.stored().decode().splitlines(keepends=True)
    for i in range(len(lines) - 1):
        (tmp_path / "recipe.yaml").write_text("".join(lines[:i] + lines[i + 1 :]))
        if lines[i - 1 : i + 1] == ["preview:\n", "  kind: sampling\n"]:
            assert stored(Recipe, tmp_path) == recipe
        else:
            with pytest.raises(CheckpointError, match="is damaged"):
                stored(Recipe, tmp_path)
        (tmp_path / "recipe.yaml").write_text("".join(lines[:i]))
        with pytest.raises(CheckpointError, match="is damaged"):
            stored(Recipe, tmp_path)
    (tmp_path / "recipe.yaml").write_text("".join(lines[:-1]))
    assert stored(Recipe, tmp_path) == recipe
