"""A checkpoint comes back as it was saved. What can happen to it: `tests.reliability`."""

from __future__ import annotations

import hashlib
import os

import pytest
import safetensors.torch
import torch
from torch import nn

from ornstein import checkpoint
from ornstein.errors import CheckpointError
from ornstein.optim import Optim
from ornstein.training import Learner, TrainState
from tests.reliability.disk import contents
from tests.reliability.small import OLD, equal, fresh, numbers, trained


def saved(folder, *steps):
    """Checkpoints of one training at these steps."""
    state = fresh()
    for step in steps:
        checkpoint.save(folder, trained(step, state), {"metrics_bytes": step})
    return state


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    """Weights, buffers, averages, optimizer and counters; and the next updates are the same."""
    state = saved(tmp_path, 5)
    assert checkpoint.repair(tmp_path) == ()
    found = checkpoint.latest(tmp_path)
    back = fresh(seed=1)
    assert not equal(numbers(back), numbers(state))
    checkpoint.restore(found, back)
    assert equal(numbers(back), numbers(state))
    assert equal(numbers(trained(9, back)), numbers(trained(9, state)))
    assert found.state["metrics_bytes"] == 5
    assert {p.name for p in found.folder.iterdir()} == {
        "model.safetensors",
        "average-half-life-30.safetensors",
        "average-power-0.1.safetensors",
        "optimizer.safetensors",
        "state.json",
        "manifest.json",
    }


def test_its_hashes_are_those_of_its_files(tmp_path):
    saved(tmp_path, 2)
    found = checkpoint.latest(tmp_path)
    for name in ("model", "average-power-0.1", "optimizer"):
        file = found.folder / f"{name}.safetensors"
        assert found.sha256(name) == hashlib.sha256(file.read_bytes()).hexdigest()


def test_where_there_never_was_one_there_is_none(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert checkpoint.latest(folder) is None
        assert checkpoint.repair(folder) == ()


def test_two_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 3, 12)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000003", "step-00000012"]
    found = checkpoint.latest(tmp_path)
    assert found.state["step"] == 12


def test_saving_the_same_step_again_changes_nothing(tmp_path):
    state = saved(tmp_path, 2)
    before = contents(tmp_path)
    assert checkpoint.save(tmp_path, state, {"metrics_bytes": 2}) == tmp_path / OLD
    assert contents(tmp_path) == before


def test_a_step_beyond_eight_digits_is_later(tmp_path):
    state = saved(tmp_path, 2)
    for step in (99_999_999, 100_000_000):
        state.step = step
        checkpoint.save(tmp_path, state, {})
    found = checkpoint.latest(tmp_path)
    assert found.folder.name == "step-100000000"


def test_weights_of_another_architecture_are_refused_in_a_sentence(tmp_path):
    saved(tmp_path, 2)
    found = checkpoint.latest(tmp_path)
    with pytest.raises(CheckpointError, match="do not fit this model.*its recipe has changed"):
        checkpoint.load_weights(found, "model", nn.Linear(3, 2))
    with pytest.raises(CheckpointError, match="holds no 'average-x'; it has average-half-life-30"):
        checkpoint.load_weights(found, "average-x", nn.Linear(3, 2))


def test_moments_come_back_in_the_order_in_memory_that_the_weights_have(tmp_path):
    """A fused update walks through all its tensors alike, whatever their strides say."""

    def state(seed):
        torch.manual_seed(seed)
        kernels = nn.Conv2d(2, 3, 3).to(memory_format=torch.channels_last)
        return TrainState(Learner(kernels, nn.Identity()), Optim(samples=1))

    def update(state):
        for i, p in enumerate(state.learner.parameters()):
            p.grad = torch.sin(p.detach() + i)
        state.optimizer.step()

    straight, back = state(0), state(1)
    update(straight)
    checkpoint.save(tmp_path, straight, {})
    checkpoint.restore(checkpoint.latest(tmp_path), back)
    for each in (straight, back):
        update(each)
    for old, new in zip(straight.learner.parameters(), back.learner.parameters(), strict=True):
        assert torch.equal(old, new)
        assert back.optimizer.state[new]["exp_avg"].stride() == old.stride()


def test_weights_that_share_memory_are_saved_once_each(tmp_path):
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    state = TrainState(Learner(tied, nn.Identity()), Optim(samples=1))
    checkpoint.save(tmp_path, state, {})
    weights = checkpoint.latest(tmp_path).tensors("model")
    assert torch.equal(weights["model.0.weight"], weights["model.1.weight"])


def rewritten(found, name, change):
    """Put other tensors into a checkpoint, and vouch for them in its manifest."""
    tensors = found.tensors(name)
    change(tensors)
    content = safetensors.torch.save(tensors)
    (found.folder / f"{name}.safetensors").write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest = found.manifest | {"files": found.manifest["files"] | {f"{name}.safetensors": entry}}
    manifest["digest"] = checkpoint._digest(manifest)
    (found.folder / "manifest.json").write_bytes(checkpoint._written(manifest))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update({k: torch.zeros(1) for k in t if k.endswith("exp_avg_sq")}),
        lambda t: t.update({"0.exp_avg": t["0.exp_avg"][:1].clone()}),
        lambda t: t.update({"0.step": torch.zeros(3)}),
        lambda t: t.pop("0.exp_avg"),
        lambda t: t.update({"abc": torch.zeros(1)}),
        lambda t: t.update({"².exp_avg": torch.zeros(1)}),
        lambda t: t.update({"99999.exp_avg": torch.zeros(1)}),
    ],
)
def test_moments_that_fit_no_weight_are_refused(change, tmp_path):
    """The fused update would read beyond one that is too small."""
    saved(tmp_path, 5)
    rewritten(checkpoint.latest(tmp_path), "optimizer", change)
    with pytest.raises(CheckpointError, match="optimizer's"):
        checkpoint.restore(checkpoint.latest(tmp_path), fresh())


@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_what_is_no_file_is_damage(kind, tmp_path):
    saved(tmp_path, 5, 7)
    found = checkpoint.latest(tmp_path)
    for name in ("model.safetensors", "manifest.json"):
        path = found.folder / name
        content = path.read_bytes()
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        assert checkpoint.latest(tmp_path).folder.name == "step-00000005"
        path.unlink()
        path.write_bytes(content)
    assert checkpoint.latest(tmp_path) == found


@pytest.mark.parametrize(
    ("places", "why"),
    [
        ([[0], [2]], "missing"),
        ([[0], [2], [2]], "overlap"),
        ([[0], [-2], [4]], "outside"),
        ([[0], [2], [5]], "outside"),
        ([[0], [2], [10**12]], "outside"),
        ([[0], [2], [True]], "outside"),
        ([[0], [2], [0, 4]], "longer|shorter"),
    ],
)
def test_parts_that_do_not_make_a_whole_are_refused(places, why):
    parts = [(at, torch.ones(2)) for at in places]
    with pytest.raises(ValueError, match=why):
        checkpoint._whole("x", parts, [6])
    whole = checkpoint._whole("x", [([4], torch.ones(2)), ([0], torch.zeros(4))], [6])
    assert whole.tolist() == [0, 0, 0, 0, 1, 1]
