"""Training: one generator of events, for every model family, on any number of ranks.

    for event in train(state, source, optim, total, seed):
        ...                                     logging, previews, saving, stopping: the caller's

A step takes the samples at positions [n, n + batch) of the source, asks the learner for one loss
per sample and updates with the gradient of Σ loss / batch. Nothing else depends on how these
samples are spread over micro-batches or ranks: noise is keyed by position in the global batch,
and metrics and statistics are sums. All that must be saved to continue is in `TrainState`.

On several ranks every one holds all weights and they add up their gradients (DDP), or each holds a
part of the weights, averages and moments and the networks are put together where they are used
(FSDP2), see `sharded`.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ornstein import memory, ranks
from ornstein.allocator import keep_freed_memory
from ornstein.data.info import Batch
from ornstein.errors import ConfigError, NumericsError, OutOfMemory
from ornstein.nn.layers import Dropout, Recomputable, key_dropout
from ornstein.noise import Noise
from ornstein.objectives.base import AfterStep, Context, Look, Loss, Objective

if TYPE_CHECKING:
    from ornstein.data.stream import Source
    from ornstein.optim import Average, Optim


CHEAP = 1e-3  # seconds; see `_Prefetch`
TRIED = 3  # reads
SHARE = 0.7  # of a GPU's free memory, which weights and what is kept beside them may take


class Learner(nn.Module):
    """Model and objective: the one module that ranks, compilation and checkpoints wrap.

    An objective that owns weights (a teacher, a target network) is a submodule like the model.
    """

    def __init__(self, model: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch, context: Context) -> Loss:
        return self.objective(self.model, batch, context)


class Pairs(NamedTuple):
    """Of an average: what follows values of the learner, those values, and pairs to be copied."""

    kept: list[Tensor]
    current: list[Tensor]
    copied: list[tuple[Tensor, Tensor]]


class TrainState:
    """Everything that training changes: weights, averages, optimizer, and how far it is.

    `averages` maps the name of an average to a copy of the learner, buffers included. sharded:
    whether each rank holds a part of them only; the learner that is given becomes that part, and
    is moved to `device` (by default, where it is).
    """

    def __init__(self, learner: Learner, optim: Optim, device: torch.device | None = None) -> None:
        device = device or next(learner.parameters()).device
        self.learner = learner
        self.samples = 0
        self.step = 0
        self.averages = {average.name: _frozen_copy(learner) for average in optim.averages}
        # Before anything is on the device, which may not hold it whole.
        self.sharded = sharded(learner, optim, device)
        if self.sharded:
            _shard(learner, device, precision(optim.precision, device) == "bf16")
            for copies in self.averages.values():
                _shard(copies, device)
        for module in (learner, *self.averages.values()):
            module.to(device)
        trained = [p for p in learner.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            trained,
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        # Walking the modules of a small network takes as long as a part of its update.
        self.parameters = list(learner.parameters())
        self.buffers = list(learner.buffers())
        self._pairs: dict[str, Pairs] = {}
        self.dropout = any(isinstance(m, Dropout) and m.p > 0 for m in learner.modules())

    def pairs(self, average: str) -> Pairs:
        """What an average keeps beside what it follows."""
        if average not in self._pairs:
            copies = self.averages[average]
            kept = [*copies.parameters(), *copies.buffers()]
            both = list(zip(kept, [*self.parameters, *self.buffers], strict=True))
            followed = [(_own(k), _own(c)) for k, c in both if k.is_floating_point()]
            others = [(k, c) for k, c in both if not k.is_floating_point()]
            self._pairs[average] = Pairs([k for k, _ in followed], [c for _, c in followed], others)
        return self._pairs[average]


class Event(NamedTuple):
    """One update. `loss` is the mean over the global batch; `metrics` likewise; both on the
    device, since reading them waits for it. `seconds` and `waited` (for data) are wall-clock.
    micro_batch: as it was used, which is less than was asked for after memory ran out."""

    step: int
    samples: int
    loss: Tensor
    metrics: Mapping[str, Tensor]
    grad_norm: Tensor
    lr: float
    seconds: float
    waited: float
    micro_batch: int | None = None


def train(
    state: TrainState, source: Source, optim: Optim, total: int, seed: int
) -> Iterator[Event]:
    """Update `state` until `total` samples have been used, yielding an event after each update.

    The last batch is cut so that exactly `total` samples are used. Under `torch.distributed` each
    rank takes its contiguous part of the global batch; every rank yields the same numbers.
    An update that runs out of memory is made again, once, in micro-batches half as large.
    Raises: NumericsError before an update whose loss or gradient is not finite, naming the
    samples; OutOfMemory where halves are too large as well; ConfigError where a precision is asked
    for that this machine would emulate.
    """
    device = next(state.learner.parameters()).device
    if device.type == "cpu":
        keep_freed_memory()
    rank, world = ranks.rank(), ranks.world()
    forward = _wrapped(state, optim, device)
    job = _Job(state, forward, _autocast(optim, device), total, seed, device)
    micro, halved = optim.micro_batch, False
    _train_mode(state.learner)
    with _Prefetch(source) as data:
        while state.samples < total:
            started = time.perf_counter()
            count = min(optim.batch, total - state.samples)
            parts = _parts(count, rank, world, micro)
            data.expect(state.samples, parts)
            batches = [data.take() for _ in parts]
            waited = time.perf_counter() - started
            upcoming = min(optim.batch, total - state.samples - count)
            if upcoming > 0:
                data.expect(state.samples + count, _parts(upcoming, rank, world, micro))

            state.optimizer.zero_grad(set_to_none=True)  # of an update that was refused, too
            sums = _gradients(job, batches, parts, count)
            if sums is None:
                state.optimizer.zero_grad(set_to_none=True)
                micro = _half(max(stop - start for start, stop in parts), halved, world)
                halved = True
                continue
            loss, metrics, stats, bad = sums
            norm = _grad_norm(state)
            # Read together: each reading waits for the device.
            value, length = torch.stack((loss, norm.to(loss.dtype))).tolist()
            if not math.isfinite(value + length):
                bad = ranks.gathered(bad)
                named = bad if len(bad) else torch.cat([batch.ids for batch in batches])
                error = NumericsError(_not_finite(state.step, loss, norm, named))
                raise ranks.told_by_lead(error)

            if optim.clip is not None and length > optim.clip:
                nn.utils.clip_grads_with_norm_(state.parameters, optim.clip, norm, foreach=True)
            lr = optim.lr_at(state.samples, total)
            for group in state.optimizer.param_groups:
                group["lr"] = lr
            state.optimizer.step()
            state.step += 1
            state.samples += count
            with torch.no_grad():
                if isinstance(state.learner.objective, AfterStep):
                    one = torch.zeros(1, dtype=torch.int64, device=device)
                    context = _context(state, total, seed, one)
                    context = context._replace(noise=context.noise.child("after step"))
                    state.learner.objective.after_step(state.learner.model, stats, context)
                _update_averages(state, optim.averages, count)
            yield Event(
                state.step,
                state.samples,
                loss,
                metrics,
                norm,
                lr,
                time.perf_counter() - started,
                waited,
                micro,
            )


def flops_per_sample(learner: Learner, source: Source, seed: int) -> int:
    """Floating-point operations of one sample, forward and backward, counted on a copy."""
    trial = copy.deepcopy(learner).train()
    device = next(trial.parameters()).device
    noise = Noise.of(seed, "train", torch.zeros(1, dtype=torch.int64, device=device))
    key_dropout(trial, noise.child("dropout"))
    # Fused attention on a processor goes uncounted; its plain form is the same arithmetic.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result: Loss = trial(source.at(0, 1).to(device), Context(0, 0.0, noise))
        result.per_sample.sum().backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product here, in some 0.3 s."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.ones(size, size, device=device, dtype=dtype)
    best, spent = 0.0, 0.0
    while spent < 0.3:
        started = time.perf_counter()
        (a @ a)[0, 0].item()
        seconds = time.perf_counter() - started
        best, spent = max(best, 2 * size**3 / seconds), spent + seconds
    return best


class _Sums(NamedTuple):
    """Of an update: what the global batch adds up to, and the ids of this rank's samples whose
    loss is not finite."""

    loss: Tensor
    metrics: dict[str, Tensor]
    stats: dict[str, Tensor]
    bad: Tensor


class _Job(NamedTuple):
    """What stays the same from one update to the next."""

    state: TrainState
    forward: Any
    autocast: Any
    total: int
    seed: int
    device: torch.device


def _gradients(
    job: _Job, batches: list[Batch], parts: list[tuple[int, int]], count: int
) -> _Sums | None:
    """Accumulate the gradient of Σ loss / count; None where memory ran out."""
    try:
        return _accumulate(job, batches, parts, count)
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            with ranks.watching():
                raise
    # Out of the handler, so that what the failed pass held is free.
    if job.device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def _accumulate(job: _Job, batches: list[Batch], parts: list[tuple[int, int]], count: int) -> _Sums:
    state, forward, autocast, total, seed, device = job
    world = ranks.world()
    sums: dict[str, Tensor] = {"loss": torch.zeros((), device=device)}
    bad: list[Tensor] = []
    totals = _looked(job, batches, parts)
    for i, (batch, (start, stop)) in enumerate(zip(batches, parts, strict=True)):
        batch = batch.to(device)
        positions = torch.arange(start, stop, device=device)
        context = _context(state, total, seed, positions)._replace(totals=totals)
        if state.dropout:
            key_dropout(state.learner, context.noise.child("dropout"))
        last = i == len(parts) - 1
        with _exchanging(state, forward, last):
            with autocast:
                result: Loss = forward(batch, context)
            if result.per_sample.shape != (stop - start,):
                raise ValueError(
                    f"the objective returned losses of shape {tuple(result.per_sample.shape)} "
                    f"for {stop - start} samples; it must return one loss per sample"
                )
            # Data-parallel training averages gradients over ranks: world makes that a sum.
            total_loss = result.per_sample.float().sum() * (world / count)
            total_loss.backward()  # type: ignore[no-untyped-call]
        bad.append(batch.ids[~torch.isfinite(result.per_sample.detach())])
        _add(sums, "loss", result.per_sample.detach().float().sum() / count)
        for name, (value, weight) in result.metrics.items():
            _add(sums, f"metric/{name}", value.detach().float())
            _add(sums, f"weight/{name}", torch.as_tensor(weight, device=device).float())
        for name, value in result.stats.items():
            _add(sums, f"stats/{name}", value.detach())
    if world > 1:
        sums = _summed(sums)
    metrics = {
        name.removeprefix("metric/"): sums[name] / sums[name.replace("metric/", "weight/")]
        for name in sums
        if name.startswith("metric/")
    }
    stats = {n.removeprefix("stats/"): v for n, v in sums.items() if n.startswith("stats/")}
    return _Sums(sums["loss"], metrics, stats, torch.cat(bad))


@torch.no_grad()
def _looked(
    job: _Job, batches: list[Batch], parts: list[tuple[int, int]]
) -> dict[str, Tensor] | None:
    """What the objective has to see of the whole global batch beforehand; None where it need not,
    or sees it anyway."""
    state, _, autocast, total, seed, device = job
    learner = state.learner
    objective = learner.objective
    if not isinstance(objective, Look) or not objective.looks:
        return None
    if ranks.world() == 1 and len(parts) == 1:
        return None
    sums: dict[str, Tensor] = {}
    for batch, (start, stop) in zip(batches, parts, strict=True):
        context = _context(state, total, seed, torch.arange(start, stop, device=device))
        key_dropout(learner, context.noise.child("dropout"))
        with autocast:
            found = objective.look(learner.model, batch.to(device), context)
            for name, value in found.items():
                _add(sums, name, value)
    return _summed(sums) if ranks.world() > 1 else sums


def _exchanging(state: TrainState, forward: Any, last: bool) -> Any:
    """Ranks exchange gradients once, with the last micro-batch."""
    if state.sharded:
        for part in state.learner.modules():
            if isinstance(part, FSDPModule):
                part.set_requires_gradient_sync(last, recurse=False)
    elif ranks.world() > 1 and not last:
        return forward.no_sync()
    return contextlib.nullcontext()


def _summed(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each sum over all ranks, in one exchange for each type of number."""
    result = dict(sums)
    for dtype in dict.fromkeys(value.dtype for value in sums.values()):  # alike on all ranks
        names = [name for name in sums if sums[name].dtype == dtype]
        flat = torch.cat([sums[name].reshape(-1) for name in names])
        dist.all_reduce(flat)
        parts = torch.split(flat, [sums[name].numel() for name in names])
        for name, part in zip(names, parts, strict=True):
            result[name] = part.view(sums[name].shape)
    return result


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value.clone()


