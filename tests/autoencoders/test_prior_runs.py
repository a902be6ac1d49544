"""Priors as runs, in miniature: a codec of two levels, a prior of each, drawn and scored."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing

from ornstein.autoencoders.bottlenecks import VQ, Hierarchy
from ornstein.autoencoders.decoding import Decoding
from ornstein.autoencoders.prior import PixelCNN
from ornstein.choice import RunRef
from ornstein.errors import CheckpointError, ConfigError
from ornstein.nn.codecnets import Conv
from ornstein.noise import Noise
from ornstein.optim import HalfLife
from ornstein.recipe import Recipe, named
from ornstein.run import Run
from ornstein.training import TrainState, train

CHANGES: dict[str, Any] = {
    "batch": 20,
    "micro_batch": 11,
    "samples": 120,
    "warmup": 0,
    "averages": (HalfLife(samples=100),),
}
SMALL = PixelCNN(channels=8, layers=1, dropout=0.2, head_width=8)


def codec_recipe(samples: int = 120) -> Recipe:
    whole = named("vq_vae_2_codec")
    levels = Hierarchy(top=VQ(codes=6), bottom=VQ(codes=9), channels=8)
    model = whole.model.but(nets=Conv(channels=(8, 8), flat=False), units=8, bottleneck=levels)
    return whole.but(model=model, optim=whole.optim.but(**{**CHANGES, "samples": samples}))


def prior_recipe(name: str, codec: Path, given: Path | None = None, **model: Any) -> Recipe:
    whole = named(name)
    reference = RunRef(path=str(codec))
    changed = {"codec": reference, "network": SMALL, **model}
    if given is not None:
        changed["given"] = RunRef(path=str(given))
    return whole.but(
        encoding=whole.encoding.but(codec=reference),
        model=whole.model.but(**changed),
        optim=whole.optim.but(**CHANGES),
    )


def trained(recipe: Recipe, folder: Path, name: str) -> Run:
    run = Run.create(recipe, folder, name)
    for _ in run.train(previews=False):
        pass
    return run


def hashes(run: Run) -> dict[str, str]:
    last = max((run.path / "ckpt").glob("step-*"))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in last.glob("*.safetensors")}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A codec, the prior of its coarse level, and that of the fine one."""
    folder = tmp_path_factory.mktemp("runs")
    codec = trained(codec_recipe(), folder, "codec")
    top = trained(prior_recipe("code_prior", codec.path), folder, "top")
    fine = trained(prior_recipe("code_prior_fine", codec.path, top.path), folder, "fine")
    return codec, top, fine


def test_a_sample_is_drawn_level_by_level_and_decoded(runs):
    codec, top, fine = runs
    model = fine.learner().model
    assert [one.size for one in model.levels] == [(2, 2), (4, 4)]
    assert model.classes == 10
    x = fine.generate(4, seed=3)
    assert (x.shape, x.dtype) == ((4, 1, 8, 8), np.uint8)
    noise = Noise.of(3, "generate", torch.arange(4))
    codes = model.draw(noise)
    assert torch.equal(codes[:, :4], top.learner().model.draw(noise))
    net = codec.learner().model
    with torch.no_grad():
        shown = net.mean(net.bottleneck.lookup(codes)).numpy()
    np.testing.assert_array_equal(x, np.clip(np.rint(shown * 8 + 8), 0, 16).astype(np.uint8))
    assert np.array_equal(fine.generate(4, seed=3, batch=1), x)


def test_a_coarse_level_alone_is_no_picture(runs):
    with pytest.raises(ConfigError, match="draws 4 of the 20 codes"):
        runs[1].generate(1)


def test_what_codes_cost_is_part_of_the_likelihood(runs):
    codec, _, fine = runs
    x = fine.dataset.x[fine.dataset.held_out[:6]]
    net, model = codec.learner().model, fine.learner().model
    with torch.no_grad():
        code = net.encode(torch.from_numpy(x).float() / 8 - 1)
    parts = model.parts(code.indices)
    nats = fine.likelihood(x)
    assert (nats > sum(parts).numpy()).all()
    rest = codec.likelihood(x, generation=Decoding(samples=1)) - code.kl.numpy()
    np.testing.assert_allclose(nats, sum(parts).numpy() + rest, rtol=1e-5)


def test_training_stopped_and_gone_on_with_is_the_same(runs, tmp_path):
    codec, top, fine = runs
    recipe = prior_recipe("code_prior_fine", codec.path, top.path)
    broken = Run.create(recipe, tmp_path, "broken")
    for event in broken.train(previews=False):
        assert set(event.metrics) == {"nats", "bits/code"}
        if event.step == 2:
            break
    steps = [event.step for event in Run.open(broken.path).train(previews=False)]
    assert steps == [3, 4, 5, 6]
    assert hashes(broken) == hashes(fine)


def test_micro_batches_change_nothing(runs, tmp_path):
    codec, top, fine = runs
    recipe = prior_recipe("code_prior_fine", codec.path, top.path)
    whole = recipe.but(optim=recipe.optim.but(micro_batch=None))
    one, other = fine.learner("none"), trained(whole, tmp_path, "whole").learner("none")
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)


def after_updates(path: Path, micro: int | None = None) -> list[torch.Tensor]:
    """What a few updates make of the weights of a run, on the ranks that there are."""
    run = Run.open(path)
    optim = run.recipe.optim.but(batch=30, micro_batch=micro)
    state = TrainState(run.untrained(), optim)
    for _ in train(state, run.source(), optim, 120, run.recipe.seed):
        pass
    kept = [state.learner, *state.averages.values()]
    return [tensor.clone() for module in kept for tensor in module.state_dict().values()]


def worker(rank: int, path: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(after_updates(path, micro=7), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_do_what_one_does(runs, tmp_path):
    path = runs[2].path
    multiprocessing.spawn(worker, (path, tmp_path), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for a, b, c in zip(after_updates(path), first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert torch.equal(b, c)


def test_a_prior_of_another_codec_is_refused(runs, tmp_path):
    _, top, _ = runs
    other = trained(codec_recipe(samples=80), tmp_path, "other")
    with pytest.raises(ConfigError, match="codes of another codec"):
        Run.create(prior_recipe("code_prior_fine", other.path, top.path), tmp_path, "fine")


def test_a_codec_that_has_changed_is_found_out(runs, tmp_path):
    own = trained(codec_recipe(samples=80), tmp_path, "own")
    prior = trained(prior_recipe("code_prior", own.path), tmp_path, "prior")
    trained(codec_recipe(samples=100), tmp_path, "own")
    with pytest.raises(CheckpointError, match="other weights"):
        Run.open(prior.path).likelihood(prior.dataset.x[:2])
