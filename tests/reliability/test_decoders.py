"""A decoder that crashes or hangs costs one image, and no file of the user's is ever touched.

The program that decodes is replaced by one that does the same, but ends, hangs, fills the memory
or writes nonsense when it meets an image with a mark behind its last byte. What must happen is
the same for each: this image is named with a reason, all others are read, in order, and nothing
is left running.

    python -m pytest tests/reliability/test_decoders.py
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ornstein.cli import run
from ornstein.data import decode, decoders, images
from ornstein.data.images import read_folder
from ornstein.data.parquet import read_parquet
from ornstein.errors import DataError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")

DATA = Path(decoders.__file__).parent
SLOW = "Decoding it took more than 1 s."

FAULTY = """
import os, signal, sys, time
from pathlib import Path
from ornstein.data import decode

def kill(number):
    os.kill(os.getpid(), number)
    time.sleep(100)

def nonsense(text):
    os.write(3, text)  # where answers go
    time.sleep(100)

def once(data):
    mark = Path(sys.argv[1]) / data[-8:].hex()
    if not mark.exists():
        mark.touch()
        kill(signal.SIGKILL)

FAULTS = {
    b"segv": lambda data: kill(signal.SIGSEGV),
    b"kill": lambda data: kill(signal.SIGKILL),
    b"abrt": lambda data: os.abort(),
    b"exit": lambda data: os._exit(0),
    b"hang": lambda data: time.sleep(100),
    b"loop": lambda data: [None for _ in iter(int, 1)],
    b"stop": lambda data: kill(signal.SIGSTOP),
    b"fill": lambda data: bytearray(3 << 30),
    b"long": lambda data: nonsense(b"\\xff" * 99),
    b"text": lambda data: nonsense(decode.FRAME.pack(5, 0) + b"{nan}"),
    b"less": lambda data: nonsense(decode.FRAME.pack(18, 0) + b'{"original":[8,8]}'),
    b"once": once,
    b"path": lambda data: None,
}
whole = decode.decode

def faulty(data, *rest):
    with open(Path(sys.argv[1]) / "log", "ab") as log:
        log.write(data[-8:] + b"\\n")
    FAULTS.get(data[-8:-4], len)(data)
    return whole(data, *rest)

def looked(file):
    data = file.read()
    file.seek(0)
    if data[-4:] == b"head":
        FAULTS.get(data[-8:-4], len)(data)
    return seen_size(file)

seen_size = decode.seen_size
decode.decode, decode.seen_size = faulty, looked
os.closerange(3, 20)
decode.main()
"""

REASONS = {
    **dict.fromkeys(("segv", "kill", "abrt", "exit", "long", "text", "less"), decoders.CRASHED),
    **dict.fromkeys(("hang", "loop", "stop"), SLOW),
    "fill": "Decoding it takes more than 2 GiB of memory.",
}


@pytest.fixture
def marks(tmp_path, monkeypatch):
    """The faulty program in place of ours, and where it leaves its marks."""
    folder = tmp_path / "marks"
    folder.mkdir()
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY, encoding="utf-8")
    monkeypatch.setattr(decoders, "COMMAND", (sys.executable, str(script), str(folder)))
    monkeypatch.setattr(decoders, "LIMIT", 1.0)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "cache"))
    yield
    assert processes() == [], "a decoder was left running"


def processes(parent=None):
    """The decoders that this process, or another one, has started and that are there still."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            above = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        ours = any(word.endswith((b"decode.py", b"faulty.py")) for word in words)
        if ours and above == (parent or os.getpid()):
            found.append(int(folder.name))
    return found


def picture(i, mark=""):
    """A PNG of its own, with a mark behind it: what follows the last chunk is not looked at."""
    x = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(x).save(stream, "PNG")
    return stream.getvalue() + f"....{mark:.<8.8}".encode()[-8:]


