"""The engine carries families it has never heard of, unchanged: train, checkpoint, run, sample."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
import torch

from ornstein.choice import RunRef
from ornstein.data.sources import Arrays, Digits, Toy
from ornstein.errors import CheckpointError, ConfigError
from ornstein.optim import HalfLife, Optim
from ornstein.run import Run
from tests.contracts import families as f

OPTIM = Optim(
    lr=1e-2, samples=4000, batch=50, warmup=0, averages=(HalfLife(samples=500),), clip=None
)


def sequences(folder):
    """An autoregressive process of order one, [300, 12]."""
    random = np.random.default_rng(0)
    x = random.standard_normal((300, 12)).astype(np.float32)
    for i in range(1, 12):
        x[:, i] += 0.8 * x[:, i - 1]
    np.save(folder / "walks.npy", x)
    return Arrays(path=str(folder / "walks.npy"))


def vq(folder):
    return f.ToyRecipe(
        data=Digits(),
        model=f.VQ(),
        objective=f.VQObjective(),
        generation=f.DecodeCodes(),
        optim=OPTIM,
    )


def follow(folder):
    return f.ToyRecipe(
        data=Toy(name="moons", count=500),
        model=f.Linear(),
        objective=f.Follow(),
        generation=f.Apply(),
        optim=OPTIM,
    )


def rollout(folder):
    return f.ToyRecipe(
        data=sequences(folder),
        model=f.Sequence(),
        objective=f.NextValue(),
        generation=f.Rollout(),
        optim=OPTIM,
    )


FAMILIES = {"vq": vq, "teacher-student": follow, "sequence": rollout}


def hashes(run):
    """SHA-256 of every file of tensors in the last checkpoint."""
    folder = max((run.path / "ckpt").glob("step-*"))
    files = sorted(folder.glob("*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_resumes_and_generates(family, tmp_path):
    recipe = FAMILIES[family](tmp_path)
    whole = Run.create(recipe, tmp_path / "whole")
    losses = [event.loss.item() for event in whole.train()]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])

    broken = Run.create(recipe, tmp_path / "broken")
    for stop in (7, 31):  # stopped twice, each time opened again from its folder alone
        for event in broken.train():
            if event.step == stop:
                break
        broken = Run.open(broken.path, schema=f.ToyRecipe)
    steps = [event.step for event in broken.train()]
    assert steps[0] == 32
    assert hashes(broken) == hashes(whole)
    logged = (broken.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in logged] == list(range(1, len(losses) + 1))

    drawn = Run.open(whole.path, schema=f.ToyRecipe).generate(10, seed=1)
    assert drawn.shape == (10, *whole.info.shape)
    np.testing.assert_allclose(whole.generate(10, seed=1, batch=3), drawn, atol=1e-4)


def test_a_codebook_follows_the_data_without_a_gradient(tmp_path):
    run = Run.create(vq(tmp_path), tmp_path)
    state = run.state()
    before = state.learner.model.codebook.clone()
    metrics = [float(event.metrics["distance"]) for event in run.train()]
    model = run.learner("none").model
    assert not torch.equal(model.codebook.cpu(), before)
    assert metrics[-1] < metrics[0]
    # The average of the weights carries the codebook too, a little behind.
    assert 0 < (run.learner().model.codebook - model.codebook).abs().max() < 1.0


def test_a_plan_of_two_recipes_by_path_and_hash(tmp_path):
    codec = Run.create(vq(tmp_path), tmp_path, "codec")
    for _ in codec.train():
        pass
    recipe = f.ToyRecipe(
        data=Digits(),
        model=f.Prior(codec=RunRef(path=str(codec.path))),
        objective=f.CodeObjective(),
        generation=f.DecodePrior(),
        optim=OPTIM.model_copy(update={"lr": 0.2, "samples": 10_000}),
    )
    prior = Run.create(recipe, tmp_path, "prior")
    assert prior.recipe.model.codec.weights == codec.weights()
    for _ in prior.train():
        pass
    # What it learns is known: the frequencies of the codes, whose entropy is the least loss.
    x = prior.dataset.x[prior.dataset.train]
    k = codec.learner().model.indices(torch.from_numpy(x).float() / 16)
    share = torch.bincount(k, minlength=8) / len(k)
    entropy = -(share * share.clamp(min=1e-9).log()).sum().item()
    assert prior.likelihood(x).mean() == pytest.approx(entropy, abs=0.02)
    assert prior.generate(5).shape == (5, 1, 8, 8)
    assert "codec" not in "".join(prior.learner().state_dict())

    for _ in Run.create(
        recipe_longer := vq(tmp_path).model_copy(
            update={"optim": OPTIM.model_copy(update={"samples": 4500})}
        ),
        tmp_path,
        "codec",
    ).train():
        pass
    assert recipe_longer.optim.samples == 4500
    with pytest.raises(CheckpointError, match="has other weights"):
        Run.open(prior.path, schema=f.ToyRecipe).generate(1)


def test_a_target_network_moves_at_its_own_rate(tmp_path):
    """After one update θ⁻ = 0.9 θ⁻₀ + 0.1 θ₁, whatever the average of the run does."""
    run = Run.create(follow(tmp_path), tmp_path)
    start = run.state().learner.model.weight.clone()
    for _ in run.train():
        break
    objective = run.learner("none").objective
    expected = 0.9 * start + 0.1 * run.learner("none").model.weight
    torch.testing.assert_close(objective.target.weight, expected)


def test_a_family_without_a_likelihood_says_so(tmp_path):
    run = Run.create(follow(tmp_path), tmp_path)
    for _ in run.train():
        break
    with pytest.raises(ConfigError, match="offer no likelihood"):
        run.likelihood(run.dataset.x[:3])
