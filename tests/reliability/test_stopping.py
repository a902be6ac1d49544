"""Asked to stop, in any way and at any time: the right exit code, a sentence, nothing lost.

A signal during training lets the update in progress finish, saves, and leaves with 128 + its
number. A second one stops at once, even within a save: what the first is saving may be lost then,
but not the checkpoint before it. The signals come at random times, and at chosen operations of a
save; afterwards the same command must end bit for bit as if it had never been stopped. Beside
that: clocks that jump, and names that trip programs up.

    python -m pytest tests/reliability/test_stopping.py -s
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from ornstein import checkpoint, log
from ornstein import run as run_module
from ornstein.run import Run
from tests.reliability.test_kills import result
from tests.reliability.test_operations import points
from tests.reliability.zygote import Zygote

HUP, INT, KILL, TERM = signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM
WORDS = ["train", "edm", "--data", "moons", "--run", "job", "--samples", "800", "optim.batch=16"]
WORDS += ["model.network=mlp", "model.network.width=8", "model.network.depth=1"]
WORDS += ["generation.steps=2", "--save-every"]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    with Zygote(tmp_path_factory.mktemp("zygote")) as process:
        yield process


def command(zygote, folder, *, every=0.05, signals=(), words=WORDS, runs="", **more):
    runs = folder / (runs or "runs")
    arguments = [*words, str(every), "--runs", str(runs)]
    named = {"arguments": arguments, "folder": folder, "refusals": [], "signals": signals}
    return zygote("command", **named, **more)


@pytest.fixture(scope="module")
def undisturbed(zygote, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = command(zygote, folder)
    assert ended.code == 0, ended.output
    return result(folder / "runs"), ended.seconds


def said(ended):
    """What stands on standard error, but for what a training says anyway."""
    assert "Traceback" not in ended.output, ended.output
    assert "bug" not in ended.output, ended.output
    return [line for line in ended.output.splitlines() if line]


@pytest.mark.parametrize("number", [INT, TERM, HUP], ids=lambda n: n.name)
@pytest.mark.parametrize("times", [1, 2, 4])
def test_signals_at_random_times(number, times, zygote, undisturbed, tmp_path):
    whole, seconds = undisturbed
    randomly, codes = random.Random(f"{number} {times}"), Counter()
    for _ in range(4):
        after = randomly.uniform(0, 0.8 * seconds)
        ended = command(zygote, tmp_path, after=after, numbers=(number,) * times)
        codes[ended.code] += 1
        lines = said(ended)
        if ended.code == -number:  # it has only just begun, and nothing has been said or done
            assert number == HUP or not lines, ended
        else:
            assert ended.code in (0, 128 + number), ended
        if ended.code == 128 + number:
            assert lines[-1].startswith(("stopped after a save", "ornstein: ")), ended.output
    print(f"\n{number.name} × {times}: {dict(codes)}")
    assert command(zygote, tmp_path).code == 0
    assert result(tmp_path / "runs") == whole


@pytest.mark.parametrize("number", [INT, TERM], ids=lambda n: n.name)
def test_once_within_a_save(number, zygote, undisturbed, tmp_path):
    """The save is finished, and what was done since is saved too."""
    at = ["fsync", "optimizer", 2, [number]]
    ended = command(zygote, tmp_path, every=1e-9, signals=[at])
    assert ended.code == 128 + number, ended.output
    assert said(ended)[-1].startswith("stopped after a save; the same command goes on")
    steps = Run.open(tmp_path / "runs" / "job").samples // 16
    lines = (tmp_path / "runs" / "job" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == steps == 2
    assert command(zygote, tmp_path).code == 0
    assert result(tmp_path / "runs") == undisturbed[0]


@pytest.mark.parametrize("number", [INT, TERM], ids=lambda n: n.name)
@pytest.mark.parametrize(
    ("kind", "part", "n"),
    [
        ("create", "model", 3),
        ("write", "optimizer", 3),
        ("fsync", "manifest", 3),
        ("rename", "ckpt/.tmp-00000003", 1),
        ("rename", "ckpt/step-00000001", 1),
        ("unlink", ".tmp-step-00000001", 2),
    ],
)
def test_twice_within_a_save(kind, part, n, number, zygote, undisturbed, tmp_path):
    """It is not waited for, and not torn: there is the old checkpoint or the new one."""
    at = [kind, part, n, [number, number]]
    ended = command(zygote, tmp_path, every=1e-9, signals=[at])
    assert ended.code == 128 + number, ended.output
    word = "interrupted" if number == INT else "stopped"
    assert said(ended)[-1] == f"ornstein: {word}"
    folder = tmp_path / "runs" / "job" / "ckpt"
    found = checkpoint.latest(folder)
    assert found.state["step"] == (3 if "step-0" in part else 2)
    assert checkpoint.repair(folder) == ()
    assert command(zygote, tmp_path).code == 0
    assert result(tmp_path / "runs") == undisturbed[0]


def test_the_command_itself(tmp_path):
    """Not a fork of a test's, but `python -m ornstein`, stopped once and then let go."""
    words = [*WORDS[:7], "3200", *WORDS[8:], "0.1", "--runs", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ORNSTEIN_CACHE": str(tmp_path / "cache")}

    def start():
        return subprocess.Popen(
            [sys.executable, "-m", "ornstein", *words],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    process, log = start(), tmp_path / "job" / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.01)
    process.send_signal(TERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    assert "stopped after a save; the same command goes on" in err
    logged = log.read_text().splitlines()
    assert Run.open(tmp_path / "job").samples == 16 * len(logged)  # all that was done was saved
    _, err = start().communicate(timeout=100)
    assert "resumed at" in err
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, 201))


