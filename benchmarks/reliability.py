"""What becomes of a training that is stopped, killed or damaged, here and in other projects.

    python benchmarks/reliability.py [--peers PYTHON] [--probes ABCDEFG] [--names NAME,NAME]

One small task for all: a network with dropout on 64 points in the plane, noise added to them,
AdamW, shuffled batches of 8 (so 8 updates an epoch), one thread. Ours is the command `ornstein
train`; a peer is a script of the form that its documentation shows, with the most careful settings
that it names. PYTHON is an interpreter that has the peers, accelerate and lightning (torchdata, for
its StatefulDataLoader, if it is there); who is not there is named and left out.

Every session is a process of its own, forked from one that has imported the packages. A hook on the
optimizer, the same for all, counts updates in shared memory, paces them, asks for the stop, and
takes SHA-256 of weights and of the optimizer's state.

A  stop after update 11 (within an epoch) or 16 (at its end) of 24, resume: the same weights?
B  one bit of a checkpoint's tensors is flipped: does resuming notice?
C  killed in mid-save, by the kernel as a file grows beyond a limit; and the newest checkpoint with
   a file missing or cut short, as copying or a power cut leave it: where does resuming go on?
D  a save fails as a file grows beyond a limit (EFBIG): is the checkpoint before still used?
E  SIGTERM at random times: the exit code, and how many updates are done again
F  10 SIGKILLs at random times, with restarts by the same command: the same end?
G  seconds of a save of 200 MB, hashed and flushed, against `torch.save` of the same tensors
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

BATCH, POINTS = 8, 64
EPOCH = POINTS // BATCH
VARIANTS = {
    "ornstein": ("", "micro-batches"),
    "accelerate": ("plain", "skip by hand", "seedable", "seedable, set_epoch", "stateful"),
    "lightning": ("", "stateful"),
}
CAREFUL = {
    "ornstein": ("",),
    "accelerate": ("seedable, set_epoch", "one folder"),
    "lightning": ("save_on_exception",),
}


class Job(NamedTuple):
    """A session: what is trained, how far, and how it is disturbed."""

    folder: Path
    seed: int = 0
    variant: str = ""
    total: int = 24  # updates
    every: int = 8  # updates between checkpoints
    pace: float = 0.0  # seconds that an update takes at least
    stop: int = 0  # save after this update and go no further; 0: to the end
    limit: int = -1  # largest file, in bytes, from that update on; -1: none
    deadly: bool = False  # whether reaching it kills, or only fails
    peek: bool = False  # leave before the first update


class Ended(NamedTuple):
    """How a session ended. start, done: the last update before it and in it; -1: none.
    loaded, last: SHA-256 of weights and optimizer before the first update, of weights at last."""

    code: int
    seconds: float
    start: int
    done: int
    loaded: bytes
    last: bytes
    output: str


def digest(optimizer: Any, whole: bool) -> bytes:
    """SHA-256 of the weights that an optimizer updates, and of its state too if `whole`."""
    found = hashlib.sha256()
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        found.update(p.detach().numpy().tobytes())
        for _, value in sorted(optimizer.state.get(p, {}).items()) if whole else ():
            found.update(value.numpy().tobytes())
    return found.digest()


def watch(job: Job, page: mmap.mmap, name: str) -> None:
    """Put the hooks into torch that count, pace, stop and hash."""
    from torch.optim import AdamW
    from torch.optim import optimizer as hooks

    page[:] = struct.pack("qq", -1, -1) + bytes(64)

    def at(optimizer: Any) -> int:
        state = optimizer.state.get(optimizer.param_groups[0]["params"][0], {})
        return int(state["step"]) if state else 0

    def before(optimizer: Any, *_: Any) -> None:
        if type(optimizer) is not AdamW:  # a wrapper of it
            return
        if struct.unpack("q", page[:8])[0] < 0:
            page[:8], page[16:48] = struct.pack("q", at(optimizer)), digest(optimizer, whole=True)
            if job.peek:
                os._exit(0)
        if job.stop and at(optimizer) >= job.stop:  # a peer has saved after that update
            os._exit(0)
        time.sleep(job.pace)

    def after(optimizer: Any, *_: Any) -> None:
        if type(optimizer) is not AdamW:
            return
        page[8:16] = struct.pack("q", at(optimizer))
        if at(optimizer) == job.total:
            page[48:80] = digest(optimizer, whole=False)
        if at(optimizer) == job.stop:
            if job.limit >= 0:
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL if job.deadly else signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (job.limit, job.limit))
            if name == "ornstein":  # which saves when it is asked to stop
                os.kill(os.getpid(), signal.SIGTERM)

    hooks.register_optimizer_step_pre_hook(before)
    hooks.register_optimizer_step_post_hook(after)


def ours(job: Job) -> None:
    from ornstein.cli import main

    words = ["train", "edm", "model.network=mlp", "model.network.dropout=0.1", "optim.warmup=0"]
    words += ["model.network.width=32", "model.network.depth=2", f"optim.batch={BATCH}"]
    words += ["--data", "moons", f"data.count={POINTS}", "data.held_out=0", "--seed", str(job.seed)]
    words += ["optim.micro_batch=4"] if job.variant == "micro-batches" else []
    words += ["--samples", str(BATCH * job.total), "--runs", str(job.folder), "--run", "run"]
    main([*words, "--save-every", str(job.every * job.pace or 1e9), "--no-previews"])


def task(loader: str = "torch.utils.data.DataLoader") -> tuple[Any, Any]:
    """A peer's model, which returns the loss of a batch, and its data."""
    import torch
    from torch import nn

    class Model(nn.Sequential):
        def forward(self, x: Any) -> Any:
            return (super().forward(x + torch.randn_like(x)) - x).square().mean()

    layers = (nn.Linear(2, 64), nn.SiLU(), nn.Dropout(0.1), nn.Linear(64, 64), nn.SiLU())
    points = torch.randn(POINTS, 2, generator=torch.Generator().manual_seed(0))
    module, kind = loader.rsplit(".", 1)
    build = getattr(importlib.import_module(module), kind)
    data = build(torch.utils.data.TensorDataset(points), batch_size=BATCH, shuffle=True)
    return Model(*layers, nn.Dropout(0.1), nn.Linear(64, 2)), data


