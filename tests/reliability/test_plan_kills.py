"""SIGKILL inside any stage of a plan: the same command ends where it would have ended, bit for bit.

A plan of three stages: a codec with two levels, a prior of the coarse codes, one of the fine; with
previews, dropout and micro-batches. A kill falls while a stage is made, while data are encoded, in
an update, in a save, between two stages. All tensors of all stages, their logs and what is known
of their codes are compared with those of a plan that was never disturbed.
"""

from __future__ import annotations

import hashlib
import json
import random

import pytest

from tests.reliability.zygote import Zygote

PLAN = """\
name: tiny
stages:
  codec:
    recipe: vq_vae_2_codec
    model:
      nets: {channels: [4, 8]}
      units: 8
      bottleneck: {top: {codes: 8}, bottom: {codes: 8}, channels: 8}
    optim: {batch: 16, micro_batch: 10, samples: 480, warmup: 0}
  top:
    recipe: code_prior
    model: {network: {channels: 8, layers: 2, head_width: 8, dropout: 0.1}}
    optim: {batch: 16, micro_batch: 10, samples: 400, warmup: 0}
  bottom:
    recipe: code_prior_fine
    model: {network: {channels: 8, layers: 2, dropout: 0.1}}
    optim: {batch: 16, micro_batch: 10, samples: 400, warmup: 0}
"""
KILLS, MANY = 3, 40
STAGES = ("codec", "top", "bottom")


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    with Zygote(tmp_path_factory.mktemp("zygote")) as process:
        yield process


def result(folder):
    """Hashes of all tensors, the logs without times, and what is known of the codes."""
    found = {}
    for stage in STAGES:
        last = max((folder / "p" / stage / "ckpt").glob("step-*"))
        for path in last.glob("*.safetensors"):
            found[stage, path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        lines = (folder / "p" / stage / "metrics.jsonl").read_text().splitlines()
        log = [json.loads(line) for line in lines]
        assert [line["step"] for line in log] == list(range(1, len(log) + 1))
        found[stage, "log"] = [
            {k: v for k, v in line.items() if k not in ("seconds", "waited")} for line in log
        ]
        codes = folder / "p" / stage / "encoded.json"
        if stage != "codec":
            found[stage, "codes"] = json.loads(codes.read_text())
    return found


def killed(kills, seed, zygote, tmp_path):
    words = {"file": tmp_path / "plan.yaml", "save_every": 0.3}
    words["file"].write_text(PLAN)
    whole = tmp_path / "whole"
    ended = zygote("planned", folder=whole, cache=tmp_path / "first", **words)
    assert ended.code == 0, ended.output
    expected, seconds = result(whole), ended.seconds
    randomly, sent, tried = random.Random(seed), 0, 0
    folder = tmp_path / "killed"
    while sent < kills:
        tried += 1
        ended = zygote(
            "planned",
            after=randomly.uniform(0.05, 0.6) * seconds,
            folder=folder,
            cache=tmp_path / f"cache-{tried}" if tried % 3 == 1 else tmp_path / "second",
            **words,
        )
        if ended.code == 0:
            assert result(folder) == expected
            folder.rename(tmp_path / f"finished-{tried}")
            continue
        assert ended.code == -9, ended.output
        sent += 1
    ended = zygote("planned", folder=folder, cache=tmp_path / "second", **words)
    assert ended.code == 0, ended.output
    assert result(folder) == expected


def test_killed_inside_any_stage(zygote, tmp_path):
    killed(KILLS, 0, zygote, tmp_path)


@pytest.mark.slow
def test_killed_forty_times(zygote, tmp_path):
    killed(MANY, 1, zygote, tmp_path)