FINALIZER = """
import contextlib, signal, time
from ornstein import cli
from ornstein.cli import carry

class Held:
    def __del__(self):
        signal.raise_signal(signal.{name})

def command(*arguments, **options):
    with {around}:
        for _ in range({times}):
            Held()
        time.sleep(60)

cli.build = lambda: command
cli.main([])
"""


@pytest.mark.parametrize("number", [INT, TERM], ids=lambda n: n.name)
@pytest.mark.parametrize(
    ("around", "times"), [("contextlib.nullcontext()", 1), ("carry._stopping()", 2)]
)
def test_within_a_finalizer(around, times, number):
    """Where Python would print the exception and go on, the command ends all the same."""
    code = FINALIZER.format(name=number.name, around=around, times=times)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert ended.returncode == 128 + number, ended.stderr
    assert ended.stderr == f"ornstein: {'interrupted' if number == INT else 'stopped'}\n"


# --- clocks ---------------------------------------------------------------------------------------


class Clock:
    """The module `time`, on a machine whose clocks jump by so many seconds at each look."""

    def __init__(self, jump):
        self.jump, self.now = jump, 1e6

    def monotonic(self):
        self.now += self.jump
        return self.now

    def time(self):
        return self.monotonic()

    def strftime(self, form):
        return "19700101-000000"


@pytest.mark.parametrize("jump", [-3600.0, 0.0, 3600.0])
def test_a_clock_that_jumps_changes_nothing(jump, tmp_path, monkeypatch):
    """Back, stopped, or far ahead at every look: it decides when to save, and no more."""
    straight = Run.create(points(), tmp_path, "straight")
    for _ in straight.train():
        pass
    for module in (run_module, log):
        monkeypatch.setattr(module, "time", Clock(jump))
    run = Run.create(points(), tmp_path, "job")
    for event in run.train():
        if event.step == 3:
            break
    run = Run.open(run.path)
    assert run.samples == 60
    assert [event.step for event in run.train()] == [4, 5, 6]
    assert run.weights("none") == straight.weights("none")
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_name_made_of_the_time_never_takes_anothers_place(tmp_path, monkeypatch):
    """Twice at the same time, as after the clock was set back: both old logs are kept."""
    monkeypatch.setattr(run_module, "time", Clock(0.0))
    run = Run.create(points(), tmp_path, "job")
    for _ in range(3):
        for _ in run.train():
            pass
        (run.path / "ckpt").rename(tmp_path / f"ckpt-{time.monotonic_ns()}")
    for _ in run.train():
        pass
    logs = list(run.path.glob("metrics-*.jsonl"))
    assert len(logs) == 3
    assert all(len(path.read_text().splitlines()) == 6 for path in logs)


# --- names ----------------------------------------------------------------------------------------

NAMES = [
    "with spaces  and 'quotes' \"too\"",
    "手写数字 扩散模型",
    "🦆 größer √2",
    "-rf",
    "%s {0} $HOME [a-z]* #1;&",
    "名" * 78,  # 234 bytes: hidden names that are made of it just fit
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:12])
def test_names_that_trip_programs_up(name, zygote, undisturbed, tmp_path):
    """As the name of a run and of the folder around it: killed, stopped, resumed and sampled."""
    words = [*WORDS[:4], f"--run={name}", *WORDS[6:]]
    runs = name[:60]
    for number, code in ((KILL, -9), (TERM, 143)):  # each in its second save
        at = ["fsync", "optimizer", 1, [number]]
        ended = command(zygote, tmp_path, every=1e-9, words=words, runs=runs, signals=[at])
        assert ended.code == code, ended.output
    assert command(zygote, tmp_path, words=words, runs=runs).code == 0
    path = tmp_path / runs / name
    path.rename(path.with_name("job"))
    assert result(path.parent) == undisturbed[0]
    path.with_name("job").rename(path)
    out = tmp_path / "drawn" / name
    arguments = ["sample", str(path), "--number", "4", "--out", str(out)]
    words = {"arguments": arguments, "folder": tmp_path, "refusals": [], "signals": []}
    ended = zygote("command", **words)
    assert ended.code == 0, ended.output
    assert list(out.iterdir())


def test_a_name_that_no_folder_can_have(zygote, tmp_path):
    words = [*WORDS[:4], "--run", "名" * 80, *WORDS[6:]]  # 240 bytes
    ended = command(zygote, tmp_path, words=words)
    assert ended.code == 2
    (line,) = said(ended)
    assert "is too long for a folder; write a shorter --run" in line
    assert not (tmp_path / "runs").exists()