class Progress:
    """A count of updates that accelerate stores with the rest."""

    step = 0

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.step = state["step"]


def accelerate(job: Job) -> None:
    """The loop of its example of checkpoints, in folders that it names, finds and removes."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, set_seed

    set_seed(job.seed)
    stateful, numbered = job.variant == "stateful", job.variant != "one folder"
    accelerator = Accelerator(
        cpu=True,
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler="seedable" in job.variant, use_stateful_dataloader=stateful
        ),
        project_config=ProjectConfiguration(
            project_dir=str(job.folder), automatic_checkpoint_naming=numbered, total_limit=2
        ),
    )
    model, loader = task()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    place = None if numbered else str(job.folder / "checkpoints" / "0")
    saved = [int(path.name.rpartition("_")[2]) for path in job.folder.glob("checkpoints/*")]
    if saved:
        accelerator.load_state(place)
        accelerator.project_configuration.iteration = max(saved) + 1
    first, skip = divmod(progress.step, EPOCH)
    for epoch in range(first, job.total // EPOCH):
        if "set_epoch" in job.variant:
            loader.set_epoch(epoch)
        batches = loader
        if epoch == first and not stateful and job.variant != "skip by hand":
            batches = accelerator.skip_first_batches(loader, skip)
        for i, (x,) in enumerate(batches):
            if epoch == first and job.variant == "skip by hand" and i < skip:
                continue
            accelerator.backward(model(x))
            optimizer.step()
            optimizer.zero_grad()
            progress.step += 1
            if progress.step % job.every == 0:
                accelerator.save_state(place)


def lightning(job: Job) -> None:
    """A Trainer with ModelCheckpoint that keeps all of them, resumed from "last"."""
    import lightning
    import torch
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Module(lightning.LightningModule):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _index: int) -> Any:
            return self.model(batch[0])

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    lightning.seed_everything(job.seed, workers=True, verbose=False)
    stateful = ["torchdata.stateful_dataloader.StatefulDataLoader"] * (job.variant == "stateful")
    model, loader = task(*stateful)
    checkpoints = ModelCheckpoint(
        dirpath=job.folder, filename="{step}", every_n_train_steps=job.every, save_top_k=-1,
        save_last=True, save_on_exception=job.variant == "save_on_exception",
    )  # fmt: skip
    trainer = lightning.Trainer(
        max_steps=job.total, max_epochs=-1, accelerator="cpu", devices=1, logger=False,
        default_root_dir=job.folder, callbacks=[checkpoints], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(model), loader, ckpt_path="last")


CONTENDERS = {"ornstein": ours, "accelerate": accelerate, "lightning": lightning}


def session(name: str, job: Job, after: float = 0.0, number: int = signal.SIGKILL) -> Ended:
    """Run a job in a fork of this process; after so many seconds, if any, send it a signal."""
    page, (reader, writer) = mmap.mmap(-1, 80), os.pipe()  # a file would fall under the limit
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(name, job, page, writer)
    os.close(writer)
    deadline, found, status = started + (after or 60.0), 0, 0
    while not found:
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found and time.monotonic() > deadline:
            os.kill(pid, number if after else signal.SIGKILL)
            after, deadline = 0.0, time.monotonic() + 60.0
        time.sleep(0.0005)
    code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - started
    with os.fdopen(reader, errors="replace") as output:
        text = output.read()
    return Ended(code, seconds, *struct.unpack("qq", page[:16]), page[16:48], page[48:], text)


def _child(name: str, job: Job, page: mmap.mmap, output: int) -> NoReturn:
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
        watch(job, page, name)
        CONTENDERS[name](job)
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(bool(leaving.code))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)


class Bench:
    """The probes of one contender, each of which fills a cell of the table."""

    def __init__(self, name: str, folder: Path, asked: argparse.Namespace) -> None:
        self.name, self.folder, self.asked, self.places = name, folder, asked, 0

    def fresh(self, like: Job | None = None) -> Path:
        """A new folder, a copy of a job's if one is given."""
        self.places += 1
        place = self.folder / str(self.places)
        if like is None:
            place.mkdir()
        else:
            shutil.copytree(like.folder, place)
        return place

    def sound(self, job: Job) -> Ended:
        """A session that is not disturbed, and must not fail."""
        ended = session(self.name, job)
        if ended.code not in (0, 143) or ended.start < 0:
            raise RuntimeError(f"{self.name}, {job}: {ended.code}\n{ended.output[-2000:]}")
        return ended

    def trained(self, variant: str) -> tuple[Job, dict[bytes, str]]:
        """A training with checkpoints at updates 8 and 16; what resuming from each would load."""
        job, meaning = Job(self.fresh(), variant=variant, total=32), {}
        for stop, name in ((0, "start afresh"), (8, "use the one before"), (16, "use the newest")):
            if stop:
                self.sound(job._replace(stop=stop))
            meaning[self.sound(job._replace(folder=self.fresh(job), peek=True)).loaded] = name
        return job, meaning

    def newest(self, folder: Path) -> list[Path]:
        """The newest checkpoint's files in the order in which they were written."""
        if self.name == "lightning":
            return [folder / "last.ckpt"]
        places = folder.glob({"ornstein": "run/ckpt/step-*"}.get(self.name, "checkpoints/*"))
        place = max(places, key=lambda path: int(re.sub(r"\D", "", path.name)))
        return sorted(place.iterdir(), key=lambda path: path.stat().st_mtime_ns)

    def outcome(self, job: Job, meaning: dict[bytes, str]) -> str:
        """What resuming does with what is there."""
        seen = session(self.name, job._replace(peek=True))
        shutil.rmtree(job.folder)
        if seen.start < 0:
            return "stop with an error" if seen.code > 0 else "die or hang"
        return meaning.get(seen.loaded, "**load other values, silently**")

    def stopped(self, stop: int) -> str:
        cells = []
        for variant in VARIANTS[self.name]:
            if variant == "stateful" and importlib.util.find_spec("torchdata") is None:
                continue
            same = 0
            for seed in range(self.asked.seeds):
                job = Job(self.fresh(), seed, variant, every=stop)
                whole = self.sound(job)
                if self.sound(job._replace(folder=self.fresh())).last != whole.last:
                    raise RuntimeError(f"{self.name}, {variant}: two whole trainings differ")
                job = job._replace(folder=self.fresh())
                self.sound(job._replace(stop=stop))
                same += self.sound(job).last == whole.last
            cells.append(f"{variant}: " * (variant != "") + f"{same} of {self.asked.seeds}")
        return "; ".join(cells)

    def flipped(self) -> str:
        job, meaning = self.trained(CAREFUL[self.name][0])
        randomly, seen = random.Random(0), Counter[str]()
        for _ in range(self.asked.flips):
            damaged = job._replace(folder=self.fresh(job))
            weighty = (f for f in self.newest(damaged.folder) if f.stat().st_size > 10_000)
            path = randomly.choice(sorted(f for f in weighty if "random" not in f.name))
            content = bytearray(path.read_bytes())
            content[randomly.randrange(len(content))] ^= 1 << randomly.randrange(8)
            path.write_bytes(content)
            seen[self.outcome(damaged, meaning)] += 1
        return _told(seen)

    def limited(self, deadly: bool) -> str:
        """Save at update 24 while files may have only so many bytes, then resume."""
        cells = []
        for variant in CAREFUL[self.name]:
            job, meaning = self.trained(variant)
            meaning = {key: _AFTER.get(what, what) for key, what in meaning.items()}
            largest = max(path.stat().st_size for path in self.newest(job.folder))
            seen, codes, count = Counter[str](), set(), self.asked.limits
            for i in range(count):
                torn = job._replace(folder=self.fresh(job))
                limit = int(largest * (i + 0.5) / count)
                saving = torn._replace(stop=24, limit=limit, deadly=deadly)
                codes.add(session(self.name, saving).code)
                seen[self.outcome(torn, meaning)] += 1
            label = "over the same folder: " if variant == "one folder" else ""
            ends = "" if deadly else f"; exit code {', '.join(map(str, sorted(codes)))}"
            cells.append(label + _told(seen) + ends)
        return "; ".join(cells)

    def torn(self) -> str:
        job, meaning = self.trained(CAREFUL[self.name][0])
        seen = Counter[str]()
        for i in range(len(self.newest(job.folder))):
            for kept in (-1, 0.0, 0.25, 0.5, 0.75, 0.99):
                torn = job._replace(folder=self.fresh(job))
                path = self.newest(torn.folder)[i]
                if kept < 0:
                    path.unlink()
                else:
                    os.truncate(path, int(kept * path.stat().st_size))
                seen[self.outcome(torn, meaning)] += 1
        return _told(seen)

    def terminated(self) -> str:
        cells, randomly = [], random.Random(1)
        careful = CAREFUL[self.name][0]
        for variant in ("", careful) if self.name == "lightning" else (careful,):
            codes, lost, stuck = Counter[int](), list[int](), 0
            job = Job(self.fresh(), variant=variant, total=96, pace=0.01)
            seconds = self.sound(job).seconds
            while codes.total() < 10:
                job = job._replace(folder=self.fresh())
                when = seconds - randomly.uniform(0.1, 0.9) * job.total * job.pace
                ended = session(self.name, job, after=when, number=signal.SIGTERM)
                if not 0 < ended.done < job.total:
                    continue
                codes[ended.code] += 1
                resumed = session(self.name, job._replace(peek=True))
                if resumed.code:
                    stuck += 1
                else:
                    lost.append(ended.done - resumed.start)
            label = f"{variant}: " if variant and self.name == "lightning" else ""
            told = f"{statistics.mean(lost):.1f} updates lost, at most {max(lost)}"
            ends = f"; {stuck} of 10 cannot go on" if stuck else ""
            cells.append(f"{label}exit code {', '.join(map(str, sorted(codes)))}, {told}{ends}")
        return "; ".join(cells)

    def killed(self) -> str:
        kills, results, randomly = 0, Counter[str](), random.Random(2)
        for seed in range(2 * self.asked.seeds):
            job = Job(self.fresh(), seed, CAREFUL[self.name][0], total=240, pace=0.01)
            start = self.sound(job._replace(peek=True)).seconds
            whole = self.sound(job)
            job = job._replace(folder=self.fresh())
            # Each of ten sessions may do up to 16 % of the updates, or not even start with them.
            latest = start + 0.16 * (whole.seconds - start)
            for left in reversed(range(11)):
                after = randomly.uniform(0.7 * start, latest) if left else 0.0
                ended = session(self.name, job, after=after)
                kills += ended.code == -signal.SIGKILL
                if ended.code != -signal.SIGKILL:
                    break
            if ended.code:
                print(f"{self.name} is stuck: {ended.output.strip()[-300:]}", file=sys.stderr)
                results["cannot go on"] += 1
            else:
                same = ended.last == whole.last
                results["end with the same weights" if same else "end with other weights"] += 1
        return f"{kills} kills, {2 * self.asked.seeds} trainings: {_told(results)}"


