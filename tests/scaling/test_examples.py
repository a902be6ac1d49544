"""The examples for clusters, run in miniature: their own text, two nodes that are processes here.

`srun`, `scancel` and `scontrol` are stand-ins that do what the real ones do to processes: each task
has a session of its own, `scancel` signals all of a task, and `srun` kills its tasks if it is
terminated itself. Of Kubernetes it is the container's command that is run, once for each pod. The
quick tests put a stand-in in the place of `python` and `torchrun`, too; the slow ones train.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ornstein import Run

EXAMPLES = Path(__file__).parents[2] / "examples"
BATCH = EXAMPLES / "slurm" / "train.sbatch"
PODS = EXAMPLES / "kubernetes" / "train.yaml"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the examples are for bash")

SRUN = """
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)
tasks = [
    subprocess.Popen(
        words, start_new_session=True, env={**os.environ, "SLURM_PROCID": str(i)}
    )
    for i in range(int(os.environ["SLURM_NTASKS"]))
]
def kill(*_):
    for task in tasks:
        os.killpg(task.pid, signal.SIGKILL)
signal.signal(signal.SIGTERM, kill)
with open(os.environ["PLACE"] + "/tasks", "w") as file:
    file.write(" ".join(str(task.pid) for task in tasks))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
SCANCEL = """
import os, signal, sys
assert sys.argv[1:] == ["--signal=TERM", os.environ["SLURM_JOB_ID"]], sys.argv
for task in open(os.environ["PLACE"] + "/tasks").read().split():
    os.killpg(int(task), signal.SIGTERM)
"""
SCONTROL = """
import os, sys
if sys.argv[1:] == ["show", "hostnames", "node[1-2]"]:
    print("localhost\\nnode2")
else:
    assert sys.argv[1:] == ["requeue", os.environ["SLURM_JOB_ID"]], sys.argv
    open(os.environ["PLACE"] + "/queue", "a").write("again ")
"""
WORKER = """
import json, os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
told = {name: os.environ.get(name) for name in (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "JOB_COMPLETION_INDEX",
    "TORCH_ELASTIC_SHUTDOWN_TIMEOUT")}
number = told["RANK"] or told["JOB_COMPLETION_INDEX"]
name = os.path.join(os.environ["PLACE"], "worker-" + number)
with open(name + ".tmp", "w") as file:
    json.dump({"words": sys.argv[1:], **told}, file)
os.rename(name + ".tmp", name)
if sys.argv[-1] != "wait":
    sys.exit(int(sys.argv[-1]))
time.sleep(60)
"""


def port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


@pytest.fixture
def place(tmp_path):
    """A folder with the stand-ins of SLURM in `bin`; what is started in it ends with the test."""
    with slurm(tmp_path):
        yield tmp_path


@contextlib.contextmanager
def slurm(place):
    for name, text in (("srun", SRUN), ("scancel", SCANCEL), ("scontrol", SCONTROL)):
        stand_in(place, name, text)
    try:
        yield
    finally:
        tasks = place / "tasks"
        left = [int(task) for task in tasks.read_text().split()] if tasks.exists() else []
        for process in STARTED:
            left += [process.pid] if process.poll() is None else []
        for group in left:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        while STARTED:
            STARTED.pop().wait(30)


STARTED: list[subprocess.Popen[bytes]] = []


def stand_in(place, name, text):
    path = place / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def environment(place, train):
    """What a node has: our stand-ins first, then this Python."""
    paths = [place / "bin", Path(sys.executable).parent, os.environ["PATH"]]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TORCHELASTIC"))}
    return {
        **kept,
        "PATH": os.pathsep.join(map(str, paths)),
        "PLACE": str(place),
        "TRAIN": train,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "ORNSTEIN_DEVICE": "cpu",
    }


def submitted(place, train):
    """The job's script, as SLURM starts it on the first of two nodes with one task each."""
    given = {
        "SLURM_JOB_ID": "1234",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NTASKS": "2",
        "SLURM_LOCALID": "0",
        "SLURM_CPUS_PER_TASK": "1",
        "MASTER_PORT": port(),
    }
    return started(["bash", str(BATCH)], {**environment(place, train), **given}, place / "job.log")


def started(command, given, log):
    """A process in a session of its own."""
    with log.open("a") as file:
        STARTED.append(
            subprocess.Popen(command, env=given, stdout=file, stderr=file, start_new_session=True)
        )
    return STARTED[-1]


def pods(place, train, **changed):
    """The container's command in each pod, with what Kubernetes puts into its environment."""
    container = job()["spec"]["template"]["spec"]["containers"][0]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    given |= environment(place, train) | changed
    command = [*container["command"], *container["args"]]
    return [
        started(command, {**given, "JOB_COMPLETION_INDEX": str(i)}, place / f"pod-{i}.log")
        for i in range(2)
    ]


def job():
    _, found = yaml.safe_load_all(PODS.read_text(encoding="utf-8"))
    return found


def workers(place, count=2):
    """What the workers were told, once all of them have started."""
    until(lambda: len(list(place.glob("worker-[0-9]"))) == count, place)
    return [json.loads((place / f"worker-{i}").read_text()) for i in range(count)]


def until(condition, place, seconds=60.0):
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise AssertionError("\n".join(path.read_text() for path in place.glob("*.log")))
        time.sleep(0.05)


# --- SLURM ------------------------------------------------------------------------------------


def test_each_task_is_a_rank_and_the_job_ends_as_they_do(place):
    stand_in(place, "python", WORKER)
    for code in (0, 3):
        assert submitted(place, f"edm --data /data {code}").wait(30) == code
        told = workers(place)
        assert [t["words"] for t in told] == [
            ["-m", "ornstein", "train", "edm", "--data", "/data", str(code)]
        ] * 2
        assert [(t["RANK"], t["WORLD_SIZE"], t["LOCAL_RANK"]) for t in told] == [
            ("0", "2", "0"),
            ("1", "2", "0"),
        ]
        assert {t["MASTER_ADDR"] for t in told} == {"localhost"}
    assert not (place / "queue").exists()