def _context(state: TrainState, total: int, seed: int, positions: Tensor) -> Context:
    noise = Noise.of(seed, "train", positions).at(state.step)
    return Context(state.step, state.samples / total, noise)


def _parts(count: int, rank: int, world: int, micro: int | None) -> list[tuple[int, int]]:
    """The positions of the global batch that this rank works on, as [start, stop) pieces: as many
    as on every other rank, which must call the network as often, so that some may be empty."""
    start, stop = count * rank // world, count * (rank + 1) // world
    most = -(-count // world)
    size = micro or most
    return [(min(i, stop), min(i + size, stop)) for i in range(start, start + most, size)]


def _half(micro: int, halved: bool, world: int) -> int:
    """The micro-batch after memory ran out with `micro`. Raises: OutOfMemory the second time, for
    a single sample, and on several ranks, which must all do the same."""
    if halved or micro < 2 or world > 1:
        remedy = f"optim.micro_batch={max(1, micro // 2)}, " if micro > 1 else ""
        raise OutOfMemory(
            f"out of memory with {micro} samples at a time"
            f"{', already halved' if halved else ''}; write {remedy}"
            "optim.recompute=true, or use a smaller network or smaller images"
        )
    return micro // 2


def _grad_norm(state: TrainState) -> Tensor:
    """The norm of the whole gradient."""
    gradients = [p.grad for p in state.parameters if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _not_finite(step: int, loss: Tensor, norm: Tensor, samples: Tensor) -> str:
    ids = samples.tolist()
    shown = ", ".join(map(str, ids[:12])) + (", ..." if len(ids) > 12 else "")
    return (
        f"stopped before update {step + 1}: loss {loss.item():g}, gradient norm {norm.item():g} "
        f"(samples {shown}); nothing of this update was kept; try a lower optim.lr, "
        "or look at these samples"
    )


@torch.no_grad()
def _update_averages(state: TrainState, averages: tuple[Average, ...], count: int) -> None:
    """θ̄ ← β θ̄ + (1 − β) θ for parameters and floating buffers; other buffers are copied."""
    for average in averages:
        kept, current, others = state.pairs(average.name)
        beta = average.decay(state.samples, count)
        torch._foreach_lerp_(kept, current, 1 - beta)
        for copied, value in others:
            copied.copy_(value)


def _own(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds: all of it, if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _frozen_copy(learner: Learner) -> Learner:
    return copy.deepcopy(learner).requires_grad_(False).eval()


def _train_mode(learner: Learner) -> None:
    """Train mode for all but the parts whose weights are all frozen: teachers, target networks."""
    learner.train()
    for part in learner.modules():
        parameters = list(part.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            part.eval()


def sharded(learner: Learner, optim: Optim, device: torch.device) -> bool:
    """Whether each rank is to hold a part of the weights only: as `optim.shard` says, and by itself
    where a GPU could not hold all that training keeps of them."""
    if ranks.world() == 1 or optim.shard == "off":
        return False
    if optim.shard == "on":
        return True
    trained = sum(p.nbytes for p in learner.parameters() if p.requires_grad)
    all_of_them = sum(p.nbytes for p in learner.parameters())
    # Gradients and two moments beside the weights; what a step works on takes the rest.
    needed = all_of_them * (1 + len(optim.averages)) + 3 * trained
    return device.type == "cuda" and bool(
        ranks.agreed(int(needed > SHARE * memory.free(device)))[0]
    )


def _shard(learner: Learner, device: torch.device, narrow: bool = False) -> None:
    """Leave this rank its part of each network's weights, layer by layer, so that one layer at a
    time is put together. narrow: they are put together in bf16, which is what they are used in.

    Raises: ConfigError for weights outside of networks, which nothing would put together.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (ranks.world(),))
    for parameter in learner.parameters():
        parameter.data = parameter.data.contiguous()  # which is what can be sharded
    # Inputs are left alone: noise labels need all their digits.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if narrow else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    networks = [part for part in learner.modules() if getattr(part, "worth_compiling", False)]
    for network in networks:
        for part in network.modules():
            if isinstance(part, Recomputable):
                fully_shard(part, mesh=mesh, mp_policy=policy)
        fully_shard(network, mesh=mesh, mp_policy=policy)
    whole = [name for name, p in learner.named_parameters() if not isinstance(p, DTensor)]
    if whole:
        raise ConfigError(
            f"this model cannot be sharded: {whole[0]} belongs to no network; write optim.shard=off"
        )


def reshard(learner: Learner) -> None:
    """Give back what was put together to call networks outside of an update."""
    for part in learner.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _wrapped(state: TrainState, optim: Optim, device: torch.device) -> nn.Module:
    """The learner as it is called: its networks compiled where that pays, data-parallel where
    there are several ranks."""
    learner = state.learner
    module: nn.Module = learner
    for part in learner.modules():
        if isinstance(part, Recomputable):
            part.recompute = optim.recompute
    if optim.compile == "on" or (optim.compile == "auto" and device.type == "cuda"):
        for part in learner.modules():
            if getattr(part, "worth_compiling", False):
                part.compile()  # in place: names of weights stay as they are
    if ranks.world() > 1 and not state.sharded:
        with warnings.catch_warnings():  # its next name is not there in all versions yet
            warnings.simplefilter("ignore", FutureWarning)
            module = nn.parallel.DistributedDataParallel(
                module, broadcast_buffers=False, gradient_as_bucket_view=True
            )
    return module


def _autocast(optim: Optim, device: torch.device) -> Any:
    if precision(optim.precision, device) == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def precision(asked: str, device: torch.device) -> str:
    """`fp32` or `bf16`: what `auto` means here, or what was asked for if the machine has it.

    On a processor without bf16 instructions, bf16 is 60 to 130 times slower than fp32.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        has_bf16 = bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    if asked == "bf16" and not has_bf16:
        raise ConfigError(
            f"optim.precision=bf16 would be emulated on this {device.type} device, many times "
            "slower than fp32; write optim.precision=auto"
        )
    if asked == "auto":
        return "bf16" if has_bf16 and device.type == "cuda" else "fp32"
    return asked


class _Prefetch:
    """Reads ahead by one step in a thread, in the order in which positions are expected.

    What is read in less than CHEAP seconds is read by whoever takes it instead: on two cores a
    thread that wakes for a moment keeps those that compute a small network waiting for each other,
    for many times longer than it saves. The first reads show which it is.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="data")
        self._queue: list[Callable[[], Batch]] = []
        self._expected: tuple[int, list[tuple[int, int]]] = -1, []
        self._seconds: list[float] = []  # of the first reads

    def __enter__(self) -> _Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def expect(self, position: int, parts: list[tuple[int, int]]) -> None:
        """Start reading the parts of the batch at `position`, unless that has begun already; what
        was read ahead for other parts than are asked for now is forgotten."""
        if (position, parts) != self._expected:
            if position <= self._expected[0]:
                self._queue.clear()
            self._expected = position, parts
            for start, stop in parts:
                read = partial(self._source.at, position + start, stop - start)
                ahead = len(self._seconds) == TRIED and sorted(self._seconds)[TRIED // 2] > CHEAP
                self._queue.append(self._pool.submit(read).result if ahead else read)

    def take(self) -> Batch:
        started = time.perf_counter()
        batch = self._queue.pop(0)()
        if len(self._seconds) < TRIED:
            self._seconds.append(time.perf_counter() - started)
        return batch
