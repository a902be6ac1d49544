"""What a training will take, before it begins: memory, time and disk.

    peak = resident + kept + max(H · (updates − kept) + K,  gradients + saving)

resident  what the process holds already: libraries, data, the model that counted its operations
kept      weights, averages and the optimizer's moments
updates   the most bytes of tensors that live at once during an update
saving    the largest file of a checkpoint twice as it is serialised, on the CPU, and copies of
          those of its tensors whose values lie in memory in another order than in the file

The tensors of an update are counted as they come and go, on two micro-batches of a few samples.
Both bring the same sequence of tensors, and at each point of it the bytes are affine in the number
of samples: carried on to the real micro-batch point by point, the largest of them is the peak,
exactly, at no risk of running out of memory. What tensors do not show on a processor is the C
library's fragmentation H and the workspaces K of kernels; both constants were fitted to eight
trainings (docs/benchmarks.md). On a GPU the count leaves out workspaces and what a compiler saves.

Where the count fits into the memory that is free, a few real updates follow: they tell the speed,
and their own peak takes the place of the count.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ornstein import memory
from ornstein.checkpoint import ENTRY, REST
from ornstein.noise import Noise
from ornstein.prepare import OVERHEAD, default_device, lengthened, update_seconds
from ornstein.run import loader
from ornstein.training import TrainState, flops_per_sample, matmul_peak, train

if TYPE_CHECKING:
    from ornstein.recipe import Recipe
    from ornstein.run import Run

FRAGMENTATION, KERNELS = 1.22, 15 * 2**20  # H and K
TRIED = (2, 3)  # samples of the micro-batches that are counted
PREVIEWED = 16  # samples of a preview
ROOM = 0.9  # the share of the free memory that a proposed micro-batch may fill


class Estimate(NamedTuple):
    """All sizes in bytes.

    parameters, trained: how many numbers the model and its objective have, and how many of them
    are trained. averages: copies of them that are kept. checkpoint: one on disk; two are kept, and
    a third exists while it is written. memory: at the peak; resident, of that, before the first
    update. free: memory that is there, with what this process holds. micro_batch: one that would
    fit, where `memory` does not; None where it does, 0 where none would. flops: of one sample,
    forward and backward. seconds: of each update of a trial, none where it would not fit.
    """

    recipe: Recipe
    parameters: int
    trained: int
    averages: int
    checkpoint: int
    memory: int
    resident: int
    free: int
    micro_batch: int | None
    flops: int
    seconds: tuple[float, ...]

    def rate(self, quantile: float = 0.5) -> float:
        """Samples per second: the median over the updates of the trial, or another quantile."""
        return self.recipe.optim.batch / float(np.quantile(self.seconds, 1 - quantile))

    def duration(self, done: int = 0, quantile: float = 0.5) -> float:
        """Seconds for what is left after `done` samples, with saving, previews and logging."""
        assert self.recipe.optim.samples is not None
        left = max(0, self.recipe.optim.samples - done)
        return left / self.rate(quantile) / (1 - OVERHEAD)


def estimate(run: Run, previews: bool = True) -> Estimate:
    """What the training of a planned run takes; a length in minutes becomes samples on the way.

    The process should be one that has done nothing else, as a training's is.
    """
    recipe, dataset, load = run.recipe, run.training_data, loader(type(run.recipe))
    device = default_device()
    optim = recipe.optim
    # As `train` begins: what is imported and kept for these two stays resident.
    learner = run.untrained().to(device)
    source = run.source()
    flops = flops_per_sample(learner, source, recipe.seed)
    matmul_peak(device, torch.float32)
    resident = memory.held(device)
    free = resident + memory.free(device)

    count = _count(run, previews)
    micro = min(optim.micro_batch or optim.batch, optim.batch)
    peak = resident + count.peak(micro, device)
    seconds: list[float] = []
    proposed: int | None = None
    if peak > free:
        proposed = micro
        while proposed and resident + count.peak(proposed, device) > ROOM * free:
            proposed //= 2
    else:
        seconds = update_seconds(recipe, dataset, load)
        measured = max(memory.peak(device), resident + count.saved_peak(device))
        # One update alone has not come to its peak yet.
        peak = measured if len(seconds) >= 3 else max(measured, peak)
        if recipe.optim.samples is None:
            recipe = lengthened(recipe, seconds)
    parameters = list(learner.parameters())
    return Estimate(
        recipe=recipe,
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        averages=len(optim.averages),
        checkpoint=count.checkpoint,
        memory=peak,
        resident=resident,
        free=free,
        micro_batch=proposed,
        flops=flops,
        seconds=tuple(seconds),
    )


class Count(NamedTuple):
    """Bytes of tensors: of what is kept, of gradients, of the points of an update at two sizes of
    a micro-batch, of a preview, of what waits to be used, and of a checkpoint."""

    kept: int
    gradients: int
    points: tuple[Sequence[int], Sequence[int]]
    preview: int
    waiting: int
    checkpoint: int
    saving: int

    def update(self, micro: int) -> int:
        """The most bytes of tensors at once during an update with micro-batches of this size."""
        first, second = (np.asarray(p, dtype=np.float64) for p in self.points)
        if len(first) != len(second):  # other kernels for other sizes: the peaks must do
            first, second = first.max(keepdims=True), second.max(keepdims=True)
        slope = (second - first) / (TRIED[1] - TRIED[0])
        return int((first + slope * (micro - TRIED[0])).max())

    def peak(self, micro: int, device: torch.device) -> int:
        """The peak of a training above what is resident before it."""
        passing = max(self.update(micro), self.preview) - self.kept
        if device.type != "cpu":
            return self.kept + passing
        passing = int(FRAGMENTATION * passing) + KERNELS + self.waiting
        return max(self.kept + passing, self.saved_peak(device))

    def saved_peak(self, device: torch.device) -> int:
        """The peak while a checkpoint is written, above what is resident before training."""
        held = self.kept + self.gradients
        return held + self.saving + self.waiting if device.type == "cpu" else held


def _count(run: Run, previews: bool) -> Count:
    """Count the tensors of a training: two small updates, a preview, and a checkpoint."""
    recipe, device = run.recipe, default_device()
    optim, source = recipe.optim, run.source()
    state = TrainState(run.untrained().to(device), optim)
    parts = 2 if (optim.micro_batch or optim.batch) < optim.batch else 1  # gradients accumulate

    def update(micro: int) -> None:
        sizes: dict[str, Any] = {"batch": parts * micro, "micro_batch": micro, "compile": "off"}
        if optim.clip is not None:
            sizes["clip"] = 1e-30  # clipping takes memory, and any gradient may have to be
        next(train(state, source, optim.model_copy(update=sizes), 10**12, recipe.seed))

    update(TRIED[0])  # the optimizer makes its moments
    kept = [*_tensors(state.learner), *(t for a in state.averages.values() for t in _tensors(a))]
    moments = [
        value
        for values in state.optimizer.state.values()
        for value in values.values()
        if isinstance(value, Tensor)
    ]
    gradients = [p.grad for p in state.learner.parameters() if p.grad is not None]
    points = []
    for micro in TRIED:
        counter = _Counter([*kept, *moments, *gradients])
        with counter:
            update(micro)
        points.append(counter.points)
        gradients = [p.grad for p in state.learner.parameters() if p.grad is not None]
    counter = _Counter([*kept, *moments])
    if previews:
        model: Any = next(iter(state.averages.values()), state.learner).eval().model
        ids = torch.arange(PREVIEWED, device=device)
        how = recipe.preview or recipe.generation
        with counter, torch.no_grad():
            noise = Noise.of(recipe.seed, "estimate", ids)
            states = how(model, recipe.at_model_scale(run.seen), noise)
            list(itertools.islice(states, 2))
    files = [_tensors(state.learner), *map(_tensors, state.averages.values()), moments]
    groups = [_bytes(tensors) for tensors in files]
    entries = len(kept) + len(moments)
    batch = optim.batch * int(np.prod(run.seen.shape)) * 4
    return Count(
        kept=_bytes(kept) + _bytes(moments),
        gradients=_bytes(gradients),
        points=(points[0], points[1]),
        preview=max(counter.points),
        waiting=2 * batch,  # this batch and the one that is read ahead
        checkpoint=sum(groups) + ENTRY * entries + REST,
        saving=max(
            2 * _bytes(tensors) + _bytes([t for t in tensors if not t.is_contiguous()])
            for tensors in files
        ),
    )


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes of all living storages, after each operation that makes one.

    Only what a tensor operation of this thread returns is seen, and each storage counts once.
    """

    def __init__(self, held: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._living: dict[tuple[str, int], Any] = {}
        self._bytes = 0
        self.points: list[int] = []
        for tensor in held:
            self._see(tensor)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = (str(storage.device), storage.data_ptr()), storage.nbytes()
        if size and key not in self._living:
            self._bytes += size
            self._living[key] = weakref.ref(storage, lambda _: self._forget(key, size))
            self.points.append(self._bytes)

    def _forget(self, key: tuple[str, int], size: int) -> None:
        del self._living[key]
        self._bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
