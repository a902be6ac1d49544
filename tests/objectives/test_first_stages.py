"""Perceptual and adversarial terms: two players in one loss, whose gradients stay apart."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from ornstein.autoencoders.bottlenecks import VQ, Gaussian
from ornstein.autoencoders.model import Autoencoder
from ornstein.data.info import Batch, DataInfo
from ornstein.data.sources import Digits
from ornstein.errors import ConfigError
from ornstein.nn.codecnets import Conv
from ornstein.noise import Noise
from ornstein.objectives.adversarial import Adversarial
from ornstein.objectives.autoencoding import Autoencoding, Beta
from ornstein.objectives.base import Context
from ornstein.objectives.perceptual import Perceptual
from ornstein.optim import HalfLife, Optim
from ornstein.recipe import Recipe, named
from ornstein.run import Run

INFO = DataInfo(
    name="data",
    kind="image",
    shape=(3, 16, 16),
    range=(-1.0, 1.0),
    bins=256,
    count=100,
    mean=0.0,
    std=0.5,
    fingerprint="",
)
VECTORS = INFO.model_copy(update={"kind": "vector", "shape": (5,)})
CHOSEN = Adversarial(channels=(4, 8), weight=0.02, start=0.5)
BASE = Autoencoding(divergence=Beta(weight=1e-3))


def model(bottleneck=None, seed=0):
    torch.manual_seed(seed)
    chosen = Autoencoder(
        nets=Conv(channels=(8, 8), flat=False), units=3, bottleneck=bottleneck or Gaussian()
    )
    return chosen.build(INFO, None)


def setting(progress=0.7, bottleneck=None):
    codec = model(bottleneck)
    x = Noise.of(1, "data", 6).uniform(0, INFO.shape) * 2 - 1
    batch = Batch(x, torch.arange(6))
    return codec, batch, Context(3, progress, Noise.of(0, "train", 6).at(3))


def gradients(module):
    return {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def close(found, wanted):
    assert found.keys() == wanted.keys()
    length = torch.stack([value.norm() for value in wanted.values()]).norm()
    for name, value in wanted.items():
        assert float((found[name] - value).norm()) <= 1e-6 * float(length), name


@pytest.mark.parametrize("bottleneck", [Gaussian(), VQ(codes=8, kmeans=False)])
def test_each_player_has_the_gradient_of_its_own_loss(bottleneck):
    """One backward pass; by hand, each loss alone with the other player held still."""
    codec, batch, context = setting(bottleneck=bottleneck)
    objective = BASE.but(perceptual=Perceptual(), adversarial=CHOSEN).build(codec, INFO, None)
    judge = objective.adversarial.discriminator
    objective(codec, batch, context).per_sample.sum().backward()
    both = gradients(codec), gradients(judge)

    # The codec alone, against a discriminator that is no parameter.
    alone = model(bottleneck)
    plain = BASE.build(alone, INFO, None)
    still = copy.deepcopy(judge).requires_grad_(False)
    values = batch.x[0].numel()
    code = alone.encode(batch.x, context.noise.child("code"))
    y = alone.mean(code.z)
    loss = plain(alone, batch, context).per_sample
    loss = loss + 0.1 * values * objective.perceptual(batch.x, y)
    loss = loss - 0.02 * values * still(y).flatten(1).mean(1)
    loss.sum().backward()
    close(both[0], gradients(alone))

    # The discriminator alone, on images that are constants.
    other = copy.deepcopy(judge)
    other.zero_grad()
    real, made = other(batch.x).flatten(1), other(y.detach()).flatten(1)
    (0.5 * (F.relu(1 - real).mean(1) + F.relu(1 + made).mean(1))).sum().backward()
    close(both[1], gradients(other))
    for found in both:
        assert any(bool(g.abs().sum() > 0) for g in found.values())


def test_before_its_start_an_adversary_changes_nothing():
    codec, batch, context = setting(progress=0.49)
    objective = BASE.but(adversarial=CHOSEN).build(codec, INFO, None)
    found = objective(codec, batch, context)
    torch.testing.assert_close(
        found.per_sample, BASE.build(codec, INFO, None)(codec, batch, context).per_sample
    )
    found.per_sample.sum().backward()
    judge = objective.adversarial.discriminator
    # Zeros, not nothing: ranks wait for a gradient of each weight.
    assert all(bool((p.grad == 0).all()) for p in judge.parameters())
    assert float(found.metrics["discriminator"][0]) == 0
    later = objective(codec, batch, context._replace(progress=0.5))
    assert float(later.metrics["discriminator"][0]) > 0


def test_terms_are_reported_and_add_up():
    codec, batch, context = setting()
    objective = BASE.but(perceptual=Perceptual(weight=0.3), adversarial=CHOSEN)
    loss = objective.build(codec, INFO, None)(codec, batch, context)
    parts = {name: float(value) for name, (value, count) in loss.metrics.items() if count == 6}
    assert {"nats", "kl", "perceptual", "adversarial", "discriminator"} == parts.keys()
    parts["kl"] *= 1e-3
    assert float(loss.per_sample.detach().sum()) == pytest.approx(sum(parts.values()), rel=1e-5)
    assert loss.per_sample.shape == (6,)


def test_a_sample_s_loss_does_not_depend_on_the_others():
    codec, batch, context = setting()
    objective = BASE.but(perceptual=Perceptual(), adversarial=CHOSEN).build(codec, INFO, None)
    whole = objective(codec, batch, context).per_sample
    part = objective(
        codec,
        Batch(batch.x[2:4], batch.ids[2:4]),
        context._replace(noise=Noise.of(0, "train", range(2, 4)).at(3)),
    ).per_sample
    torch.testing.assert_close(part, whole[2:4])


def test_a_discriminator_learns_to_tell_and_a_codec_to_be_taken_for_data():
    """Playing alone, each lowers its own term, which it could not with a sign turned round."""
    codec, batch, _ = setting()
    objective = BASE.but(adversarial=CHOSEN).build(codec, INFO, None)
    judge = objective.adversarial

    def play(parameters, name, steps):
        optimizer = torch.optim.Adam(parameters, lr=0.01)
        values = []
        for _ in range(steps):
            optimizer.zero_grad()
            terms = judge(batch.x, codec.reconstruct(batch.x), 1.0)
            sum(terms.values()).sum().backward()
            optimizer.step()
            values.append({k: float(v.detach().sum()) for k, v in terms.items()})
        assert values[-1][name] < values[0][name]
        return values

    told = play(list(judge.parameters()), "discriminator", 40)
    assert told[-1]["discriminator"] < 0.2 * told[0]["discriminator"]
    fooled = play(list(codec.parameters()), "adversarial", 20)
    assert fooled[-1]["discriminator"] > fooled[0]["discriminator"]


def test_data_without_a_picture_are_refused():
    codec = model()
    with pytest.raises(ConfigError, match="objective.adversarial=null"):
        BASE.but(adversarial=CHOSEN).build(codec, VECTORS, None)
    with pytest.raises(ConfigError, match="objective.perceptual=null"):
        BASE.but(perceptual=Perceptual()).build(codec, VECTORS, None)
    with pytest.raises(ConfigError, match="no-such-file"):
        BASE.but(perceptual=Perceptual(features="/no-such-file")).build(codec, INFO, None)


def test_a_file_of_features_is_found_from_anywhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert Perceptual(features="eye.safetensors").features == str(tmp_path / "eye.safetensors")
    assert Perceptual().features == "random"
    with pytest.raises(ValueError, match="is not a path"):
        Perceptual(features="~no-such-user/eye.safetensors")
    with pytest.raises(ConfigError, match="cannot be read"):
        Perceptual(features="eye\0").build(INFO)


def small(**objective) -> Recipe:
    """A first stage of a few updates on digits with all terms."""
    recipe = named("autoencoder_kl")
    return recipe.but(
        data=Digits(),
        model=recipe.model.but(nets=Conv(channels=(8, 8), flat=False), units=2),
        objective=recipe.objective.but(
            perceptual=Perceptual(), adversarial=CHOSEN.but(start=0.4), **objective
        ),
        optim=Optim(batch=16, samples=160, warmup=0, averages=(HalfLife(samples=64),)),
    )


def test_a_stopped_first_stage_ends_as_one_that_was_not(tmp_path):
    """The discriminator is in the checkpoints, its moments too, across its start."""
    whole = Run.create(small(), tmp_path / "whole")
    for _ in whole.train(previews=False):
        pass
    parts = Run.create(small(), tmp_path / "parts")
    for stop in (3, 4, 5):
        for event in parts.train(previews=False):
            if event.step == stop:
                break
    for _ in Run.open(parts.path).train(previews=False):
        pass
    first, second = (run.state().learner.state_dict() for run in (whole, Run.open(parts.path)))
    assert any("discriminator" in name for name in first)
    assert any("perceptual" in name for name in first)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    averages = whole.learner().state_dict()
    assert any("discriminator" in name for name in averages)


def test_micro_batches_change_nothing(tmp_path):
    losses = []
    for micro in (None, 6):
        recipe = small().but(optim=small().optim.but(micro_batch=micro))
        run = Run.create(recipe, tmp_path, name=f"micro-{micro}")
        losses.append([float(event.loss) for event in run.train(previews=False)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_features_of_a_run_stay_with_it(tmp_path):
    """A file that is replaced by another one of the same form does not change a run."""
    import safetensors.torch

    def keep(seed):
        torch.manual_seed(seed)
        content = {"features.0.weight": torch.randn(4, 1, 3, 3), "features.0.bias": torch.zeros(4)}
        about = {"ornstein": '{"mean": [0.5], "std": [0.3]}'}
        (tmp_path / "eye.safetensors").write_bytes(safetensors.torch.save(content, about))
        return content["features.0.weight"]

    first = keep(0)
    recipe = small()
    perceptual = Perceptual(features=str(tmp_path / "eye.safetensors"))
    run = Run.create(recipe.but(objective=recipe.objective.but(perceptual=perceptual)), tmp_path)
    for _ in run.train(previews=False):
        break
    keep(1)
    kept = Run.open(run.path).state().learner.objective.perceptual.features.weight0
    assert torch.equal(kept, first)
