"""Stopped anywhere and in any way, the same command ends bit for bit where it would have ended."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from ornstein.run import Run

SAMPLES = 12_800
WORDS = [
    *("train", "edm", "--run", "job", "--samples", str(SAMPLES), "--save-every", "0.4"),
    *("model.network=unet", "model.network.channels=[8,16]", "model.network.blocks=1"),
    *("model.network.dropout=0.1", "optim.batch=32", "optim.micro_batch=20", "optim.warmup=320"),
    "optim.averages=[{kind: half_life, samples: 2000}, {kind: power, width: 0.1}]",
]


def start(folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "ornstein", *WORDS, "--runs", str(folder)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(folder):
    process = start(folder)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return err


def interrupt(folder, lines, number):
    """Send a signal once `lines` updates have been logged; return the exit code and stderr."""
    process = start(folder)
    log = folder / "job" / "metrics.jsonl"
    while process.poll() is None:
        if log.exists() and log.read_bytes().count(b"\n") >= lines:
            process.send_signal(number)
            break
        time.sleep(0.01)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def result(folder):
    """Hashes of weights, both averages and optimizer, and the logged steps."""
    last = folder / "job" / "ckpt" / f"step-{SAMPLES // 32:08d}"
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in last.glob("*.safetensors")
    }
    assert len(hashes) == 4
    lines = (folder / "job" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, SAMPLES // 32 + 1))
    losses = [json.loads(line)["loss"] for line in lines]
    return hashes, losses


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    finish(folder)
    return result(folder)


def test_killed_three_times(uninterrupted, tmp_path):
    for lines in (5, 90, 260):
        code, _ = interrupt(tmp_path, lines, signal.SIGKILL)
        assert code == -signal.SIGKILL
    assert "resumed at" in finish(tmp_path)
    assert result(tmp_path) == uninterrupted


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop(uninterrupted, number, code, tmp_path):
    found, err = interrupt(tmp_path, 60, number)
    assert found == code, err
    assert "stopped after a save" in err
    assert "Traceback" not in err
    run = Run.open(tmp_path / "job")
    assert run.samples >= 60 * 32  # all that had been logged was saved
    finish(tmp_path)
    assert result(tmp_path) == uninterrupted


def test_two_processes_on_one_run(tmp_path):
    first = start(tmp_path)
    while not (tmp_path / "job" / "lock").exists() and first.poll() is None:
        time.sleep(0.01)
    second = start(tmp_path)
    _, err = second.communicate(timeout=120)
    assert second.returncode in (0, 5)  # 0: it came when the first had finished
    if second.returncode == 5:
        assert "is being trained by process" in err
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