_AFTER = {"use the newest": "use the one before", "use the one before": "use an older one"}


def _told(seen: Counter[str]) -> str:
    return ", ".join(f"{n} {what}" for what, n in seen.most_common())


def saving(folder: Path) -> str:
    """Seconds of saving 5·10⁷ numbers: weights and AdamW's two moments of them."""
    import torch
    from torch import nn

    from ornstein import checkpoint
    from ornstein.optim import Optim
    from ornstein.training import Learner, TrainState

    net = nn.Sequential(*(nn.Linear(1290, 1290) for _ in range(10)))
    state = TrainState(Learner(net, lambda *_: None), Optim(samples=1, averages=()))
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    state.optimizer.step()
    taken: dict[str, list[float]] = {"ours": [], "torch.save": [], "torch.save and fsync": []}
    for i in range(6):  # the first is not counted
        for how, found in taken.items():
            path = folder / f"{i}.pt"
            started = time.perf_counter()
            if how == "ours":
                state.step = i + 1
                checkpoint.save(folder, state, {"metrics_bytes": 0})
            else:
                tensors = {"model": net.state_dict(), "optimizer": state.optimizer.state_dict()}
                torch.save(tensors, path)
                if "fsync" in how:
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
            found.append(time.perf_counter() - started)
            path.unlink(missing_ok=True)
    middle = {how: statistics.median(found[1:]) for how, found in taken.items()}
    told = ", ".join(f"{how} {seconds:.2f} s" for how, seconds in middle.items())
    more = (middle["ours"] - middle["torch.save"]) / 60
    return f"{told}; at every 60 s {middle['ours'] / 60:.2%} of a run, {more:.2%} more than plain"


