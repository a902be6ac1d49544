"""What a training takes is known before it begins: counted exactly, and close to what it is."""

from __future__ import annotations

import json
import mmap
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ornstein import estimate as estimates
from ornstein import memory
from ornstein.estimate import Estimate, estimate
from ornstein.prepare import OVERHEAD
from ornstein.recipe import Recipe, named
from ornstein.run import Run
from ornstein.settings import resolve

MIB = 2**20
TINY = ["model.network=unet", "model.network.channels=[8,16]"]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short_trials(monkeypatch):
    monkeypatch.setattr("ornstein.prepare.TRIAL_SECONDS", 0.1)


def planned(*words, name="edm", runs=Path("nowhere")):
    """A run that is planned and not made."""
    return Run.plan(resolve(Recipe, named(name), None, words).value, runs)


def count(run):
    return estimates._count(run, previews=True)


def test_living_tensors_are_counted_once_and_forgotten():
    a = torch.zeros(1000)  # 4,000 bytes, held from the start
    with estimates._Counter([a, a.view(10, 100)]) as counter:
        b = a + 1
        c = b.view(100, 10) * 2
        del b
        d = c.double()
        del c, d
        a.exp()
    assert counter.points == [4000, 8000, 12000, 16000, 8000]


@pytest.mark.parametrize(
    "words",
    [TINY, [*TINY, "optim.micro_batch=4"], ["data.kind=toy", "data.name=moons"]],
    ids=["unet", "micro-batches", "mlp"],
)
def test_a_count_carried_on_is_the_count(words, monkeypatch):
    """Counted with 2 and 3 samples, carried on to 8: the same bytes as counted with 8."""
    run = planned(*words)
    found = count(run)
    carried = found.update(8)
    monkeypatch.setattr(estimates, "TRIED", (8, 9))
    larger = count(run)
    assert [len(points) for points in found.points] == [len(larger.points[0])] * 2
    assert carried == max(larger.points[0])
    assert found.kept == larger.kept


def test_what_is_kept_has_a_closed_form():
    """Weights, one average, two moments and a step for each tensor; gradients once more."""
    run = planned(*TINY)
    found = count(run)
    parameters = list(run.untrained().parameters())
    tensors = [p.numel() for p in parameters]
    assert not list(run.untrained().buffers())
    assert found.gradients == 4 * sum(tensors)
    assert found.kept == 4 * 4 * sum(tensors) + 4 * len(tensors)
    # The moments make the largest file, which is serialised in two steps; and those of 3×3
    # kernels, whose channels lie side by side in memory, are copied.
    moments = 4 * 2 * sum(tensors) + 4 * len(tensors)
    kernels = sum(p.numel() for p in parameters if p.ndim == 4 and p[0, 0].numel() > 1 < len(p[0]))
    assert found.saving == 2 * moments + 4 * 2 * kernels


def test_an_update_needs_more_memory_with_more_samples():
    found = count(planned(*TINY))
    peaks = [found.peak(micro, CPU) for micro in (1, 8, 64, 512)]
    assert peaks == sorted(peaks)
    assert peaks[-1] > 10 * found.kept


def test_the_size_of_a_checkpoint(tmp_path):
    words = ["optim.batch=64", "optim.samples=64"]
    recipe = resolve(Recipe, named("demo"), None, words).value
    run = Run.create(recipe, tmp_path, "run")
    list(run.train(previews=False))
    real = sum(f.stat().st_size for f in next((run.path / "ckpt").glob("step-*")).iterdir())
    assert count(run).checkpoint == pytest.approx(real, rel=0.02)


def test_numbers_of_an_estimate(tmp_path):
    run = planned(*TINY, "optim.batch=8", runs=tmp_path)
    found = estimate(run)
    parameters = sum(p.numel() for p in run.untrained().parameters())
    assert (found.parameters, found.trained, found.averages) == (parameters, parameters, 1)
    assert found.micro_batch is None
    assert len(found.seconds) >= 1
    assert found.resident < found.memory < found.free
    assert found.flops > 2 * parameters
    assert not list(tmp_path.iterdir())


def test_speed_and_time():
    recipe = resolve(Recipe, named("edm"), None, ["optim.batch=100", "optim.samples=4000"]).value
    seconds = (0.5, 1.0, 2.0, 1.0, 4.0)
    found = Estimate(recipe, 0, 0, 0, 0, 0, 0, 0, None, 0, seconds)
    assert found.rate() == 100
    assert (found.rate(0.25), found.rate(0.75)) == (50, 100)
    assert found.duration() == pytest.approx(40 / (1 - OVERHEAD))
    assert found.duration(done=3000) == pytest.approx(10 / (1 - OVERHEAD))
    assert found.duration(done=5000) == 0


