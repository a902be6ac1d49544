"""The same updates on one process and on two, and with micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from ornstein.data.sources import Toy
from ornstein.data.stream import Stream
from ornstein.errors import NumericsError
from ornstein.recipe import named
from ornstein.training import TrainState, _own, train
from tests.contracts.test_contracts import FAMILIES

STEPS = 6


def weights_after(recipe, micro=None):
    """Everything that training changes, after a few updates, as one list of tensors."""
    optim = recipe.optim.model_copy(update={"micro_batch": micro, "batch": 51})
    dataset = recipe.data.load()
    learner = recipe.learner(dataset.info, lambda _: None)
    state = TrainState(learner, optim)
    source = Stream(dataset, recipe.seed, recipe.objective.range)
    events = list(train(state, source, optim, 51 * STEPS, recipe.seed))
    assert len(events) == STEPS
    kept = [*state.averages.values(), learner]
    tensors = [t.clone() for module in kept for t in module.state_dict().values()]
    metrics = [value for event in events for value in (event.loss, *event.metrics.values())]
    return [*tensors, torch.stack(metrics)]


def worker(rank, recipes, micro, folder):
    """Train each of some recipes, by name, and write the weights."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    result = {name: weights_after(recipe, micro) for name, recipe in recipes.items()}
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


class Spoilt:
    """A source with one sample that is not finite, at a position that one rank reads."""

    def __init__(self, source, position):
        self.source, self.position = source, position

    def at(self, position, count):
        batch = self.source.at(position, count)
        if position <= self.position < position + count:
            batch.x[self.position - position] = float("nan")
        return batch


def refusing(rank, shard, folder):
    """Train on such a source; what is raised, and whether the weights are as they were."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    recipe = named("edm").but(data=Toy(name="moons", count=100))
    optim = recipe.optim.model_copy(update={"batch": 20, "shard": shard})
    dataset = recipe.data.load()
    state = TrainState(recipe.learner(dataset.info, lambda _: None), optim)
    stream = Stream(dataset, recipe.seed, recipe.objective.range)
    events = train(state, Spoilt(stream, 33), optim, 200, recipe.seed)
    next(events)
    before = [p.detach().clone() for p in state.learner.parameters()]
    with pytest.raises(NumericsError) as raised:
        next(events)
    assert state.step == 1
    for old, new in zip(before, state.learner.parameters(), strict=True):
        assert torch.equal(_own(old), _own(new))
    assert f"(samples {stream.ids(33, 1)[0]})" in str(raised.value)
    assert raised.value.shared == (rank == 1)  # the lead tells it
    dist.destroy_process_group()


@pytest.mark.parametrize("shard", ["off", "on"])
def test_a_value_that_is_not_finite_on_one_rank_updates_none(shard, tmp_path):
    multiprocessing.spawn(refusing, (shard, str(tmp_path)), nprocs=2)


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_change_nothing(family, tmp_path):
    recipe = FAMILIES[family](tmp_path)
    for a, b in zip(weights_after(recipe), weights_after(recipe, micro=20), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("micro", [None, 9])
def test_two_processes_do_what_one_does(micro, tmp_path):
    """One pair of processes for all families: to start it takes longer than all they do."""
    recipes = {}
    for name, made in FAMILIES.items():
        (tmp_path / name).mkdir()
        recipes[name] = made(tmp_path / name)
    multiprocessing.spawn(worker, (recipes, micro, str(tmp_path)), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, recipe in recipes.items():
        for a, b, c in zip(weights_after(recipe), *(w[name] for w in found), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, msg=name)
            assert torch.equal(b, c), name  # both ranks hold the same