PROBES: dict[str, tuple[str, Callable[[Bench], str]]] = {
    "A1": ("stopped within an epoch: weights as uninterrupted", lambda b: b.stopped(11)),
    "A2": ("stopped at the end of an epoch: weights as uninterrupted", lambda b: b.stopped(16)),
    "B": ("one bit of weights or optimizer flipped", Bench.flipped),
    "C1": ("killed in mid-save", lambda b: b.limited(deadly=True)),
    "C2": ("a file of the newest checkpoint missing or cut short", Bench.torn),
    "D": ("a save fails since files may not grow", lambda b: b.limited(deadly=False)),
    "E": ("SIGTERM", Bench.terminated),
    "F": ("10 SIGKILLs, each followed by a restart", Bench.killed),
    "G": ("a save of 200 MB", lambda b: saving(b.fresh()) if b.name == "ornstein" else ""),
}


def one(name: str, asked: argparse.Namespace) -> dict[str, str]:
    """The cells of a contender, by row."""
    import torch
    import torch._dynamo  # an optimizer imports it, which takes a second

    torch.set_num_threads(1)
    if name != "ornstein":
        importlib.import_module("peers").allow_torchvision()
    needed = {"ornstein": ("ornstein.cli.carry", "ornstein.cli.train", "ornstein.run")}
    for module in needed.get(name, (name, f"{name}.utils" if name == "accelerate" else name)):
        importlib.import_module(module)
    found = {"version": importlib.metadata.version(name)} if name != "ornstein" else {}
    with tempfile.TemporaryDirectory() as place:
        os.environ["ORNSTEIN_CACHE"], os.environ["ORNSTEIN_DEVICE"] = place, "cpu"
        bench = Bench(name, Path(place), asked)
        for row in (row for row in PROBES if row[0] in asked.probes):
            what, probe = PROBES[row]
            found[row] = probe(bench)
            print(f"{name}, {what}: {found[row]}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--probes", default="ABCDEFG")
    parser.add_argument("--names", default=",".join(VARIANTS))
    for option, count in (("--seeds", 3), ("--flips", 200), ("--limits", 12)):
        parser.add_argument(option, type=int, default=count)
    parser.add_argument("--one", default="")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one, asked)))
        return
    found: dict[str, dict[str, str]] = {}
    for name in asked.names.split(","):
        python = sys.executable if name == "ornstein" else asked.peers
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [python, __file__, *sys.argv[1:], "--one", name]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            print(f"{name} left out: it ended with {done.returncode}", file=sys.stderr)
            continue
        found[name] = json.loads(done.stdout.splitlines()[-1])
    heads = [f"{name} {cells.pop('version', '')}".strip() for name, cells in found.items()]
    print("| |", " | ".join(heads), "|")
    print("|---" * (len(heads) + 1) + "|")
    for row, (what, _) in PROBES.items():
        if row[0] in asked.probes:
            print(f"| {what} |", " | ".join(c.get(row) or "–" for c in found.values()), "|")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
