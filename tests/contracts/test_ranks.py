"""The same updates on one process and on two, and with micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from ornstein.data.stream import Stream
from ornstein.training import TrainState, train
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


def worker(rank, recipe, micro, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    result = weights_after(recipe, micro)
    torch.save(result, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_change_nothing(family, tmp_path):
    recipe = FAMILIES[family](tmp_path)
    for a, b in zip(weights_after(recipe), weights_after(recipe, micro=20), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("micro", [None, 9])
def test_two_processes_do_what_one_does(family, micro, tmp_path):
    recipe = FAMILIES[family](tmp_path)
    multiprocessing.spawn(worker, (recipe, micro, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for a, b, c in zip(weights_after(recipe), first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert torch.equal(b, c)  # both ranks hold the same
