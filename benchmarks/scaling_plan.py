"""What our networks would take on 1 to 1,000 GPUs: memory, communication and bounds on efficiency.

    python benchmarks/scaling_plan.py

COMPUTED, NOT MEASURED. Parameters, operations and saved activations are counted on our own modules
without memory for them; the rest is arithmetic with published figures:

    GPU            H100 SXM: 80 GB, 989 TFLOP/s dense bf16, of which 30 % are assumed to be used;
                   NVLink 4, 450 GB/s each way; one 400 Gb/s port a GPU, so 400 GB/s for a node of 8
    bytes sent     all-reduce 2 S (N − 1)/N, all-gather and reduce-scatter S (N − 1)/N, over the
                   slower of the two links (NVIDIA nccl-tests, doc/PERFORMANCE.md)
    latency        NCCL's own model of a collective (src/graph/tuning.cc, protocol LL128): a step of
                   a ring costs 1.9 µs in a node and 4.0 µs between nodes, of a tree 1.2 and 8.5 µs
    DDP            gradients in buckets of 25 MiB, of which all but the last may be exchanged while
                   the backward pass goes on (S. Li et al. 2020, arXiv:2006.15704)
    FSDP2          weights gathered for each block, forward and backward, in bf16, gradients
                   reduced and scattered in float32; the next block may be gathered meanwhile
                   (Y. Zhao et al. 2023, arXiv:2304.11277)
    HSDP           FSDP2 within a node, and DDP of its parts between nodes

The better bound hides all communication that can be hidden and has the links' full speed; the worse
one hides nothing and has half of it. What neither knows: waiting for the slowest GPU, for data, and
for files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ornstein.nn.layers import Recomputable
from ornstein.nn.networks import UNet
from ornstein.recipe import named

GPUS = (1, 8, 64, 512, 1000)
NODE = 8
PEAK, USED = 989e12, 0.30
MEMORY = 80e9
NVLINK, PORT = 450e9, 50e9  # bytes a second, each way
RING, TREE = (1.9e-6, 4.0e-6), (1.2e-6, 8.5e-6)  # seconds a step, in a node and between nodes
BUCKET = 25 * 2**20
GATHERED = 2  # bytes of a weight as it is gathered
AVERAGES = 1  # as our recipes keep


class Case(NamedTuple):
    """A network, what it is, its images, and how many of them a GPU works on at once."""

    name: str
    what: str
    network: UNet
    side: int
    batch: int


class Kept(NamedTuple):
    """Bytes that the forward pass keeps for the backward pass: for each sample, and once."""

    sample: int
    once: int


class Count(NamedTuple):
    """Of a network: parameters, the blocks that are gathered one by one, the largest of them in
    parameters, operations of a sample (forward and backward), and what is kept for the backward
    pass, without and with `optim.recompute`."""

    parameters: int
    blocks: int
    largest: int
    flops: int
    kept: Kept
    recomputed: Kept


def cases() -> Iterator[Case]:
    recipe: Any = named("ddpm_cifar10").model.network
    what = "`ddpm_cifar10`: 128·(1, 2, 2, 2), 2 blocks, attention at 16"
    yield Case("36 M", what, recipe.model_copy(update={"dropout": 0.0}), 32, 128)
    for name, base, batch in (
        ("265 M", 192, 64),
        ("1.1 B", 384, 32),
        ("1.9 B", 512, 16),
        ("2.9 B", 640, 16),
    ):
        widths = tuple(base * k for k in (1, 2, 3, 4))
        network = UNet(channels=widths, blocks=3, attention=(2, 4, 8), head_width=64)
        what = f"{base}·(1, 2, 3, 4), 3 blocks, attention at 32, 16, 8"
        yield Case(name, what, network, 64, batch)
    widths = (256, 256, 512, 512, 1024, 1024)
    network = UNet(channels=widths, blocks=2, attention=(8, 16, 32), head_width=64)
    what = "256·(1, 1, 2, 2, 4, 4), 2 blocks, attention at 32, 16, 8"
    yield Case("481 M", what, network, 256, 8)


def count(case: Case) -> Count:
    """Count with tensors that have shapes and no content."""
    with torch.device("meta"):
        module = case.network.build((3, case.side, case.side))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            passed(module, case, 1).sum().backward()
    blocks = [part for part in module.modules() if isinstance(part, Recomputable)]
    sizes = [sum(p.numel() for p in part.parameters()) for part in blocks]
    parameters = sum(p.numel() for p in module.parameters())
    rest = parameters - sum(sizes)  # gathered with the whole network
    return Count(
        parameters,
        len(blocks) + 1,
        max(*sizes, rest),
        counter.get_total_flops(),
        kept(case, recompute=False),
        kept(case, recompute=True),
    )


def passed(module: nn.Module, case: Case, batch: int) -> Tensor:
    """The network's output for a batch."""
    out: Tensor = module(torch.empty(batch, 3, case.side, case.side), torch.empty(batch))
    return out


