"""How much faster two processes train than one, each with one thread.

    python benchmarks/scaling.py [--seconds 10] [--rounds 3] [--cases digits,28,32]

weak     each process has as many samples as the one: 2 would be twice as fast
strong   the batch of 64 is shared out: what a run gains, and the result stays the same
threads  one process with two threads, for comparison

DDP and FSDP2 over gloo, on the processor. The ratios are of one round, in which the ways take
turns; the median of the rounds is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

BATCH = 64
CASES = {
    "digits": ["data.kind=digits"],
    "28": ["data.kind=shapes", "data.size=28", "data.count=2000"],
    "32": [
        *("data.kind=shapes", "data.size=32", "data.count=2000", "model.network.kind=unet"),
        *("model.network.channels=[32,64,64,64]", "model.network.attention=[2]"),
    ],
}


class Way(NamedTuple):
    """How a training is spread: processes, threads of each, samples of a batch, and its weights."""

    processes: int
    threads: int
    batch: int
    shard: str = "off"


WAYS = {
    "1 process": Way(1, 1, BATCH),
    "1 process, 2 threads": Way(1, 2, BATCH),
    "2 processes, DDP, strong": Way(2, 1, BATCH),
    "2 processes, DDP, weak": Way(2, 1, 2 * BATCH),
    "2 processes, FSDP2, strong": Way(2, 1, BATCH, "on"),
    "2 processes, FSDP2, weak": Way(2, 1, 2 * BATCH, "on"),
}


def worker(case: str, batch: int, shard: str, seconds: float) -> None:
    """Train for some seconds, and print the samples in a second."""
    import torch

    from ornstein import ranks
    from ornstein.data.stream import Stream
    from ornstein.recipe import Recipe, named
    from ornstein.settings import resolve
    from ornstein.training import TrainState, train

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    words = [*CASES[case], f"optim.batch={batch}", f"optim.shard={shard}"]
    with ranks.joined():
        recipe = resolve(Recipe, named("edm"), None, words).value
        dataset = recipe.data.load()
        recipe = recipe.fitted(dataset.info)
        learner = recipe.learner(dataset.info, lambda reference: reference)
        state = TrainState(learner, recipe.optim)
        source = Stream(dataset, 0, recipe.objective.range)
        begun, used = 0.0, 0
        for event in train(state, source, recipe.optim, 10**9, 0):
            if event.step == 5:
                begun, used = time.perf_counter(), state.samples
            spent = time.perf_counter() - begun
            if ranks.from_lead(int(event.step > 5 and spent > seconds)):
                break
        if ranks.leads():
            size = sum(p.numel() for p in learner.parameters())
            print(json.dumps({"rate": (state.samples - used) / spent, "parameters": size}))


def measured(case: str, way: Way, seconds: float) -> dict[str, Any]:
    """What the lead of such a training prints."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(way.processes):
        environment = {**os.environ, "OMP_NUM_THREADS": str(way.threads), "ORNSTEIN_DEVICE": "cpu"}
        if way.processes > 1:
            environment |= {"WORLD_SIZE": str(way.processes), "RANK": str(rank)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            environment |= {"LOCAL_RANK": str(rank)}
        command = [sys.executable, __file__, "--worker", case, str(way.batch), way.shard]
        command += ["--seconds", str(seconds)]
        started.append(
            subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        )
    told = [process.communicate()[0] for process in started]
    found: dict[str, Any] = json.loads(told[0].splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--worker", nargs=3, metavar=("CASE", "BATCH", "SHARD"))
    asked = parser.parse_args()
    if asked.worker:
        case, batch, shard = asked.worker
        worker(case, int(batch), shard, asked.seconds)
        return
    print("| images | parameters | how | samples/s | of one process | efficiency |")
    print("|---|---:|---|---:|---:|---:|")
    for case in asked.cases.split(","):
        found: dict[str, list[float]] = {name: [] for name in WAYS}
        ratios: dict[str, list[float]] = {name: [] for name in WAYS}
        parameters = 0
        for _ in range(asked.rounds):
            for name, way in WAYS.items():
                told = measured(case, way, asked.seconds)
                found[name].append(told["rate"])
                parameters = max(parameters, told["parameters"])
                ratios[name].append(told["rate"] / found["1 process"][-1])
        for name, way in WAYS.items():
            ratio = statistics.median(ratios[name])
            shares = way.processes * way.threads
            print(
                f"| {case} | {parameters:,} | {name} | {statistics.median(found[name]):.0f} | "
                f"{ratio:.2f}× | {ratio / shares:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
