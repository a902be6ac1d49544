"""Codes drawn place by place: what is kept between places, beside a whole pass for each of them.

    python benchmarks/code_sampling.py [--threads 1] [--batch 16] [--rounds 3]

The network is `PixelCNN()`, as the recipe `code_prior` has it, of 128 codes, with attention and
without. Cached drawing is `raster.drawn`; the other takes the logits of place p from a pass over
the whole layout, with the codes drawn so far. Both get the same marks and should choose the same
codes; their logits are compared, too. Of the slower way at most 16 passes are timed, and counted
up, since each costs the same.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from ornstein.autoencoders.prior import PixelCNN
from ornstein.nn.pixelcnn import PixelCNNModule
from ornstein.nn.raster import chosen, drawn, incremental
from ornstein.noise import Noise

SIDES = (7, 8, 16, 32)
CODES = 128
SOME = 16  # passes of the slower way that are timed, at most


def network(side: int, attention: bool) -> PixelCNNModule:
    """Random weights that make the logits differ."""
    torch.manual_seed(0)
    choice = PixelCNN(attention=attention)
    net = PixelCNNModule((CODES, side, side), **choice.model_dump()).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
        net.head[-1].weight.normal_(std=0.3)
    return net


def seconds(work: Callable[[], object], rounds: int) -> float:
    """The median of some rounds, after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


@torch.no_grad()
def measured(side: int, batch: int, rounds: int, attention: bool) -> str:
    """One row of the table."""
    net = network(side, attention)
    noise, s = Noise.of(0, "draw", batch), net.condition()
    codes = drawn(net, s, noise)
    marks = noise.uniform(0, (side * side,), torch.float64).T.contiguous()
    full = net(codes).flatten(2)
    places = incremental(net, s, batch)
    cached = [next(places)]
    for code in codes.flatten(1).unbind(1)[:-1]:
        cached.append(places.send(code))
    apart = (torch.stack(cached, 2) - full).abs().max().item()

    passes = min(side * side, SOME)

    def naive() -> torch.Tensor:
        found = torch.zeros_like(codes)
        for p in range(passes):
            logits = net(found).flatten(2)[:, :, p]
            found.view(batch, -1)[:, p] = chosen(logits, marks[p], 1.0)
        return found

    alike = (naive() == codes).flatten(1)[:, :passes].double().mean().item()
    fast = seconds(lambda: drawn(net, s, noise), rounds)
    slow = seconds(naive, 1 if side > 8 else rounds) * side * side / passes
    return (
        f"{side:>3} × {side:<3} {'yes' if attention else 'no':<10} {fast:>8.3f} s {slow:>9.2f} s "
        f"{slow / fast:>7.1f} ×   {apart:.1e}   {100 * alike:.1f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.batch} samples, {args.threads} thread(s); logits apart and codes alike")
    print("layout    attention    cached    full pass  speed-up  apart    alike")
    for side in SIDES:
        for attention in (True, False):
            print(measured(side, args.batch, args.rounds, attention), flush=True)


if __name__ == "__main__":
    main()
