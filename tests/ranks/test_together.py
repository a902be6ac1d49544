"""Several processes do what one does: the same updates, the same images, the same end.

Processes are started with torchrun's environment and talk over gloo. Weights are compared with
those of one process, to rounding: sums of gradients are taken in another order. Interrupted and
uninterrupted trainings on as many processes are compared bit for bit.

    python -m pytest tests/ranks -s
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from ornstein import checkpoint
from ornstein.run import Run
from tests.ranks.team import Team

SAMPLES, BATCH = 800, 16
MOONS = ["edm", "--data", "moons", "model.network=mlp", "model.network.width=8"]
MOONS += ["model.network.depth=2", "generation.steps=4"]
DIGITS = ["edm", "--data", "digits", "model.network.channels=[8,16]", "model.network.blocks=1"]
DIGITS += ["generation.steps=2", "augment.flip=false"]
RECIPES = {"moons": (MOONS, SAMPLES), "digits": (DIGITS, 20 * BATCH)}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    with Team(tmp_path_factory.mktemp("team")) as process:
        yield process


def words(name, folder, *more, samples=None, every=1e9):
    recipe, usual = RECIPES[name]
    length = ["--samples", str(samples or usual), f"optim.batch={BATCH}"]
    place = ["--save-every", str(every), "--runs", str(folder), "--run", "job"]
    return ["train", *recipe, *length, *place, *more]


def log(folder):
    lines = (folder / "job" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(folder):
    """All that a finished training has saved, whole, on the CPU."""
    found = checkpoint.latest(folder / "job" / "ckpt")
    return {
        f"{name}/{key}": value for name in found.names for key, value in found.tensors(name).items()
    }


def bits(folder):
    return {name: value.numpy().tobytes() for name, value in weights(folder).items()}


def said(ended):
    """The one thing that was said as an error, by whichever process; nothing else went wrong."""
    lines = [line for text in ended.outputs for line in text.splitlines()]
    assert not [line for line in lines if "Traceback" in line or "bug" in line], lines
    return [line for line in lines if line.startswith("ornstein: ")]


def close(a, b):
    assert a.keys() == b.keys()
    torch.testing.assert_close(a, b, **CLOSE)


@pytest.fixture(scope="module")
def alone(team, tmp_path_factory):
    """The trainings of one process."""
    found = {}
    for name in RECIPES:
        folder = tmp_path_factory.mktemp(f"alone-{name}")
        ended = team(1, words(name, folder))
        assert ended.codes == [0], ended.outputs
        found[name] = folder
    return found


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shard", ["off", "on"])
@pytest.mark.parametrize("size", [2, 4])
def test_several_processes_do_what_one_does(size, shard, name, team, alone, tmp_path):
    ended = team(size, words(name, tmp_path, f"optim.shard={shard}"))
    assert ended.codes == [0] * size, ended.outputs
    assert ended.outputs[1:] == [""] * (size - 1)  # the lead speaks
    close(weights(tmp_path), weights(alone[name]))
    for one, other in zip(log(alone[name]), log(tmp_path), strict=True):
        for key in ("step", "samples", "lr"):
            assert one[key] == other[key]
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
        assert other["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    parts = list((tmp_path / "job" / "ckpt").glob("step-*/model/shard-*.safetensors"))
    assert len(parts) == (size if shard == "on" else 0)


@pytest.mark.parametrize("name", RECIPES)
def test_ranks_without_samples_keep_step(name, team, tmp_path):
    """The last batch has 2 samples, for 3 processes, and micro-batches divide no share."""
    samples, more = 5 * BATCH + 2, ["optim.micro_batch=4", "--no-previews"]
    assert team(1, words(name, tmp_path / "one", *more, samples=samples)).codes == [0]
    for shard in ("off", "on"):
        folder = tmp_path / shard
        ended = team(3, words(name, folder, *more, f"optim.shard={shard}", samples=samples))
        assert ended.codes == [0, 0, 0], ended.outputs
        close(weights(folder), weights(tmp_path / "one"))


def stop_after(folder, steps, number, which):
    """What sends a signal to a process once so many updates have been logged."""

    def during(pids):
        path, deadline = folder / "job" / "metrics.jsonl", time.monotonic() + 60
        while not path.exists() or path.read_text().count("\n") < steps:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(pids[which], number)

    return during


LONG = 3_840  # 240 updates, so that a signal falls between


@pytest.fixture(scope="module")
def long(team, tmp_path_factory):
    """An uninterrupted training of two processes, by whether they share the weights out."""
    found = {}
    for shard in ("off", "on"):
        folder = tmp_path_factory.mktemp(f"long-{shard}")
        ended = team(2, words("moons", folder, f"optim.shard={shard}", samples=LONG))
        assert ended.codes == [0, 0], ended.outputs
        found[shard] = folder
    return found


@pytest.mark.parametrize("shard", ["off", "on"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_signal_to_one_stops_all_after_the_same_update(which, shard, team, long, tmp_path):
    more = [f"optim.shard={shard}"]
    during = stop_after(tmp_path, 3, signal.SIGTERM, which)
    ended = team(2, words("moons", tmp_path, *more, samples=LONG), during)
    assert ended.codes == [143, 143], ended.outputs
    assert "stopped after a save" in ended.outputs[0]
    step = log(tmp_path)[-1]["step"]
    assert 3 <= step < LONG // BATCH
    assert checkpoint.latest(tmp_path / "job" / "ckpt").state["step"] == step
    ended = team(2, words("moons", tmp_path, *more, samples=LONG))
    assert ended.codes == [0, 0], ended.outputs
    assert bits(tmp_path) == bits(long[shard])
    assert [line["step"] for line in log(tmp_path)] == list(range(1, LONG // BATCH + 1))


@pytest.mark.parametrize("shard", ["off", "on"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_process_ends_the_others(which, shard, team, long, tmp_path):
    more = [f"optim.shard={shard}"]
    during = stop_after(tmp_path, 3, signal.SIGKILL, which)
    ended = team(2, words("moons", tmp_path, *more, samples=LONG, every=0.2), during)
    assert ended.codes[which] == -9
    assert ended.codes[1 - which] == 8, ended.outputs
    (sentence,) = said(ended)
    assert "another process" in sentence
    ended = team(2, words("moons", tmp_path, *more, samples=LONG))
    assert ended.codes == [0, 0], ended.outputs
    assert bits(tmp_path) == bits(long[shard])
    assert [line["step"] for line in log(tmp_path)] == list(range(1, LONG // BATCH + 1))


@pytest.fixture(scope="module")
def steady(team, tmp_path_factory):
    """A training of one process whose learning rate does not know its length."""
    folder = tmp_path_factory.mktemp("steady")
    ended = team(1, words("moons", folder, "optim.decay=none"))
    assert ended.codes == [0], ended.outputs
    return folder


@pytest.mark.parametrize("shard", ["off", "on"])
@pytest.mark.parametrize("sizes", [(2, 1), (2, 4), (1, 2)])
def test_other_numbers_of_processes_go_on(sizes, shard, team, steady, tmp_path):
    more = [f"optim.shard={shard}", "optim.decay=none"]
    for size, samples in zip(sizes, (SAMPLES // 2, SAMPLES), strict=True):
        ended = team(size, words("moons", tmp_path, *more, samples=samples))
        assert ended.codes == [0] * size, ended.outputs
    close(weights(tmp_path), weights(steady))
    steps = [line["step"] for line in log(tmp_path)]
    assert steps == list(range(1, SAMPLES // BATCH + 1))


@pytest.mark.parametrize("shard", ["off", "on"])
def test_a_value_that_is_not_finite_on_one_process_updates_none(shard, team, tmp_path):
    x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    folder = tmp_path / "runs"
    recipe = ["train", "edm", "--data", str(tmp_path / "x.npy"), "model.network=mlp"]
    recipe += ["model.network.width=8", "model.network.depth=1", "optim.batch=16"]
    recipe += ["--runs", str(folder), "--run", "job", f"optim.shard={shard}", "--no-previews"]
    recipe += ["optim.warmup=0", "optim.clip=null", "optim.lr=1e30"]
    ended = team(2, [*recipe, "--samples", "1600"])
    assert ended.codes == [6, 6], ended.outputs
    (sentence,) = said(ended)
    assert "stopped before update" in sentence
    assert ended.outputs[1] == ""


def test_a_lead_that_cannot_save_ends_all(team, tmp_path):
    def during(pids):
        path, deadline = tmp_path / "job" / "metrics.jsonl", time.monotonic() + 60
        while not path.exists() or not path.read_text().count("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        (tmp_path / "job" / "ckpt").write_text("in the way")

    ended = team(2, words("moons", tmp_path, samples=160_000, every=2), during)
    assert ended.codes == [5, 5], ended.outputs
    assert len(said(ended)) == 1


def test_a_mistake_is_said_once(team, tmp_path):
    ended = team(2, words("moons", tmp_path, "optim.lr=-1"))
    assert ended.codes == [2, 2]
    assert len(said(ended)) == 1
    missing = ["train", "edm", "--data", str(tmp_path / "none.npy"), "--runs", str(tmp_path)]
    ended = team(2, missing)
    assert ended.codes == [3, 3], ended
    assert len(said(ended)) == 1


def test_each_image_is_the_same_whoever_draws_it(team, alone, tmp_path):
    for name in RECIPES:
        run = str(alone[name] / "job")
        drawn = []
        for size in (1, 2, 4):
            out = tmp_path / f"{name}-{size}"
            ended = team(size, ["sample", run, "-n", "37", "--save", "npz", "--out", str(out)])
            assert ended.codes == [0] * size, ended.outputs
            (path,) = out.glob("*.npz")
            with np.load(path) as stored:
                drawn.append(stored["samples"].astype(np.float64))
        bins = 16 if name == "digits" else None
        for other in drawn[1:]:
            if bins:  # a value may lie on the border of two
                assert np.abs(other - drawn[0]).max() <= 1
                assert np.mean(other != drawn[0]) < 1e-3
            else:
                np.testing.assert_allclose(other, drawn[0], atol=1e-4)


def test_scores_are_the_same_whoever_measures(team, tmp_path):
    recipe = ["train", "ddpm", "--data", "digits", "model.network.channels=[8,16]"]
    recipe += ["model.network.blocks=1", "--samples", "64", "optim.batch=16", "--no-previews"]
    recipe += ["model.process.steps=20", "generation.steps=20"]
    ended = team(1, [*recipe, "--runs", str(tmp_path), "--run", "job"])
    assert ended.codes == [0], ended.outputs
    found = []
    for size in (1, 2):
        asked = ["evaluate", str(tmp_path / "job"), "-n", "40", "--likelihood", "20", "--json"]
        ended = team(size, asked)
        assert ended.codes == [0] * size, ended.outputs
        found.append(json.loads(ended.outputs[0][ended.outputs[0].index("{") :]))
        assert ended.outputs[1:] == [""] * (size - 1)
    one, two = found
    assert two["metrics"]["frechet"]["value"] == pytest.approx(
        one["metrics"]["frechet"]["value"], rel=1e-3
    )
    assert two["likelihood"]["nats"]["value"] == pytest.approx(
        one["likelihood"]["nats"]["value"], rel=1e-5
    )


def test_a_part_that_is_damaged_or_missing_is_noticed(team, tmp_path):
    for size in (400, 800):
        assert team(2, words("moons", tmp_path, "optim.shard=on", samples=size)).codes == [0, 0]
    folder = tmp_path / "job" / "ckpt"
    old, new = sorted(folder.glob("step-*"))
    part = sorted(new.glob("model/*.safetensors"))[1]
    content = bytearray(part.read_bytes())
    content[-3] ^= 4
    part.write_bytes(content)
    assert checkpoint.latest(folder).folder == old
    Run.open(tmp_path / "job").generate(3)  # of the one before
    part.unlink()
    assert checkpoint.latest(folder).folder == old
    found = checkpoint.latest(folder)
    parts = [(found.folder / file).read_bytes() for file in found._files("model")]
    shapes = found.manifest["shapes"]["model"]
    assert {
        name: list(t.shape) for name, t in checkpoint._joined(parts[:], shapes).items()
    } == shapes
    for some in (parts[1:], parts[:1], [parts[0], *parts]):
        with pytest.raises(ValueError, match="missing"):
            checkpoint._joined(some, shapes)


@pytest.mark.parametrize("how", ["gpus", "torchrun"])
def test_the_commands_of_the_documentation(how, tmp_path):
    """As a user starts it, in processes of its own; a worker that is killed is started again."""
    arguments = words("moons", tmp_path, samples=LONG, every=0.2)
    environment = {**os.environ, "ORNSTEIN_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    environment["ORNSTEIN_CACHE"] = str(tmp_path / "cache")
    if how == "gpus":
        command = [sys.executable, "-m", "ornstein", *arguments, "--gpus", "2"]
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--local-addr", "127.0.0.1", "--nproc-per-node", "2", "--max-restarts", "2"]
        command += ["-m", "--", "ornstein", *arguments]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if how == "torchrun":
        path, deadline = tmp_path / "job" / "lock", time.monotonic() + 60
        metrics = tmp_path / "job" / "metrics.jsonl"
        while not metrics.exists() or metrics.read_text().count("\n") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(int(path.read_text().split()[1]), signal.SIGKILL)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 0, text
    assert "trained in" in text
    assert [line["step"] for line in log(tmp_path)] == list(range(1, LONG // BATCH + 1))
    assert Run.open(tmp_path / "job").finished
