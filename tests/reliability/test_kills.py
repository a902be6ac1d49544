"""SIGKILL at random times: the same command ends where it would have ended, bit for bit.

A kill falls anywhere: while a run is made or opened, in an update, in a save, while an old
checkpoint is removed, while a picture is drawn. For each family a training is killed again and
again, and in the end compared with one that never was: SHA-256 of the weights, every average and
the optimizer's state, objective's buffers included, and `metrics.jsonl`, which must hold each
update once and in order. What a kill costs is counted in updates: all but the last one of those
that are done again were done within one save interval.

    python -m pytest tests/reliability/test_kills.py -s             2 kills a family, and a summary
    python -m pytest tests/reliability/test_kills.py -s -m slow     23 kills a family
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter

import pytest

from ornstein import checkpoint
from ornstein.run import Run
from tests.reliability.acts import PHASES, SAVE, Page
from tests.reliability.families import FAMILIES, schema
from tests.reliability.zygote import Zygote

SAVES = 12  # as many saves as an uninterrupted training should have time for, about
KILLS, MANY = 2, 23  # for each family


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    with Zygote(tmp_path_factory.mktemp("zygote")) as process:
        yield process


def result(folder):
    """Hashes of the last checkpoint's tensors, and the log without its times."""
    last = max((folder / "job" / "ckpt").glob("step-*"))
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in last.glob("*.safet*")}
    log = (folder / "job" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in log.splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == list(range(1, steps[-1] + 1)), "an update is missing, or was logged twice"
    kept = [{k: v for k, v in line.items() if k not in ("seconds", "waited")} for line in lines]
    return last.name, hashes, kept


def lost(page, folder):
    """How many updates a kill has cost, after a check that they fit into one interval."""
    found = checkpoint.latest(folder / "job" / "ckpt")
    count = page.step - (0 if found is None else found.state["step"])
    return max(count, 0)


def killed_often(family, kills, seed, zygote, tmp_path):
    """Kill a training so many times, let it end, and compare; what was seen of it."""
    (tmp_path / "whole").mkdir()
    page = tmp_path / "page"
    ended = zygote("training", family=family, folder=tmp_path / "whole", save_every=1e9, page=page)
    assert ended.code == 0, ended.output
    whole, seconds = result(tmp_path / "whole"), ended.seconds
    every = seconds / SAVES
    randomly, seen, costs, finished = random.Random(f"{family} {seed}"), Counter(), [], 0
    folder = tmp_path / "killed"
    folder.mkdir()
    words = {"family": family, "folder": folder, "save_every": every, "page": page}
    while sum(seen.values()) < kills:
        ended = zygote("training", after=randomly.uniform(0, 0.5 * seconds), **words)
        if ended.code == 0:  # it was through before the kill: that is a result, and a new start
            assert result(folder) == whole
            finished += 1
            (folder / "job").rename(tmp_path / f"finished-{finished}")
            continue
        assert ended.code == -9, ended.output
        watch = Page(page)
        seen[PHASES[watch.phase]] += 1
        cost = lost(watch, folder)
        costs.append(cost)
        if cost > 1:
            late = watch.done[watch.step - 1] - watch.since
            assert late <= every, f"{cost} updates lost, the last but one {late:.3f} s after a save"
    ended = zygote("training", **words)
    assert ended.code == 0, ended.output
    assert result(folder) == whole
    made = FAMILIES[family](folder)
    assert Run.open(folder / "job", schema=schema(made)).finished
    assert not list((folder / "job" / "ckpt").glob(".tmp-*"))
    print(
        f"\n{family}: {kills} kills (seed {seed}; {dict(seen)}), {finished} finished between, "
        f"updates lost: {sum(costs)} of {whole[2][-1]['step']}, at most {max(costs)}"
    )
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_killed_at_random_times(family, zygote, tmp_path):
    killed_often(family, KILLS, 0, zygote, tmp_path)


@pytest.mark.slow
def test_killed_two_hundred_times(zygote, tmp_path):
    """Some of the kills fell into saves, which the few above need not do."""
    seen = Counter()
    for family in FAMILIES:
        (tmp_path / family).mkdir()
        seen += killed_often(family, MANY, 1, zygote, tmp_path / family)
    print(dict(seen))
    assert sum(seen.values()) == MANY * len(FAMILIES) >= 200
    assert seen[PHASES[SAVE]] >= 5