def test_minutes_become_samples_at_the_speed_of_the_trial(tmp_path):
    words = ["optim.batch=8", "optim.samples=null", "optim.minutes=0.01"]
    run = planned(*TINY, *words, runs=tmp_path)
    assert run.recipe.optim.samples is None
    found = estimate(run)
    expected = (1 - OVERHEAD) * found.rate() * 0.6
    assert found.recipe.optim.samples == max(8, int(expected))


def test_what_does_not_fit_is_not_tried_and_a_micro_batch_is_proposed(monkeypatch):
    run = planned(*TINY, "optim.batch=512")
    found = count(run)
    room = int(found.peak(100, CPU) / estimates.ROOM)
    monkeypatch.setattr(memory, "free", lambda device: room)
    monkeypatch.setattr(memory, "held", lambda device: 0)
    monkeypatch.setattr(estimates, "update_seconds", lambda *_: pytest.fail("it was tried"))
    told = estimate(run)
    assert told.memory > told.free
    assert told.micro_batch == 64  # the first of 256, 128, 64 that is at most 100
    assert told.seconds == ()
    monkeypatch.setattr(memory, "free", lambda device: found.kept)
    assert estimate(run).micro_batch == 0


def test_memory_as_the_system_tells_it():
    before = memory.held(CPU)
    with mmap.mmap(-1, 64 * MIB) as block:  # the C library may have freed memory to give again
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        within = memory.held(CPU)
        assert within - before == pytest.approx(64 * MIB, rel=0.1)
        assert memory.peak(CPU) >= within - MIB  # the system counts in batches of pages
    assert memory.held(CPU) < within - 32 * MIB
    assert memory.peak(CPU) >= within - MIB
    assert 0 < memory.free(CPU) <= sys.maxsize


# ── What it is worth: the peak of real trainings, each in a process of its own.

LARGE = ["model.network=unet", "model.network.channels=[64,128,128]"]
REAL = {
    "demo": ["demo", "--minutes", "0.03"],
    "edm": ["edm", "--data", "images.npy", "--samples", "192"],
    "mlp": ["edm", "--data", "moons", "--samples", "320"],
    "micro-batch": [
        *("edm", "--data", "images.npy", "--samples", "64", *LARGE),
        *("optim.batch=32", "optim.micro_batch=16"),
    ],
}
# A child's peak begins with that of the process it is forked from, so a small one stands between.
WRAPPED = """
import json, os, subprocess, sys
child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE, stderr=2)
out = child.stdout.read().decode()
_, status, used = os.wait4(child.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_maxrss * 1024, out]))
"""
COUNTED = """
import sys
from ornstein import estimate
from ornstein.cli import run
peak = estimate.Count.peak
def told(*words):
    print("counted", peak(*words))
    return peak(*words)
estimate.Count.peak = told
sys.exit(run(sys.argv[1:]))
"""


def child(folder, *words):
    """The peak memory and the output of a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", WRAPPED, *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        check=True,
    )
    code, peak, out = json.loads(done.stdout)
    assert code == 0
    return peak, out


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the unit of ru_maxrss differs")
@pytest.mark.parametrize("words", REAL.values(), ids=REAL)
def test_the_peak_is_within_20_percent_of_a_real_training(words, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2000, 3, 32, 32), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    _, out = child(tmp_path, "-c", COUNTED, "train", *words, "--dry-run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images.npy"]
    said = re.search(r"^memory: ([\d.,]+) (MiB|GiB)", out, re.MULTILINE)
    told = float(said[1].replace(",", "")) * {"MiB": 1, "GiB": 1024}[said[2]] * MIB
    counted = int(re.search(r"^counted (\d+)", out, re.MULTILINE)[1])
    resident = float(re.search(r"\(([\d.]+) MiB before", out)[1]) * MIB
    real, _ = child(tmp_path, "-m", "ornstein", "train", *words)
    print(f"{words}: real {real / MIB:.0f}, told {told / MIB:.0f} MiB")
    assert told == pytest.approx(real, rel=0.2)
    assert resident + counted == pytest.approx(real, rel=0.2)
