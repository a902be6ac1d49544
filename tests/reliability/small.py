"""A training small enough to be saved some thousand times: three numbers in, six files out."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from ornstein import checkpoint
from ornstein.data.info import Batch
from ornstein.noise import Noise
from ornstein.objectives.base import Loss
from ornstein.optim import HalfLife, Optim, Power
from ornstein.training import Learner, TrainState, train

OPTIM = Optim(batch=4, samples=10**6, warmup=0, averages=(HalfLife(samples=30), Power(width=0.1)))
OLD, NEW, NEXT = "step-00000002", "step-00000004", "step-00000006"
FILES = (
    "model.safetensors",
    "average-half-life-30.safetensors",
    "average-power-0.1.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.again = self.last  # the same weights under two names

    def forward(self, x):
        return self.again(self.last(self.norm(x)).sum(1, keepdim=True).expand(-1, 3))


class Squares:
    range = None

    def __call__(self, model, batch, context):
        return Loss((model(batch.x) - 1).square().mean(1))


class Points:
    def at(self, position, count):
        ids = torch.arange(position, position + count)
        return Batch(Noise.of(0, "points", ids).normal(0, (3,)), ids)


def fresh(seed: int = 0) -> TrainState:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TrainState(Learner(Net(), Squares()), OPTIM)


def trained(steps: int, state: TrainState | None = None) -> TrainState:
    state = state or fresh()
    for _ in train(state, Points(), OPTIM, 4 * steps, 0):
        pass
    return state


@lru_cache
def at(steps: int) -> TrainState:
    """A state after so many updates (an even number), which is only to be saved."""
    state = fresh()
    for done in range(2, steps + 1, 2):
        trained(done, state)
    return state


def save(folder: Path, *steps: int) -> None:
    """Checkpoints of one training at these steps."""
    for step in steps:
        checkpoint.save(folder, at(step), {"metrics_bytes": step})


def numbers(state: TrainState) -> dict[str, Tensor]:
    """Every number of a training state, by name."""
    found = {"step": torch.tensor(state.step), "samples": torch.tensor(state.samples)}
    for name, module in {"model": state.learner, **state.averages}.items():
        found |= {f"{name}/{k}": v.clone() for k, v in module.state_dict().items()}
    for i, values in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer/{i}/{k}": v.clone() for k, v in values.items()}
    return found


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def leftovers(folder: Path) -> list[Path]:
    """What an interrupted save has left."""
    return list(folder.glob(".tmp-*"))