def test_a_job_whose_time_is_up_saves_and_is_queued_again(place):
    stand_in(place, "python", WORKER)
    batch = submitted(place, "wait")
    workers(place)
    batch.send_signal(signal.SIGUSR1)
    assert batch.wait(30) == 143
    assert (place / "queue").read_text() == "again "


def test_a_job_that_is_cancelled_stays_away(place):
    """SLURM signals the tasks by itself then."""
    stand_in(place, "python", WORKER)
    batch = submitted(place, "wait")
    workers(place)
    for task in (place / "tasks").read_text().split():
        os.killpg(int(task), signal.SIGTERM)
    assert batch.wait(30) == 143
    assert not (place / "queue").exists()


def test_a_mistake_at_the_end_of_the_time_is_not_tried_again(place):
    """The signal comes, but the tasks end otherwise."""
    stand_in(place, "python", WORKER.replace("sys.exit(143)", "sys.exit(5)"))
    batch = submitted(place, "wait")
    workers(place)
    batch.send_signal(signal.SIGUSR1)
    assert batch.wait(30) == 5
    assert not (place / "queue").exists()


def test_the_script_asks_for_what_it_needs():
    asked = [line.split()[1] for line in BATCH.read_text().splitlines() if "#SBATCH --" in line]
    assert "--signal=B:USR1@120" in asked  # the script alone, before the end
    assert "--requeue" in asked
    wanted = dict(option.split("=", 1) for option in asked if "=" in option)
    assert wanted["--ntasks-per-node"] == wanted["--gpus-per-node"]  # a process a GPU


# --- Kubernetes -------------------------------------------------------------------------------


def test_pods_find_each_other_and_have_the_time_to_save():
    service, found = yaml.safe_load_all(PODS.read_text(encoding="utf-8"))
    spec, pod = found["spec"], found["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    name = found["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"  # the word: headless
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert given["MEET"] == f"{name}-0.{pod['subdomain']}"
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(given["NODES"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(given["GPUS"])
    assert int(given["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < pod["terminationGracePeriodSeconds"]
    assert pod["restartPolicy"] == "Never"  # which podFailurePolicy asks for
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


def test_each_pod_is_a_node(place):
    stand_in(place, "torchrun", WORKER)
    assert [pod.wait(30) for pod in pods(place, "edm --data /data 0")] == [0, 0]
    for index, told in enumerate(workers(place)):
        words = " ".join(told["words"])
        assert words == (
            f"--nnodes 2 --nproc-per-node 8 --node-rank {index} --master-addr ornstein-0.ornstein "
            "--master-port 29500 -m -- ornstein train edm --data /data 0"
        )
        assert told["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "150"


def test_the_signal_reaches_torchrun(place):
    """Kubernetes signals the first process of a container, which has to be torchrun."""
    stand_in(place, "torchrun", WORKER)
    both = pods(place, "wait")
    workers(place)
    for pod in both:
        pod.terminate()
    assert [pod.wait(30) for pod in both] == [143, 143]


# --- With real trainings ------------------------------------------------------------------------

SMALL = (
    "edm --data digits model.network=unet model.network.channels=[8,16] optim.batch=32 "
    "--samples 6400 --no-previews --save-every 1000"
)


def training(folder):
    log = folder / "job" / "metrics.jsonl"
    return log.exists() and len(log.read_bytes().splitlines()) > 10


def samples(folder):
    return Run.open(folder / "job").samples


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of two nodes' training that nothing has interrupted."""
    place = tmp_path_factory.mktemp("undisturbed")
    with slurm(place):
        code = submitted(place, f"{SMALL} --run job --runs {place / 'runs'}").wait(300)
    assert code == 0, (place / "job.log").read_text()
    return Run.open(place / "runs" / "job").weights("none")


@pytest.mark.slow
def test_a_job_under_slurm_goes_on_where_it_stopped(place, undisturbed):
    """Two nodes; the time is up; queued again, it ends with the weights of one that was not."""
    runs = place / "runs"
    batch = submitted(place, f"{SMALL} --run job --runs {runs}")
    until(lambda: training(runs), place)
    batch.send_signal(signal.SIGUSR1)
    assert batch.wait(60) == 143, (place / "job.log").read_text()
    assert (place / "queue").read_text() == "again "
    assert 0 < samples(runs) < 6400
    code = submitted(place, f"{SMALL} --run job --runs {runs}").wait(300)
    assert code == 0, (place / "job.log").read_text()
    assert samples(runs) == 6400
    assert Run.open(runs / "job").weights("none") == undisturbed


@pytest.mark.slow
def test_a_job_on_kubernetes_goes_on_where_it_stopped(place, undisturbed):
    """Two pods; one has to leave its node; both come again."""
    runs = place / "runs"
    train = f"{SMALL} --run job --runs {runs}"
    here = {"MEET": "127.0.0.1", "GPUS": "1"}
    both = pods(place, train, PORT=port(), **here)
    until(lambda: training(runs), place)
    both[1].terminate()
    codes = [pod.wait(120) for pod in both]
    assert all(codes), codes  # failed, for Kubernetes
    assert 0 < samples(runs) < 6400
    codes = [pod.wait(300) for pod in pods(place, train, PORT=port(), **here)]
    assert codes == [0, 0], "\n".join(path.read_text() for path in place.glob("pod-*.log"))
    assert samples(runs) == 6400
    assert Run.open(runs / "job").weights("none") == undisturbed