def fill(folder, marked, count=100):
    """`count` pictures; marked: by number, what shall happen to whoever decodes one."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        (folder / f"{i:04d}.png").write_bytes(picture(i, marked.get(i, "")))
    return folder


def check(found, marked, count=100):
    """What was read is everything but the marked ones, which are named with the reason."""
    left = [i for i in range(count) if marked.get(i, "")[:4] not in REASONS]
    assert found.files == tuple(f"{i:04d}.png" for i in left)
    assert found.bad == tuple(
        (f"{i:04d}.png", REASONS[marked[i][:4]]) for i in sorted(set(range(count)) - set(left))
    )
    for row, i in enumerate(left):
        x = np.asarray(Image.open(io.BytesIO(picture(i)))).transpose(2, 0, 1)
        np.testing.assert_array_equal(found.x[row], x)


def attempts(marks):
    """How often each marked image was begun."""
    lines = [line for line in (marks / "log").read_bytes().split(b"\n") if line[:4] != b"...."]
    return {line.decode(): lines.count(line) for line in lines if line}


@pytest.mark.parametrize("mark", REASONS)
def test_a_fault_costs_one_image(tmp_path, marks, mark):
    found = read_folder(fill(tmp_path / "data", {40: mark}), 8)
    check(found, {40: mark})
    # What crashed is tried once more, what was slow is not: it would be slow again.
    assert set(attempts(marks).values()) == {2 if REASONS[mark] == decoders.CRASHED else 1}


def test_an_innocent_image_is_not_lost(tmp_path, marks):
    """What is read when it is tried again was not to blame."""
    data = fill(tmp_path / "data", {7: "once...1", 60: "once...2"})
    check(read_folder(data, 8), {})
    assert attempts(marks) == {"once...1": 2, "once...2": 2}


def test_many_faults_at_once(tmp_path, marks, monkeypatch):
    """Neighbours, the first and the last; twice the same; the same as without those files."""
    dice = random.Random(0)
    kinds = [mark for mark in REASONS if REASONS[mark] != SLOW] + ["hang", "loop"]
    marked = dict(zip([0, 1, 99, *dice.sample(range(2, 99), 10)], kinds, strict=False))
    first = read_folder(fill(tmp_path / "data", marked), 8)
    check(first, marked)
    monkeypatch.setenv("ORNSTEIN_CACHE", str(tmp_path / "another"))
    second = read_folder(tmp_path / "data", 8)
    assert (second.bad, second.fingerprint) == (first.bad, first.fingerprint)
    for i in marked:
        (tmp_path / "data" / f"{i:04d}.png").unlink()
    third = read_folder(tmp_path / "data", 8)
    assert (third.files, third.fingerprint) == (first.files, first.fingerprint)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_two_hundred_faults(tmp_path, marks, seed):
    dice = random.Random(seed)
    kinds = [mark for mark in REASONS if REASONS[mark] != SLOW]
    marked = {i: dice.choice(kinds) for i in dice.sample(range(400), 200)}
    check(read_folder(fill(tmp_path / "data", marked, 400), 8), marked, 400)


def test_a_header_that_does_harm(tmp_path, marks):
    """Where a size is to be chosen, headers are read first; what was lost there is not decoded."""
    marked = {3: "hanghead", 4: "killhead", 50: "segvhead"}
    check(read_folder(fill(tmp_path / "data", marked)), marked)
    assert attempts(marks) == {}


def test_rows_of_parquet(tmp_path, marks):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    marked = {0: "segv", 5: "hang", 64: "kill", 99: "fill"}
    rows = [{"bytes": picture(i, marked.get(i, "")), "path": None} for i in range(100)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    found = read_parquet(tmp_path / "x.parquet", 8)
    assert found.bad == tuple((f"x.parquet row {i}", REASONS[mark]) for i, mark in marked.items())
    assert len(found.x) == 96


def test_large_rows_do_not_block(tmp_path, marks):
    """Requests and answers that are larger than a pipe."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet as pq

    rows = [{"bytes": picture(i) + bytes(3 << 20), "path": None} for i in range(12)]
    pq.write_table(pa.table({"image": rows}), tmp_path / "x.parquet", compression="none")
    assert read_parquet(tmp_path / "x.parquet", 400).x.shape == (12, 3, 400, 400)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_killed_from_outside(tmp_path):
    """As by a system that is short of memory: nothing is lost, with our own program."""
    data = fill(tmp_path / "data", {}, 2000)
    killed = []

    def progress(done, total):
        if done % 200 == 0:
            killed.extend(processes()[:1])
            os.kill(killed[-1], signal.SIGKILL)

    check(read_folder(data, 8, progress=progress), {}, 2000)
    assert len(killed) == 10


