"""No file that is read can run code: what the source may not do, and what a process does not do.

The source is scanned for modules and calls that unpickle, evaluate or unpack. Then payloads that
would leave a mark if anything unpickled them are put in the place of every file that is read:
checkpoints, recipes, records, data of all kinds, features, weights of the FID network. A hook of
the interpreter reports every class that any unpickler looks up (`pickle.find_class`); it must stay
silent, also while a whole run is trained, resumed, sampled and scored.

    python -m pytest tests/reliability/test_no_code.py
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.reliability.zygote import Zygote

SOURCE = Path(__file__).parents[2] / "src" / "ornstein"
MODULES = {"pickle", "dill", "joblib", "marshal", "shelve", "cloudpickle", "_pickle"}
CALLS = {
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "__import__"),
}


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(text):
    """What a file does that could run code from a file: module, call or flag, with its line."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (f"{node.lineno}: {n}" for n in names if n.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield f"{node.lineno}: {node.module}"
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            flags = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            safe = flags.get("allow_pickle") is False
            reads = name in ("np.load", "numpy.load") or name.endswith("format.read_array")
            if name in CALLS or name.endswith(".extractall") or (reads and not safe):
                yield f"{node.lineno}: {name}"
            for flag in ("shell", "trust_remote_code", "allow_pickle"):
                if flags.get(flag) is True:
                    yield f"{node.lineno}: {flag}=True"
            if flags.get("weights_only") is False:
                yield f"{node.lineno}: weights_only=False"


def test_no_line_of_the_source_could():
    found = [
        f"{path.relative_to(SOURCE)}:{offence}"
        for path in sorted(SOURCE.rglob("*.py"))
        for offence in offences(path.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(f, weights_only=True)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f)",
        "eval(f)",
        "run(f, shell=True)",
        "tar.extractall()",
    ],
)
def test_the_scan_sees_what_it_looks_for(text):
    assert list(offences(text))


# --- payloads -------------------------------------------------------------------------------------


class Payload:
    """An object that, when it is unpickled, makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def payloads(mark):
    """Contents of files that run code in whoever unpickles them, by what they look like."""
    thing = Payload(mark)
    objects = np.array([thing, thing], dtype=object)
    npy, npz, archive, torch_file = io.BytesIO(), io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(npy, objects, allow_pickle=True)
    np.savez(npz, x=np.zeros((4, 2), np.float32), y=objects)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("x.npy", npy.getvalue())
    torch.save({"weight": thing}, torch_file)
    header = json.dumps({"__metadata__": {"ornstein": pickle.dumps(thing).hex()}}).encode()
    return {
        "pickle, newest": pickle.dumps(thing),
        "pickle, protocol 0": pickle.dumps(thing, 0),
        "torch.save": torch_file.getvalue(),
        "npy of objects": npy.getvalue(),
        "npz, labels of objects": npz.getvalue(),
        "npz, samples of objects": archive.getvalue(),
        "safetensors with a pickle in its header": len(header).to_bytes(8, "little") + header,
        "YAML that names an object": (
            b"name: edm\nseed: !!python/object/apply:pathlib.Path.touch\n"
            b"- !!python/object/apply:pathlib.PosixPath ['" + str(mark).encode() + b"']\n"
        ),
    }


def test_the_payloads_work(tmp_path):
    """Each of them makes its mark in a reader that unpickles; else they would show nothing."""
    mark = tmp_path / "mark"
    made = payloads(mark)

    def readers():
        yield lambda: pickle.loads(made["pickle, newest"])
        yield lambda: pickle.loads(made["pickle, protocol 0"])
        yield lambda: torch.load(io.BytesIO(made["torch.save"]), weights_only=False)
        yield lambda: np.load(io.BytesIO(made["npy of objects"]), allow_pickle=True)
        yield lambda: np.load(io.BytesIO(made["npz, labels of objects"]), allow_pickle=True)["y"]
        yield lambda: np.load(io.BytesIO(made["npz, samples of objects"]), allow_pickle=True)["x"]

    for read in readers():
        read()
        assert mark.exists()
        mark.unlink()


@pytest.fixture(scope="module")
def zygote(tmp_path_factory):
    with Zygote(tmp_path_factory.mktemp("zygote")) as process:
        yield process


def test_a_whole_run_unpickles_nothing(zygote, tmp_path):
    """Made, trained, opened, resumed, sampled and scored, and its likelihood; data of all kinds."""
    ended = zygote("living", folder=tmp_path)
    assert ended.code == 0, ended.output
    assert not ended.output.strip()


def test_no_payload_runs_in_any_loader(zygote, tmp_path):
    """Each payload in the place of each file; whatever is said of it, nothing is run."""
    mark = tmp_path / "mark"
    (tmp_path / "payloads").mkdir()
    for i, content in enumerate(payloads(mark).values()):
        (tmp_path / "payloads" / str(i)).write_bytes(content)
    ended = zygote("poisoned", folder=tmp_path)
    assert ended.code == 0, ended.output
    loads = json.loads(ended.output.splitlines()[-1])
    assert loads["classes"] == [], "an unpickler looked for a class"
    assert not mark.exists()
    assert loads["tried"] > 100
    assert loads["opened"] == [], "a payload was taken for what it is not"
    assert loads["wrong"] == [], "an error that is no sentence for the user"
    print(f"\n{loads['tried']} loads of payloads, none ran")


def test_the_hook_hears_what_it_listens_for(zygote, tmp_path):
    """In a child whose act does unpickle."""
    ended = zygote("unpickling", folder=tmp_path)
    assert json.loads(ended.output.splitlines()[-1]) == ["collections.OrderedDict"]