def kept(case: Case, recompute: bool) -> Kept:
    """Count what autograd saves, weights aside, under autocast to bf16 as on a GPU."""
    totals = []
    for batch in (1, 2):
        with FakeTensorMode():
            module = case.network.build((3, case.side, case.side))
            for part in module.modules():
                if isinstance(part, Recomputable):
                    part.recompute = recompute
                elif isinstance(part, nn.GroupNorm):  # a GPU's autocast computes it in float32
                    part.register_forward_pre_hook(lambda _, x: (x[0].float(),))
            weights = {p.untyped_storage()._cdata for p in module.parameters()}
            held: dict[int, Any] = {}  # storages: while they are held, no two are the same

            def keep(tensor: Tensor, weights: Any = weights, held: Any = held) -> Tensor:
                storage = tensor.untyped_storage()
                if storage._cdata not in weights:
                    held[storage._cdata] = storage
                return tensor

            autocast = torch.autocast("cpu", torch.bfloat16)
            with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                out = passed(module, case, batch)
            totals.append(sum(storage.nbytes() for storage in held.values()))
            del out
    return Kept(totals[1] - totals[0], 2 * totals[0] - totals[1])


def compute(case: Case, found: Count) -> float:
    """Seconds of a step on one GPU."""
    return case.batch * found.flops / (USED * PEAK)


def link(gpus: int) -> float:
    """Bytes a second of the slower link, as a collective sees it ("bus bandwidth")."""
    return NVLINK if gpus <= NODE else min(NVLINK, NODE * PORT)


def part(size: float, gpus: int, calls: int, share: float) -> float:
    """Seconds of `calls` all-gathers, or reduce-scatters, of `size` bytes in all."""
    nodes = math.ceil(gpus / NODE)
    steps = (gpus - nodes) * RING[0] + (nodes - 1) * RING[1]
    return size * (gpus - 1) / gpus / (share * link(gpus)) + calls * steps


def whole(size: float, gpus: int, calls: int, share: float) -> float:
    """Seconds of `calls` all-reduces of `size` bytes in all."""
    nodes = math.ceil(gpus / NODE)
    steps = 2 * (gpus - 1) * RING[0]
    if nodes > 1:
        steps = 2 * ((NODE - 1) * TREE[0] + math.ceil(math.log2(nodes)) * TREE[1])
    return 2 * size * (gpus - 1) / gpus / (share * link(gpus)) + calls * steps


def ddp(found: Count, step: float, gpus: int) -> tuple[float, float]:
    """The worse and the better bound on efficiency."""
    size = 4 * found.parameters
    buckets = math.ceil(size / BUCKET)
    exposed = whole(size, gpus, buckets, 0.5)
    total = whole(size, gpus, buckets, 1.0)
    last = total / buckets
    hidden = max(0.0, total - last - 2 / 3 * step)
    return step / (step + exposed), step / (step + last + hidden)


def fsdp(found: Count, step: float, gpus: int, nodes: int = 1) -> tuple[float, float]:
    """The same; over `gpus`, and with `nodes` such groups that add up their gradients."""
    calls = found.blocks

    def seconds(share: float) -> tuple[float, float]:
        """Of gathering all weights, and of reducing all gradients."""
        gather = part(GATHERED * found.parameters, gpus, calls, share)
        reduce = part(4 * found.parameters, gpus, calls, share)
        if nodes > 1:
            own = 4 * found.parameters / gpus
            reduce += 2 * own * (nodes - 1) / nodes / (share * PORT)
            reduce += calls * 2 * math.ceil(math.log2(nodes)) * TREE[1]
        return gather, reduce

    gather, reduce = seconds(0.5)
    worse = step / (step + 2 * gather + reduce)
    gather, reduce = seconds(1.0)
    first, last = gather / calls, reduce / calls
    forward = max(step / 3, gather - first)
    backward = max(2 * step / 3, gather + reduce - last)
    return worse, step / (first + forward + backward + last)