# --- starting and ending --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("/nowhere/python",), "none can be started .no such file or directory.: "),
        ((sys.executable, "-c", ""), "it ends as soon as it starts: see what "),
        ((sys.executable, "-c", "print('hello')"), "it ends as soon as it starts"),
    ],
)
def test_a_program_that_does_not_start(tmp_path, monkeypatch, command, says):
    monkeypatch.setattr(decoders, "COMMAND", command)
    with pytest.raises(DataError, match=says):
        read_folder(fill(tmp_path / "data", {}, 3))


READING = """
import sys
from pathlib import Path
from ornstein import cli
from ornstein.data import decoders
decoders.COMMAND, decoders.LIMIT = (sys.executable, *sys.argv[1:3]), float(sys.argv[3])
cli.main(["inspect", sys.argv[4]])
"""


def reading(tmp_path, limit):
    """A command that reads a folder, once its decoders have met an image that hangs."""
    data = fill(tmp_path / "data", {0: "hang", 40: "loop"})
    words = [sys.executable, "-c", READING, str(tmp_path / "faulty.py"), str(tmp_path / "marks")]
    process = subprocess.Popen(
        [*words, str(limit), str(data)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    log = tmp_path / "marks" / "log"
    deadline = time.monotonic() + 60
    while not (log.exists() and {b"hang....", b"loop...."} <= set(log.read_bytes().split(b"\n"))):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process, processes(process.pid)


def gone(numbers, within):
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        alive = [n for n in numbers if Path(f"/proc/{n}").exists()]
        if not alive:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_no_process(tmp_path, marks, number, code):
    process, workers = reading(tmp_path, 60)
    assert workers
    process.send_signal(number)
    _, err = process.communicate(timeout=10)
    assert process.returncode == code
    assert err.decode() in ("ornstein: interrupted\n", "ornstein: stopped\n")
    assert gone(workers, 1)
    assert list((tmp_path / "cache" / "images").iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_a_kill_leaves_no_process_for_long(tmp_path, marks):
    """Nobody is there to end those that hang; an alarm of theirs does, 5 s after the limit."""
    process, workers = reading(tmp_path, 0.5)
    process.kill()
    process.communicate()
    assert gone(workers, 8)


def test_a_start_is_quick_and_needs_little():
    """No torch, no numpy, nothing that unpickles; well below half a second of the processor."""
    code = (
        "import sys, runpy; sys.stdin.close(); "
        f"m = runpy.run_path({decoders.COMMAND[-1]!r}); "
        f"m['answer']({{'size': [8, 8], 'channels': 3, 'fit': 'crop'}}, {picture(0)!r}); "
        "m['answer']({'size': None}, b'GIF89a'); "
        "print(*sorted({n.split('.')[0] for n in sys.modules}), sum(__import__('os').times()[:2]))"
    )
    words = [*decoders.COMMAND[:2], "-c", code]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "numpy", "pickle", "_pickle", "multiprocessing", "ornstein"} & set(told)
    assert "PIL" in told
    assert float(told[-1]) < 0.5


@pytest.mark.parametrize("path", [decode, decoders, images], ids=lambda m: m.__name__)
def test_what_passes_between_processes_is_no_pickle(path):
    tree = ast.parse(Path(path.__file__).read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    parts = {part for name in names for part in name.split(".")}
    assert not parts & {"pickle", "multiprocessing", "ProcessPoolExecutor", "marshal", "torch"}
    assert "concurrent.futures.ProcessPoolExecutor" not in ast.unparse(tree)


def test_a_frame_that_is_cut_short_ends_the_program():
    request = json.dumps({"limit": 9, "size": None, "items": [10**6]}).encode()
    for data in (b"", b"\0\0\0", decode.FRAME.pack(9, 0) + b"{", request):
        cut = data if data != request else decode.FRAME.pack(len(request), 0) + request + b"12"
        ended = subprocess.run(decoders.COMMAND, input=cut, capture_output=True, check=False)
        assert ended.returncode == 0
        assert ended.stdout == decode.FRAME.pack(2, 0) + b"{}"
        assert ended.stderr == b""


# --- the user's files -----------------------------------------------------------------------------


def state(folder):
    """Everything that can be seen of a folder's files: kind, mode, times, owner, content."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        content = os.fsencode(path.readlink()) if path.is_symlink() else b""
        if path.is_file() and not path.is_symlink():
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
        found[str(path)] = (
            *(status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_ino),
            *(status.st_mtime_ns, status.st_ctime_ns, status.st_size, content),
        )
    return found


@pytest.fixture
def users(tmp_path):
    """A folder as a user might have it: classes, bad files, links, arrays, tables, other things."""
    folder = tmp_path / "user"
    for name in ("cats", "dogs"):
        fill(folder / name, {3: "segv", 9: "exit"}, 30)
    broken = {
        "empty.png": b"",
        "cut.png": picture(1)[:60],
        "page.jpg": b"<!doctype html><p>",
        "text.txt": b"notes",
        ".hidden.png": picture(2),
    }
    for name, content in broken.items():
        (folder / "cats" / name).write_bytes(content)
    (folder / "dogs" / "loop.png").symlink_to("loop.png")
    (folder / "dogs" / "again.png").symlink_to(folder / "cats" / "0001.png")
    (folder / "dogs" / "0004.png").chmod(0o400)
    np.save(folder / "x.npy", np.zeros((4, 2), np.float32))
    (folder / "broken.npz").write_bytes(b"PK\3\4")
    if os.geteuid():
        (folder / "cats" / "0005.png").chmod(0)
    return folder


def test_the_users_files_are_as_they_were(users, tmp_path, marks, capsys):
    """Inspected, trained on twice, scored, refused: not a byte, time or mode changes."""
    before = state(users)
    assert len(before) > 70
    runs = ["--runs", str(tmp_path / "runs"), "--run", "job"]
    tiny = ["model.network=unet", "model.network.channels=[8]", "model.network.blocks=1"]
    tiny += ["generation.steps=1", "optim.batch=2", "optim.warmup=0"]
    train = ["train", "edm", "--data", str(users), "data.size=8", *runs, *tiny]
    assert run(["inspect", str(users), "--out", str(tmp_path / "sheet.png")]) == 0
    assert run([*train, "--samples", "4"]) == 0
    assert run([*train, "--samples", "8"]) == 0
    scored = ["evaluate", "job", "--runs", str(tmp_path / "runs"), "--features", "pixels"]
    assert run([*scored, "--count", "8"]) in (0, 2)  # what it says of so few is not asked here
    assert run(["inspect", str(users / "x.npy")]) in (0, 3)
    for name in ("broken.npz", "cats/text.txt", "cats/cut.png", "cats/empty.png"):
        assert run(["inspect", str(users / name)]) == 3
    capsys.readouterr()
    assert (tmp_path / "runs" / "job" / "bad_files.tsv").exists()
    assert state(users) == before
