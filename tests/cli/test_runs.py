"""`ornstein runs` beside trainings: it says what they do, and is never in their way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ornstein import fsops, log
from ornstein.cli import run
from ornstein.errors import StorageError
from ornstein.log import Progress, in_training, locked, progress, tail

POINTS = ["--data", "moons", "model.network=mlp", "model.network.width=8", "--no-previews"]


def say(capsys, runs, *words):
    capsys.readouterr()
    code = run(["runs", "--runs", str(runs), *words])
    return code, capsys.readouterr().out


def described(text, name):
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name} "))
    return line


def until(condition, seconds=60.0):
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds
        time.sleep(0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that is finished."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["train", "edm", *POINTS, "--samples", "320", "--run", "done"]
    assert run([*words, "--runs", str(runs)]) == 0
    return runs


def test_a_run_in_training_and_after_its_end(folder, capsys):
    """A process trains, and is killed."""
    words = ["train", "edm", *POINTS, "--samples", "2_000_000", "--run", "live"]
    command = [sys.executable, "-m", "ornstein", *words, "--runs", str(folder)]
    live, total = folder / "live", 2_000_000
    trainer = subprocess.Popen(
        [*command, "--save-every", "0.2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: in_training(live) and len(tail(live / "metrics.jsonl")) > 20)
        before = progress(live, total).samples
        until(lambda: progress(live, total).samples > before)
        for _ in range(1000):
            assert in_training(live)
        text = say(capsys, folder)[1]
        assert "training, " in described(text, "live")
        assert "/s  ETA " in described(text, "live")
        assert "finished" in described(text, "done")
        assert trainer.poll() is None
    finally:
        trainer.kill()
        trainer.wait(30)
    assert not in_training(live)
    line = described(say(capsys, folder)[1], "live")
    assert "stopped at " in line
    assert "just now" in line


def test_speed_is_what_the_log_says_of_the_last_half_minute(tmp_path):
    """64 samples in a quarter of a second, after a first update that took a minute."""
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(1, 9):
            seconds = 60.0 if step <= 2 else 0.25
            values = {"step": step, "samples": 64 * step, "loss": 0.5, "seconds": seconds}
            file.write(json.dumps(values) + "\n")
        file.write('{"step": 9, "samples": 57')
    found = progress(tmp_path, 1024)
    assert found.rate == pytest.approx(256)
    assert found.left == pytest.approx((1024 - 512) / 256)
    assert found.state == "stopped at 50%"
    assert (found.samples, found.loss, found.training) == (512, 0.5, False)


@pytest.mark.parametrize(
    ("samples", "loss", "training", "state"),
    [
        (0, None, False, "not trained yet"),
        (0, None, True, "training, 0%"),
        (999, 0.1, True, "training, 99%"),
        (1000, 0.1, True, "training, 100%"),
        (999, 0.1, False, "stopped at 99%"),
        (1000, 0.1, False, "finished"),
    ],
)
def test_states(samples, loss, training, state):
    assert Progress(samples, 1000, loss, training, 0.0, 0.0).state == state


def test_the_tail_of_a_long_log_is_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert tail(path) == []
    lines = [json.dumps({"step": step, "noise": "x" * (step % 97)}) for step in range(5000)]
    for torn in ("", '{"step": 5000, "no', "\n\x00\x00\x00", "[1]"):
        path.write_text("\n".join([*lines, torn]))
        found = [line["step"] for line in tail(path)]
        assert found == list(range(found[0], 5000))
        assert len(found) > 300


def test_who_looks_is_never_in_the_way_of_a_training(tmp_path):
    """Two threads look without a pause; each start of a training must succeed all the same."""
    done = threading.Event()
    seen = set()

    def look():
        while not done.is_set():
            seen.add(in_training(tmp_path))

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(200):
            with locked(tmp_path):
                pass
    finally:
        done.set()
        for looker in lookers:
            looker.join()
    assert seen == {True, False}
    with locked(tmp_path):
        assert in_training(tmp_path)
        with pytest.raises(StorageError, match="is being trained by process"), locked(tmp_path):
            raise AssertionError
    assert in_training(tmp_path) is False
    assert in_training(tmp_path / "none") is False


def test_where_locks_tell_nothing_the_log_does(tmp_path, monkeypatch):
    fsops.write(tmp_path / "metrics.jsonl", b'{"step": 1, "samples": 5, "loss": 1, "seconds": 1}\n')
    monkeypatch.setattr(log, "in_training", lambda run: None)
    assert progress(tmp_path, 10).state == "training, 50%"
    then = time.time() - 2 * log.LIVE
    os.utime(tmp_path / "metrics.jsonl", (then, then))
    assert progress(tmp_path, 10).state == "stopped at 50%"


def test_watching_where_there_is_no_terminal_is_one_look(folder, capsys):
    code, text = say(capsys, folder, "--watch")
    assert code == 0
    assert len(described(text, "done").splitlines()) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_watching_looks_again_until_ctrl_c(folder):
    import pty

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ornstein", "runs", "--runs", str(folder), "--watch"]
    watcher = subprocess.Popen(
        command, stdout=theirs, stderr=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    seen = ""
    try:
        while seen.count("finished") < 2:
            seen += os.read(ours, 4096).decode()
    finally:
        watcher.send_signal(signal.SIGINT)
        assert watcher.wait(30) == 130
        os.close(ours)
    assert "\x1b[" in seen