def memory(case: Case, found: Count, kept: Kept, gpus: int | None) -> float:
    """Bytes that a GPU holds at the end of the forward pass: state, what is kept, and buffers.

    gpus: over how many all is shared out by FSDP2; None for DDP."""
    state = (16 + 4 * AVERAGES) * found.parameters  # weights, gradients, two moments, averages
    passing = case.batch * kept.sample
    if gpus is None:
        return state + passing + kept.once  # gradients lie in the buckets
    # Two blocks' weights and one's gradients are whole.
    return state / gpus + passing + (2 * GATHERED + 4) * found.largest


def table(head: list[str], rows: list[list[str]]) -> None:
    print("|", " | ".join(head), "|")
    print("|---|" + "---:|" * (len(head) - 1))
    for row in rows:
        print("|", " | ".join(row), "|")
    print()


def fitting(size: float) -> str:
    """In GB, with a mark where the GPU is too small."""
    return f"{size / 1e9:.1f}" + (" ✗" if size > MEMORY else "")


def span(bounds: tuple[float, float]) -> str:
    low, high = (f"{100 * bound:.0f}" for bound in bounds)
    return f"{high} %" if low == high else f"{low} to {high} %"


def main() -> None:
    found = {case: count(case) for case in cases()}

    print("Networks\n")
    head = ["network", "channels", "images", "parameters", "GFLOP a sample", "checkpoint, GB"]
    head += ["kept a sample, MB", "recomputing"]
    rows = []
    for case, c in found.items():
        rows.append(
            [
                case.name,
                case.what,
                f"{case.side}²",
                f"{c.parameters:,}",
                f"{c.flops / 1e9:,.0f}",
                f"{(12 + 4 * AVERAGES) * c.parameters / 1e9:.1f}",
                f"{c.kept.sample / 1e6:,.0f}",
                f"{c.recomputed.sample / 1e6:,.0f}",
            ]
        )
    table(head, rows)

    print("Memory of a GPU, GB\n")
    head = ["network", "batch a GPU", "", "DDP", *(f"FSDP2 over {n:,}" for n in GPUS[1:])]
    rows = []
    for case, c in found.items():
        for name, way in (("", c.kept), ("recomputing", c.recomputed)):
            sizes = [memory(case, c, way, n) for n in (None, *GPUS[1:])]
            start = [case.name, str(case.batch)] if not name else ["", ""]
            rows.append([*start, name, *map(fitting, sizes)])
    table(head, rows)

    print("Communication of a step: GB that each of many GPUs sends, and seconds at full speed\n")
    head = ["network", "a step alone, s", "DDP, GB", "FSDP2, GB"]
    head += [f"{way}, {n:,} GPUs, s" for n in (8, 64, 1000) for way in ("DDP", "FSDP2")]
    rows = []
    for case, c in found.items():
        size = 4 * c.parameters
        row = [case.name, f"{compute(case, c):.3f}", f"{2 * size / 1e9:.1f}"]
        row.append(f"{(2 * GATHERED + 4) * c.parameters / 1e9:.1f}")
        for n in (8, 64, 1000):
            row.append(f"{whole(size, n, math.ceil(size / BUCKET), 1.0):.3f}")
            both = 2 * part(GATHERED * c.parameters, n, c.blocks, 1.0)
            row.append(f"{both + part(size, n, c.blocks, 1.0):.3f}")
        rows.append(row)
    table(head, rows)

    print("Bounds on efficiency: the share of N times one GPU's speed\n")
    head = ["network", "", *(f"N = {n:,}" for n in GPUS[1:])]
    rows = []
    for case, c in found.items():
        step = compute(case, c)
        rows.append([case.name, "DDP", *(span(ddp(c, step, n)) for n in GPUS[1:])])
        rows.append(["", "FSDP2", *(span(fsdp(c, step, n)) for n in GPUS[1:])])
        mixed = [span(fsdp(c, step, NODE, math.ceil(n / NODE))) for n in GPUS[1:]]
        rows.append(["", "HSDP", *mixed])
    table(head, rows)

    # Llama 3.1 8B, two sequences of 8,192 tokens a GPU, weights gathered in bf16: measured by
    # torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, with torch.compile.
    llama = Count(8_030_261_248, 33, 0, 0, Kept(0, 0), Kept(0, 0))
    low, high = fsdp(llama, 2 * 8192 / 6667, 128)
    print(
        "Held against a measurement: torchtitan's Llama 3.1 8B with FSDP2 has on 128 GPUs "
        f"{6514 / 6667:.1%} of its speed on 8; these bounds are {low:.0%} to {high:.0%}."
    )


if __name__ == "__main__":
    main()
