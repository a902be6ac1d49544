"""Wrong inputs, as people and accidents make them: one sentence each, with the right exit code.

Each line of a table is the exit code, the words after `ornstein`, and a part of the sentence. They
are run in one folder, `place`, with a small run, files and data, which is afterwards as it was.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ornstein.cli import COMMANDS, run

TINY = ["model.network=unet", "model.network.channels=[8,16]", "optim.batch=32", "optim.warmup=0"]
LONG = "x" * 5000


# ── The place.

YAML = {
    "empty": "",
    "comment": "# nothing yet\n",
    "binary": bytes(range(256)),
    "nul": b"optim: {lr: \x00}",
    "latin": "name: café".encode("latin-1"),
    "utf16": "name: ddpm".encode("utf-16"),
    "list": "- optim\n- lr\n",
    "scalar": "hello\n",
    "tab": "optim:\n\tlr: 1\n",
    "twice": "seed: 1\nseed: 2\n",
    "twice_below": "optim:\n  lr: 1\n  lr: 2\n",
    "alias": "seed: &x 1\noptim: {batch: *x}\n",
    "merge": "a: &a {lr: 1}\noptim:\n  <<: *a\n",
    "object": "data: !!python/object/apply:os.system [ls]\n",
    "tag": "seed: !!int 3\n",
    "deep": "a: " + "[" * 30 + "]" * 30,
    "many": "a: [" + "1," * 30_000 + "1]",
    "large": "a: " + "x" * 2_000_000,
    "unclosed": "optim: {lr: 1\nseed: 3\n",
    "indent": "optim:\n  lr: 1\n seed: 3\n",
    "documents": "seed: 1\n---\nseed: 2\n",
    "complex": "? [a, b]\n: 1\n",
    "nameless": "optim: {lr: 1e-3}\n",
    "named": "name: My Recipe!\n",
    "listed": "name: [ddpm]\n",
    "unknown": "name: ddpm\noptim:\n  lrr: 1\n",
    "unknown_top": "name: ddpm\nopitm:\n  lr: 1\n",
    "type": "name: ddpm\noptim:\n  batch: many\n",
    "huge": f"name: ddpm\nseed: {'9' * 5000}\n",
    "dotted": "name: ddpm\noptim.lr: 1e-3\n",
    "kind": "name: ddpm\nmodel:\n  process: [vp]\n",
    "kind_number": "name: ddpm\nmodel:\n  process: {kind: 3}\n",
    "nothing": "name: ddpm\noptim:\nseed: 3\n",
    "text": "name: ddpm\noptim: fast\n",
    "average": "name: ddpm\noptim:\n  averages:\n    - kind: powr\n",
    "averages": "name: ddpm\noptim:\n  averages: [power, power]\n",
    "windows": "name: ddpm\r\noptim:\r\n  lr: -1\r\n",
    "control": 'name: "a\\x1b[31mb"\n',
    "good": "name: ddpm\nseed: 1\n",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where to work: a run in `runs`, damaged ones in `broken`, YAML in `f` and data in `d`."""
    place = tmp_path_factory.mktemp("p")
    words = ["train", "edm", "--samples", "64", "--run", "small", "--no-previews"]
    assert run([*words, "--runs", str(place / "runs"), *TINY]) == 0
    (place / "f").mkdir()
    for name, content in YAML.items():
        data = content if isinstance(content, bytes) else content.encode()
        (place / "f" / f"{name}.yaml").write_bytes(data)
    (place / "f" / "folder.yaml").mkdir()
    (place / "f" / "loop.yaml").symlink_to("loop.yaml")
    (place / "afile").write_text("x")
    make_data(place / "d")
    make_broken(place / "runs" / "small", place / "broken")
    return place


def make_data(d):
    random = np.random.default_rng(0)
    for name in ("nothing", "one", "texts", "torn", "grey", "images", "arrays"):
        (d / name).mkdir(parents=True)
    Image.new("L", (8, 8), 3).save(d / "one" / "a.png")
    (d / "texts" / "a.txt").write_text("x")
    for i in range(3):
        (d / "torn" / f"{i}.png").write_bytes(b"not a picture")
        Image.new("L", (8, 8), 7).save(d / "grey" / f"{i}.png")
        pixels = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(d / "images" / f"{i}.png")
    np.save(d / "arrays" / "x.npy", np.zeros((4, 2), np.float32))
    for suffix in ("zip", "tar.gz", "pt", "ckpt", "csv", "json", "h5", "mp4", "png"):
        (d / f"a.{suffix}").write_bytes(b"junk")
    (d / "a.pkl").write_bytes(pickle.dumps([1, 2]))
    for name in ("junk.npy", "junk.npz", "junk.parquet"):
        (d / name).write_bytes(b"junk" * 10)
    (d / "empty.npy").write_bytes(b"")
    (d / "begun.npy").write_bytes(b"\x93NUMPY" + b"junk" * 10)
    vectors = random.normal(size=(64, 2)).astype(np.float32)
    arrays = {
        "none": vectors[:0],
        "single": vectors[:1],
        "constant": np.ones((10, 2), np.float32),
        "nan": np.where(np.arange(64) == 5, np.nan, vectors[:, 0])[:, None],
        "infinite": np.where(np.arange(64) == 5, np.inf, vectors[:, 0])[:, None],
        "words": np.array(["a", "b"]),
        "complex": vectors.astype(complex),
        "scalar": np.float32(3),
        "five": np.zeros((2, 2, 2, 2, 2), np.float32),
        "wide": random.normal(size=(4, 8, 8)),
        "high": random.integers(-5, 500, (4, 8, 8)),
        "channels": np.zeros((4, 2, 8, 8), np.uint8),
        "picture": random.integers(0, 255, (32, 32, 3), dtype=np.uint8),
        "records": np.zeros(3, dtype=[("a", "f4"), ("b", "i4")]),
        "vectors": vectors,
    }
    for name, array in arrays.items():
        np.save(d / f"{name}.npy", array)
    np.save(d / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    (d / "short.npy").write_bytes((d / "vectors.npy").read_bytes()[:-50])
    np.savez(d / "three.npz", a=np.zeros(3), b=np.ones(3), c=np.ones(3))
    np.savez(d / "labels.npz", x=vectors, y=np.arange(3))
    np.savez(d / "halves.npz", x=vectors[:4], y=np.array([0.5, 1, 2, 3]))
    np.savez(d / "nothing.npz")


def make_broken(small, broken):
    text = (small / "recipe.yaml").read_text()
    info = json.loads((small / "data.json").read_text())

    def without(name):
        (broken / name).parent.mkdir(exist_ok=True)
        return lambda path: shutil.rmtree(path) if path.is_dir() else path.unlink()

    changes = {
        "no_recipe": ("recipe.yaml", None),
        "open_recipe": ("recipe.yaml", "optim: ["),
        "empty_recipe": ("recipe.yaml", ""),
        "cut_recipe": ("recipe.yaml", "\n".join(text.splitlines()[:8]) + "\n"),
        "thinned_recipe": ("recipe.yaml", text.replace("  batch: ", "  # batch: ")),
        "other_recipe": ("recipe.yaml", text.replace("[8, 16]", "[8, 24]")),
        "misspelt_recipe": ("recipe.yaml", text.replace("kind: unet", "kind: unot")),
        "no_data": ("data.json", None),
        "cut_data": ("data.json", "{"),
        "list_data": ("data.json", "[1]"),
        "deep_data": ("data.json", "[" * 100_000),
        "bare_data": ("data.json", "{}"),
        "flat_data": ("data.json", json.dumps(info | {"std": 0.0, "range": None})),
        "low_data": ("data.json", json.dumps(info | {"range": [3, 3]})),
        "thin_data": ("data.json", json.dumps(info | {"shape": [1, 0, 8]})),
        "one_bin": ("data.json", json.dumps(info | {"bins": 1})),
        "list_provenance": ("provenance.json", "[]"),
        "cut_provenance": ("provenance.json", "{}"),
        "other_data": ("data.json", json.dumps(info | {"fingerprint": "0" * 64})),
        "other_shape": ("data.json", json.dumps(info | {"shape": [3, 8, 8]})),
        "no_ckpt": ("ckpt", None),
        "no_request": ("request.yaml", None),
        "no_provenance": ("provenance.json", None),
        "cut_scores": ("scores.json", "{"),
    }
    for name, (part, content) in changes.items():
        shutil.copytree(small, broken / name)
        if content is None:
            without(name)(broken / name / part)
        else:
            (broken / name / part).write_text(content)
    for name, pattern in (("flipped", "*.safetensors"), ("no_manifest", "manifest.json")):
        shutil.copytree(small, broken / name)
        for path in (broken / name).glob(f"ckpt/*/{pattern}"):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    (broken / "folder").mkdir()
    (broken / "folder" / "notes.txt").write_text("mine")


# ── The tables.

PARSER = [
    (2, "sampel small", "no command 'sampel'; did you mean 'sample'?"),
    (2, "DEMO", "did you mean 'demo'?"),
    (2, "frobnicate", "no command 'frobnicate'; known: "),
    (2, [""], "no command ''; known: "),
    (2, "--hlep", "did you mean '--help'?"),
    (2, "-x", "no command '-x'"),
    (2, "--optim.lr", "'--optim.lr' needs a value"),
    (2, [LONG], "no command 'xxx"),
    (2, ["\x1b[31mtrain"], "no command '\\x1b[31mtrain'; did you mean 'train'?"),
    (2, ["train", "a\0b"], "'a\\x00b' holds a character NUL"),
    (2, "train", "train needs a RECIPE; write ornstein train RECIPE"),
    (2, "sample", "sample needs a RUN"),
    (2, "evaluate", "evaluate needs a RUN"),
    (2, "show", "show needs a NAME"),
    (2, "train ddpm --minuts 3", "train has no option '--minuts'; did you mean '--minutes'?"),
    (2, "train ddpm --unknown 3", "`ornstein train --help` lists those"),
    (2, "train ddpm -n 3", "train has no option '-n'"),
    (2, "train ddpm --no-fresh", "did you mean '--fresh'?"),
    (2, "train --recipe", "--recipe needs a value"),
    (2, "train --recipe ddpm --recipe edm", "--recipe is given twice; keep one"),
    (2, "train ddpm --minutes", "--minutes needs a value"),
    (2, "train ddpm --minutes abc", "--minutes must be a number, got 'abc'"),
    (2, ["train", "ddpm", "--minutes", ""], "--minutes must be a number, got ''"),
    (2, "train ddpm --minutes 1,5", "--minutes must be a number, got '1,5'"),
    (2, "train ddpm --minutes --seed 3", "--minutes needs a value"),
    (2, ["train", "ddpm", "--minutes", "9" * 400], "--minutes must be a smaller number"),
    (2, "train ddpm --samples many", "--samples must be a whole number, got 'many'"),
    (2, "train ddpm --samples 1.7", "--samples must be a whole number, got '1.7'"),
    (2, "train ddpm --samples 0x10", "--samples must be a whole number, got '0x10'"),
    (2, "train ddpm --samples none", "--samples must be a whole number, got 'none'"),
    (2, "train ddpm --samples 1e400", "--samples must be a whole number, got '1e400'"),
    (2, "train ddpm --samples 1e19", "--samples must be a whole number below 2^63"),
    (2, "train ddpm --seed 1.7", "--seed must be a whole number, got '1.7'"),
    (2, "train ddpm --seed nan", "--seed must be a whole number, got 'nan'"),
    (2, "train ddpm --seed=", "--seed must be a whole number, got ''"),
    (2, ["train", "ddpm", "--seed", "9" * 400], "--seed must be a whole number below 2^63"),
    (2, "train ddpm --seed 1 --seed 2", "--seed is given twice; keep one"),
    (2, "train ddpm --fresh=maybe", "--fresh must be true or false, got 'maybe'"),
    (2, "train ddpm --previews=2", "--previews must be true or false, got '2'"),
    (2, "train ddpm --save-every soon", "--save-every must be a number, got 'soon'"),
    (2, "train ddpm --data", "--data needs a value"),
    (2, "train ddpm --data digits --data digits", "--data is given twice"),
    (2, "train ddpm --file f/good.yaml --file f/good.yaml", "--file is given twice"),
    (2, ["train", "ddpm", "--file", ""], "--file must be a path, got ''"),
    (2, ["train", "ddpm", "--runs", ""], "--runs must be a path, got ''"),
    (2, "train ddpm --allow-change", "--allow-change needs a value"),
    (2, "sample small -n 2.5", "-n must be a whole number, got '2.5'"),
    (2, "sample small -n many", "-n must be a whole number, got 'many'"),
    (2, "sample small -n", "-n needs a value"),
    (2, "sample small -n 1e30", "-n must be a whole number below 2^63"),
    (2, "sample small --number 3 -n 4", "-n is given twice"),
    (2, "sample small --seed x", "--seed must be a whole number, got 'x'"),
    (2, "sample small --steps 2.5", "--steps must be a whole number, got '2.5'"),
    (2, "sample small --save jpg", "got 'jpg'; did you mean 'png'?"),
    (2, "sample small --save GRID", "got 'GRID'; did you mean 'grid'?"),
    (2, ["sample", "small", "--save", ""], "must be 'grid', 'png', 'npz', 'gif' or 'all'"),
    (2, "sample small --file x", "sample has no option '--file'"),
    (2, "evaluate small -n 2.5", "-n must be a whole number, got '2.5'"),
    (2, "evaluate small --seed 1.7", "--seed must be a whole number, got '1.7'"),
    (2, "evaluate small --json=maybe", "--json must be true or false"),
    (2, "evaluate small --no-json", "did you mean '--json'?"),
    (2, "show ddpm edm demo", "show takes no further word, got 'demo'"),
    (2, "show ddpm --json", "show has no option '--json'"),
    (2, "recipes all", "recipes takes no further word, got 'all'"),
    (2, "recipes --runs x", "recipes has no option '--runs'"),
    (2, "runs small", "runs takes no further word, got 'small'"),
    (2, "runs --run x", "did you mean '--runs'?"),
    (2, "doctor torch", "doctor takes no further word, got 'torch'"),
    (2, "doctor --json", "doctor has no option '--json'"),
    (2, "demo fast", "demo takes no further word, got 'fast'"),
    (2, "demo --sede 1", "did you mean '--seed'?"),
    (2, "demo --seed 1.7", "--seed must be a whole number, got '1.7'"),
]

RECIPES = [
    (2, "train dpm", "no recipe 'dpm'; did you mean 'ddpm'?"),
    (2, "train DDPM", "no recipe 'DDPM'; did you mean 'ddpm'?"),
    (2, ["train", ""], "no recipe ''; known: "),
    (2, ["train", "\ud800"], "no recipe '\\ud800'"),
    (2, ["train", LONG], "is too long for a path"),
    (2, "train f", "no recipe 'f'"),
    (2, "show dpm", "no recipe or run 'dpm'; did you mean 'ddpm'?"),
    (2, "show ddpm edmm", "no recipe or run 'edmm'; did you mean 'edm'?"),
    (2, "show smal", "did you mean 'small'?"),
    (2, ["show", "a\x1b[31mb"], "no recipe or run 'a\\x1b[31mb'"),
    (2, "show nowhere.yaml", "there is no file nowhere.yaml"),
    (2, "train ddpm junk", "'junk' has no '='"),
    (2, "train ddpm --fresh maybe", "'maybe' has no '='"),
    (2, "train ddpm [1,2]", "'[1,2]' has no '='"),
    (2, "train ddpm -- --seed", "'--seed' has no '='"),
    (2, "train ddpm d/images", "to train on it, write --data d/images"),
    (2, "train ddpm moons", "to train on it, write --data moons"),
    (2, "train ddpm =1", "'=1' has an empty key"),
    (2, "train ddpm optim..lr=1", "'optim..lr=1' has an empty key"),
    (2, "train ddpm .lr=1", "has an empty key"),
    (2, "train ddpm --samples 10 --minutes 3", "give --samples or --minutes, not both"),
    (2, "train ddpm --minutes -1", "optim.minutes must be greater than 0, got -1"),
    (2, "train ddpm --minutes 0", "optim.minutes must be greater than 0"),
    (2, "train ddpm --minutes nan", "optim.minutes must be finite, got nan"),
    (2, "train ddpm --minutes -inf", "optim.minutes must be finite, got -inf"),
    (2, "train ddpm --samples 0", "optim.samples must be at least 1, got 0"),
    (2, "train ddpm --samples -4", "optim.samples must be at least 1, got -4"),
    (2, "train ddpm --seed -1", "seed must be at least 0, got -1"),
    (2, "train ddpm --seed 1 seed=2", "'seed' is given twice"),
    (2, "train ddpm --samples 9 optim.samples=9", "'optim.samples' is given twice"),
    (2, "train ddpm --save-every 0", "--save-every must be above 0 seconds, got 0"),
    (2, "train ddpm --save-every nan", "--save-every must be above 0 seconds, got nan"),
    (2, "train ddpm --allow-change lr", "no setting 'lr'; did you mean 'optim.lr'?"),
    (2, "train ddpm --allow-change optim.lrr", "did you mean 'optim.lr'?"),
    (2, "train ddpm --allow-change zzz", "`ornstein show ddpm` lists them"),
    (2, ["train", "ddpm", "--run", ""], "a run's name must be a plain name, not ''"),
    (2, "train ddpm --run ../evil", "must be a plain name, not '../evil'"),
    (2, "train ddpm --run /tmp/evil", "must be a plain name, not '/tmp/evil'"),
    (2, "train ddpm --run ..", "must be a plain name, not '..'"),
    (2, ["train", "ddpm", "--run", "a\\b"], "must be a plain name"),
    (2, ["train", "ddpm", "--run", "a\nb"], "must be a plain name, not 'a\\nb'"),
    (2, ["train", "ddpm", "--run", "é" * 200], "too long for a folder"),
    (5, "train ddpm --runs afile", "afile is not a folder; check the path, or choose another"),
    (5, "train ddpm --runs afile/below", "is not a folder; check the path, or choose another"),
    (5, "demo --runs afile", "afile is not a folder"),
    (2, "demo --seed -1", "seed must be at least 0"),
    (2, "runs --runs afile", "afile is a file"),
    (2, ["runs", "--runs", LONG], "is too long for a path"),
]

SETTINGS = [
    # Numbers.
    (2, "optim.lr=-1", "optim.lr must be greater than 0, got -1"),
    (2, "optim.lr=0", "optim.lr must be greater than 0, got 0"),
    (2, "optim.lr=abc", "optim.lr must be a number, got 'abc'"),
    (2, "--optim.lr=abc", "optim.lr must be a number, got 'abc'"),
    (2, "--optim.lr abc", "optim.lr must be a number, got 'abc'"),
    (2, "--optim.lr --seed", "optim.lr must be a number, got '--seed'"),
    (2, "--optim.lr", "'--optim.lr' needs a value; write --optim.lr=VALUE"),
    (2, "optim.lr", "'optim.lr' has no '='"),
    (2, "optim.lr=", "optim.lr must be a number, got null"),
    (2, "optim.lr=none", "optim.lr must be a number, got null"),
    (2, "optim.lr=true", "optim.lr must be a number, got true"),
    (2, "optim.lr=[1]", "optim.lr must be a number, got [1]"),
    (2, "optim.lr=nan", "optim.lr must be finite, got nan"),
    (2, "optim.lr=-inf", "optim.lr must be finite, got -inf"),
    (2, "optim.lr=1e999", "optim.lr must be finite, got inf"),
    (2, "optim.lr=1,5", "optim.lr must be a number, got '1,5'"),
    (2, "optim.lr=0x10", "optim.lr must be a number, got '0x10'"),
    (2, ["optim.lr=1\n2"], "optim.lr must be a number, got '1\\n2'"),
    (2, ["optim.lr=\x1b[31m"], "optim.lr must be a number, got '\\x1b[31m'"),
    (2, ["optim.lr=\ud800"], "optim.lr must be readable text, got '\\ud800'"),
    (2, ["optim.lr=" + LONG], "optim.lr must be a number, got 'xxx"),
    (2, "optim.eps=0", "optim.eps must be greater than 0"),
    (2, "optim.clip=off", "optim.clip must be a number, got 'off'"),
    (2, "optim.batch=0", "optim.batch must be at least 1"),
    (2, "optim.batch=1.5", "optim.batch must be a whole number, got 1.5"),
    (2, "optim.batch=null", "optim.batch must be a whole number, got null"),
    (2, "optim.batch=true", "optim.batch must be a whole number, got true"),
    (2, "optim.batch='32x'", "optim.batch must be a whole number, got '32x'"),
    (2, "optim.micro_batch=all", "optim.micro_batch must be a whole number, got 'all'"),
    (2, "optim.samples=null", "a length is needed: give samples or minutes"),
    (2, "optim.warmup=-1", "optim.warmup must be at least 0"),
    (2, "optim.weight_decay=-0.1", "optim.weight_decay must be at least 0"),
    (2, "seed=1.5", "seed must be a whole number, got 1.5"),
    (2, "seed=[1]", "seed must be a whole number, got [1]"),
    (2, ["seed=" + "9" * 5000], "seed must be finite"),
    (2, "model.process.steps=1", "model.process.steps must be at least 2"),
    (2, "model.process.steps=1e9", "model.process.steps must be at most 100000"),
    (2, "model.process.beta_first=2", "model.process.beta_first must be less than 1"),
    (2, "data.held_out=1", "data.held_out must be less than 1"),
    (2, "generation.steps=0", "generation.steps must be at least 1"),
    (2, "preview.steps=2.5", "preview.steps must be a whole number"),
    (2, "augment.crop=-1", "augment.crop must be at least 0"),
    # Switches and words.
    (2, "augment.flip=maybe", "augment.flip must be true or false, got 'maybe'"),
    (2, "augment.flip=3", "augment.flip must be true or false, got 3"),
    (2, "model.process.zero_terminal=half", "must be true or false, got 'half'"),
    (2, "optim.decay=cosin", "'none', 'linear' or 'cosine', got 'cosin'"),
    (2, "optim.decay=Cosine", "did you mean 'cosine'?"),
    (2, "optim.decay=null", "optim.decay must be 'none', 'linear' or 'cosine', got null"),
    (2, ["optim.decay=\u0441osine"], "did you mean 'cosine'?"),
    (2, "optim.precision=16", "optim.precision must be 'auto', 'fp32' or 'bf16', got '16'"),
    (2, "optim.compile=true", "optim.compile must be 'auto', 'on' or 'off', got 'true'"),
    (2, "model.label=sigma", "did you mean 'log_sigma'?"),
    (2, "model.variance=leraned", "did you mean 'learned'?"),
    (2, "model.process.rule=lineer", "did you mean 'linear'?"),
    (2, "name=", "name must be lower-case letters, digits"),
    (2, ["name=My Run"], "a letter or digit first, got 'My Run'"),
    (2, "name=../x", "name must be lower-case letters"),
    (2, "name=[a]", "name must be text, got [a]"),
    (2, ["name=" + "x" * 100], "name must have a length of at most 60, got 'xxx"),
    # Lists.
    (2, "optim.betas=0.9", "optim.betas must be a list such as [0.9, 0.5], got '0.9'"),
    (2, "optim.betas=[0.9]", "optim.betas[1] is missing from the list"),
    (2, "optim.betas=[0.9,0.9,0.9]", "optim.betas must have a length of at most 2"),
    (2, "optim.betas=[0.9,1.0]", "betas must lie in [0, 1), got [0.9, 1.0]"),
    (2, "optim.betas=[a,b]", "optim.betas[0] must be a number, got 'a' (command line) (and"),
    (2, "optim.betas=[true,0.9]", "optim.betas[0] must be a number, got true"),
    (2, "optim.betas=[[0.9],0.9]", "optim.betas[0] must be a number, got [0.9]"),
    (2, "optim.betas=[0.9, 0.99]", "where there are spaces, quote the whole"),
    (2, "optim.betas=[0.9", "did not find expected ',' or ']'; close every bracket"),
    (2, "optim.betas[0]=0.5", "did you mean 'optim.betas'?"),
    (2, "optim.betas.0=0.5", "optim.betas is a value, not a section"),
    (2, "model.network.channels=32", "model.network.channels must be a list such as [1, 2]"),
    (2, "model.network.channels=[1.5]", "model.network.channels[0] must be a whole number"),
    (2, "model.network.channels=[8,[8]]", "channels[1] must be a whole number, got [8]"),
    (2, "model.network.channels=[]", "needs at least one level"),
    (2, "model.network.channels=[9999]", "of 1 to 8192 channels; got [9999]"),
    (2, "model.network.attention=[3] model.network=unet", "they are [1, 2, 4]"),
    (2, "objective.range=[1,-1]", "range must rise"),
    (2, "objective.range=[nan,1]", "objective.range[0] must be finite"),
    (2, "optim.averages=power", "must be a list such as [{kind: half_life}], got 'power'"),
    (2, "optim.averages=null", "optim.averages must be a list"),
    (2, "optim.averages=[powr]", "optim.averages[0] has no kind 'powr'"),
    (2, "optim.averages=[3]", "optim.averages[0] has no kind '3'"),
    (2, "optim.averages=[{}]", "optim.averages[0] needs a kind"),
    (2, "optim.averages=[[power]]", "optim.averages[0] is a section, not a value, got [power]"),
    (2, ["optim.averages=[{kind: power, width: 1}]"], "averages[0].width must be less than 0.28"),
    (2, ["optim.averages=[{kind: power, widht: 1}]"], "did you mean 'optim.averages[0].width'?"),
    (2, ["optim.averages=[{kind: half_life, width: 1}]"], "it belongs to the kind 'power'"),
    (2, "optim.averages=[power,power]", "two averages are the same: power-0.1, power-0.1"),
    (2, "optim.averages.0.width=1", "write optim.averages=[{kind: half_life}]"),
    # Keys, kinds and sections.
    (2, "optim.lrr=1", "did you mean 'optim.lr'?"),
    (2, "lr=1", "did you mean 'optim.lr'?"),
    (2, "optm.lr=1", "did you mean 'optim.lr'?"),
    (2, "OPTIM.LR=1", "did you mean 'optim.lr'?"),
    (2, ["\u202eoptim.lr=1"], "unknown key '\\u202eoptim.lr'"),
    (2, "zzz=1", "unknown key 'zzz' (command line); known: augment, data"),
    (2, "kind=3", "unknown key 'kind'"),
    (2, "optim.zzz.deeper=1", "unknown key 'optim.zzz.deeper'"),
    (2, ["a." * 30 + "b=1"], "is nested deeper than 20"),
    (2, [LONG + "=1"], "unknown key 'xxx"),
    (2, "optim.lr.x=1", "optim.lr is a value, not a section, so 'optim.lr.x' cannot be set"),
    (2, ["optim.lr={a: 1}"], "optim.lr is a value, not a section"),
    (2, "optim=1", "optim is a section, not a value, got '1' (command line); write optim.lr=VALUE"),
    (2, "optim=", "optim is a section, not a value, got nothing"),
    (2, "optim=[1]", "optim is a section, not a value, got [1]"),
    (2, ["optim={lr 1}"], "did you mean 'optim.lr'?"),
    (2, "optim={", "did not find expected node content; close every bracket"),
    (2, ["optim={lr: 1, lr: 2}"], "the key 'lr' is given twice"),
    (2, ["optim={lr: 1}", "optim.lr=2"], "'optim.lr' is given twice"),
    (2, "optim.lr=1 optim.lr=2", "'optim.lr' is given twice (command line); keep one"),
    (2, "optim.lr=1 --optim.lr=2", "'optim.lr' is given twice"),
    (2, "model=3", "model has no kind '3'"),
    (2, "model.kind=gan", "model has no kind 'gan' (command line); known: autoencoder, code_prior"),
    (2, "model.target=edmm", "did you mean 'edm'?"),
    (2, "model.process=", "model.process has no kind ''"),
    (2, "model.process=VP", "did you mean 'vp'?"),
    (2, "model.process=[vp]", "model.process is a section, not a value, got [vp]"),
    (2, "model.process=vp model.process=ve", "'model.process' is given twice"),
    (2, "model.process=vp model.process.kind=ve", "model.process.kind is given twice"),
    (2, "model.process.beta_max=9", "belongs to the kind 'vp', so set model.process=vp too"),
    (2, "model.process=vp model.process.sigma_max=9", "it belongs to the kind 've'"),
    (2, "model.process=ve model.process.sigma_min=99", "sigma_max (50) must be above sigma_min"),
    (2, "model.process=cosine model.process.shift=0", "shift must be at least 0.001"),
    (2, "model.target=edm model.target.sigma_data=auto", "must be a number, got 'auto'"),
    (2, "model.target.sigma_data=1", "it belongs to the kind 'edm'"),
    (2, "model.network=resnet", "did you mean 'unet'?"),
    (2, "model.network.dropout=0.5", "model.network needs a kind"),
    (2, "model.network=mlp model.network.channels=[8]", "it belongs to the kind 'unet'"),
    (2, "model.network=mlp model.network.width=0", "model.network.width must be at least 1"),
    (2, "objective=denosing", "did you mean 'denoising'?"),
    (2, "objective.levels=log_normal objective.levels.std=0", "std must be greater than 0"),
    (2, "objective.weighting=min_snr objective.weighting.gamma=0", "gamma must be greater than 0"),
    (2, "objective.weight=3", "it belongs to the kind 'hybrid'"),
    (2, "generation.stepz=3", "did you mean 'generation.step'?"),
    (2, "generation.step=eulr", "generation.step has no kind 'eulr'"),
    (2, "generation.grid=explicit", "generation.grid.times has no default; write generation.grid"),
    (2, "preview=quick", "preview has no kind 'quick'"),
    (2, "augment=flip", "augment is a section, not a value, got 'flip'"),
    (2, "data=digit", "did you mean 'digits'?"),
    (2, "data=toy", "data.name has no default; write data.name=WORD, one of swiss_roll, moons"),
    (2, "data=toy data.name=moon", "did you mean 'moons'?"),
    (2, "data.name=moons", "it belongs to the kind 'toy', so set data=toy too"),
    (2, "data=toy data.name=moons data.count=1", "data.count must be at least 2"),
    (2, "data=folder", "data.path has no default; write data.path=VALUE"),
    (2, "data=folder data.path=", "data.path must not be empty"),
    (2, "data=folder data.path=d data.size=2", "data.size must be at least 4"),
    (2, "data=folder data.path=d data.channels=2", "data.channels must be 1 or 3, got 2"),
    (2, ["data=folder", 'data.path="a\\0b"'], "'a\\x00b' is not a path"),
    (2, "data=shapes data.count=1000000 data.size=128", "the limit is 2 GiB"),
    (2, "--data moons data=digits", "data.kind is given twice"),
    (2, "--data moons data.name=circles", "'data.name' is given twice"),
]

FILES = [
    (2, "train nowhere.yaml", "there is no file nowhere.yaml"),
    (2, "train ddpm --file f/goood.yaml", "no file f/goood.yaml; did you mean 'good.yaml'?"),
    (2, "train ddpm --file f", "file f cannot be read: is a directory"),
    (2, "train f/folder.yaml", "cannot be read: is a directory"),
    (2, "train f/loop.yaml", "cannot be read: too many levels of symbolic links"),
    (2, ["train", "ddpm", "--file", f"{LONG}.yaml"], "cannot be read: file name too long"),
    (2, "train f/good.yaml --file f/good.yaml", "give one YAML file"),
    (2, "train f/empty.yaml", "must hold lines of KEY: VALUE, got nothing"),
    (2, "train f/comment.yaml", "must hold lines of KEY: VALUE, got nothing"),
    (2, "train f/list.yaml", "must hold lines of KEY: VALUE, got [optim, lr]"),
    (2, "train f/scalar.yaml", "must hold lines of KEY: VALUE, got 'hello'"),
    (2, "train f/binary.yaml", "is not UTF-8 text"),
    (2, "train f/latin.yaml", "is not UTF-8 text"),
    (2, "train f/utf16.yaml", "is not UTF-8 text"),
    (2, "train f/nul.yaml", "some characters are not text"),
    (2, "train f/tab.yaml", "line 2: found character that cannot start any token; check"),
    (2, "train f/twice.yaml", "line 2: the key 'seed' is given twice; keep one"),
    (2, "train f/twice_below.yaml", "line 3: the key 'lr' is given twice"),
    (2, "train f/alias.yaml", "line 1: aliases and anchors (*, &) are not read"),
    (2, "train f/merge.yaml", "line 1: aliases and anchors (*, &) are not read"),
    (2, "train f/object.yaml", "python/object/apply:os.system' is not read; leave it out"),
    (2, "train f/tag.yaml", "the tag 'tag:yaml.org,2002:int' is not read"),
    (2, "train f/deep.yaml", "a recipe is nested at most 20 deep"),
    (2, "train f/many.yaml", "a recipe holds at most 20000 values"),
    (2, "train f/large.yaml", "is larger than 1 MB, too large for a recipe"),
    (2, "train f/unclosed.yaml", "line 2: did not find expected ',' or '}'; check brackets"),
    (2, "train f/indent.yaml", "line 3: did not find expected key; check brackets, quotes and"),
    (2, "train f/documents.yaml", "line 2: a second document begins; keep one"),
    (2, "train f/complex.yaml", "line 1: a key must be a name"),
    (2, "train f/nameless.yaml", "name has no default; write name=VALUE"),
    (2, "train f/named.yaml", "a letter or digit first, got 'My Recipe!' (file f/named.yaml)"),
    (2, "train f/listed.yaml", "name must be text, got [ddpm] (file f/listed.yaml)"),
    (2, "train f/unknown.yaml", "'optim.lrr' (file f/unknown.yaml); did you mean 'optim.lr'?"),
    (2, "train ddpm --file f/unknown.yaml", "'optim.lrr' (file f/unknown.yaml)"),
    (2, "train f/unknown_top.yaml", "unknown key 'opitm.lr'"),
    (2, "train f/type.yaml", "must be a whole number, got 'many' (file f/type.yaml)"),
    (2, "train f/huge.yaml", "seed must be finite"),
    (2, "train f/dotted.yaml", "write each part of it as a section of its own"),
    (2, "train f/kind.yaml", "model.process is a section, not a value, got [vp]"),
    (2, "train f/kind_number.yaml", "model.process has no kind '3' (file f/kind_number.yaml)"),
    (2, "train f/nothing.yaml", "optim is a section, not a value, got nothing"),
    (2, "train f/text.yaml", "optim is a section, not a value, got 'fast'"),
    (2, "train f/average.yaml", "optim.averages[0] has no kind 'powr'"),
    (2, "train f/averages.yaml", "two averages are the same"),
    (2, "train f/windows.yaml", "optim.lr must be greater than 0, got -1 (file f/windows.yaml)"),
    (2, "train f/control.yaml", "got 'a\\x1b[31mb' (file f/control.yaml)"),
    (2, "show f/unknown.yaml", "did you mean 'optim.lr'?"),
    (2, "show ddpm f/type.yaml", "must be a whole number, got 'many'"),
]

DATA = [
    (3, [""], "no data was named: give a folder of images"),
    (3, "swis_roll", "did you mean 'swiss_roll'?"),
    (3, "cifar10", "is no known data set, and no file or folder"),
    (3, "nowhere/at/all", "nowhere/at/all does not exist"),
    (3, "d/vectors.np", "vectors.npy'?"),
    (3, "d/nothing", "a folder needs at least 2"),
    (3, "d/one", "only one image in"),
    (3, "d/texts", "no image in"),
    (3, "d/torn", "3 cannot be read, the first is 0.png"),
    (3, "d/grey", "all values of grey are 7: there is nothing to learn"),
    (3, "d/arrays", "x.npy in it can be named itself"),
    (3, "d/images/0.png", "is a single image: give a folder"),
    (3, "d/a.png", "is a single image"),
    (3, "d/a.zip", "is an archive: unpack it"),
    (3, "d/a.tar.gz", "is an archive: unpack it"),
    (3, "d/a.pt", "is likely a pickle, which can run any code when it is opened"),
    (3, "d/a.pkl", "is likely a pickle"),
    (3, "d/a.ckpt", "is likely a pickle"),
    (3, "d/a.csv", "is text: save its numbers with numpy.save"),
    (3, "d/a.json", "is text"),
    (3, "d/a.h5", "is a table or container"),
    (3, "d/a.mp4", "is not data that can be read"),
    (3, "afile", "is not data that can be read"),
    (3, "d/empty.npy", "is damaged or not a numpy file"),
    (3, "d/junk.npy", "is damaged or not a numpy file"),
    (3, "d/junk.npz", "is damaged or not a numpy file"),
    (3, "d/junk.parquet", "junk.parquet"),
    (3, "d/short.npy", "is truncated: shape (64, 2) of float32 takes 512 bytes and 462 are there"),
    (3, "d/none.npy", "is empty: its shape is [0, 2]"),
    (3, "d/single.npy", "at least 2 are needed"),
    (3, "d/constant.npy", "all values of constant are 1: there is nothing to learn"),
    (3, "d/nan.npy", "in row 5 (the first is 0): remove or mend it"),
    (3, "d/infinite.npy", "holds NaN, infinity or a number beyond float32 in row 5"),
    (3, "d/words.npy", "vectors are [N, D], images"),
    (3, "d/complex.npy", "save uint8 or float32 numbers"),
    (3, "d/scalar.npy", "vectors are [N, D], images"),
    (3, "d/five.npy", "channels must come first or last"),
    (3, "d/wide.npy", "scale them to [0, 1], or save uint8 images"),
    (3, "d/high.npy", "scale them to 0 ... 255"),
    (3, "d/channels.npy", "1, 3 or 4 channels must come first or last"),
    (3, "d/picture.npy", "looks like a single image"),
    (3, "d/records.npy", "save uint8 or float32 numbers"),
    (3, "d/objects.npy", "holds Python objects, which are pickles and are never loaded"),
    (3, "d/three.npz", "its arrays: a, b, c"),
    (3, "d/nothing.npz", "its arrays: none"),
    (3, "d/labels.npz", "one label a sample is needed, shape [64]"),
    (3, "d/halves.npz", "has labels that are not whole numbers or names"),
    (3, "/dev/null", "is neither a folder nor an ordinary file"),
    (3, "https://example.com/x.zip", "is not on this machine: download it"),
    (3, "~nobody-of-that-name/x", "cannot be looked up"),
    (3, [LONG], "cannot be looked up"),
    (3, ["\udcff/x"], "cannot be looked up"),
    (3, ["a\x1b[31mb"], "is no known data set"),
    (3, ["a\nb/c"], "a\\x0ab/c does not exist"),
    (3, "arrays.path d/a.zip", "is damaged or not a numpy file"),
    (3, "folder.path nowhere", "nowhere does not exist"),
    (3, "parquet.path nowhere", "nowhere does not exist: put it back, or name other data"),
    (3, "d/begun.npy", "is damaged or not a numpy file"),
]

CLASHES = [
    (2, "ddpm model.process=straight", "the target 'eps' does not determine the clean image"),
    (2, "ddpm model.process=cosine", "use v, x0 or velocity"),
    (2, "ddpm model.process.zero_terminal=true", "does not determine the clean image"),
    (2, "ddpm model.process.zero_terminal=1 model.target=score", "the target 'score' does not"),
    (2, "flow model.label=log_sigma", "the noise label 'log_sigma' is infinite"),
    (2, "ddpm objective=hybrid", "objective: hybrid trains a predicted variance"),
    (2, "improved_ddpm model.variance=fixed", "write model.variance=learned"),
    (2, "flow generation.grid=karras", "give the grid a sigma_max"),
    (2, "flow generation.grid=log_snr", "give the grid a sigma_max"),
    (2, "flow preview=sampling", "give the grid a sigma_max"),
    (2, "edm generation.grid=explicit generation.grid.times=[1,.5]", "write steps=2"),
    (2, "edm generation.grid=explicit generation.grid.times=[.5,1]", "times must fall from noise"),
    (2, "edm generation.grid=explicit generation.grid.times=[2,1]", "times must lie in (0, 1]"),
    (2, "edm generation.grid=explicit generation.grid.times=[]", "a length of at least 1"),
    (2, "edm generation.grid.sigma_max=81", "must lie within σ/α of the process, 0.002 to 80"),
    (2, "edm generation.grid.sigma_min=90", "(90) must be below its sigma_max (80)"),
    (2, "edm generation.grid.rho=1e-300", "a number is too large or too small to compute with"),
    (2, "edm model.process.sigma_max=1e300", "does not determine the clean image"),
    (2, "ddpm generation.steps=5000", "use fewer steps"),
    (2, "ddpm model.process.steps=10", "use fewer steps"),
    (2, "edm --data moons model.network=unet", "write model.network=mlp"),
    (2, "edm model.network=mlp", "write model.network=unet"),
    (2, "edm --data moons augment.flip=true", "augment is for images"),
    (2, "edm --data d/vectors.npy augment.crop=1", "augment is for images"),
    (2, "edm augment.crop=8", "augment.crop=8 must be below 8"),
    (2, "edm augment.crop=99999999999999999999", "must be below 8"),
]

RUNS = [
    (2, "sample smal", "no run 'smal'; did you mean 'small'?"),
    (2, ["sample", ""], "no run ''"),
    (2, "sample runs", "runs is not a run: it has no recipe.yaml"),
    (2, "sample ..", ".. is not a run: it has no recipe.yaml"),
    (2, "sample afile", "no run 'afile'"),
    (2, "sample ../../etc/passwd", "no run '../../etc/passwd'"),
    (2, ["sample", "\ud800"], "no run '\\ud800'"),
    (2, ["sample", LONG], "is too long for a path"),
    (2, "sample small --runs nowhere", "there are no runs in nowhere yet"),
    (2, "sample small --run other", "no run 'other'"),
    (2, "sample small extra", "'extra' has no '='"),
    (2, "sample small -n 0", "the number of samples must be at least 1, got 0"),
    (2, "sample small -n -3", "the number of samples must be at least 1, got -3"),
    (2, "sample small -n 0 --save gif", "must be at least 1"),
    (2, "sample small --steps 0", "steps must be at least 1"),
    (2, "sample small --steps 999999", "steps must be at most 100000"),
    (2, "sample small --steps 10 steps=20", "'steps' is given twice"),
    (2, "sample small steps=2.5", "steps must be a whole number, got 2.5"),
    (2, "sample small steps=1e9", "steps must be at most 100000"),
    (2, "sample small step=jumpp", "did you mean 'jump'?"),
    (2, "sample small step=", "step has no kind ''"),
    (2, "sample small step=jump step.eta=2", "step.eta must be at most 1"),
    (2, "sample small step=jump step.eta=nan", "step.eta must be finite"),
    (2, "sample small step.eta=1", "belongs to the kind 'jump', so set step=jump too"),
    (2, "sample small step=jump step.spread=1", "it belongs to the kind 'ancestral'"),
    (2, ["sample", "small", "step={kind: jump, etta: 1}"], "did you mean 'step.eta'?"),
    (2, "sample small grid=karas", "did you mean 'karras'?"),
    (2, "sample small grid.sigma_max=1000", "beyond it no network was trained"),
    (2, "sample small grid.sigma_max=0.0001", "must be below its sigma_max"),
    (2, "sample small grid.sigma_min=0", "grid.sigma_min must be greater than 0"),
    (2, "sample small grid=explicit", "grid.times has no default; write grid.times=[0.9, 0.5]"),
    (2, "sample small grid=explicit grid.times=[1,0.5]", "write steps=2"),
    (2, "sample small grid=explicit grid.times=0.5", "must be a list such as [0.9, 0.5]"),
    (2, ["sample", "small", "grid=explicit", "grid.times=[1, half]"], "times[1] must be a number"),
    (2, "sample small clip=2", "clip must be true or false, got 2"),
    (2, "sample small kind=gan", "there is no kind 'gan'"),
    (2, "sample small optim.lr=1", "unknown key 'optim.lr'"),
    (2, "sample small generation.stepz=3", "did you mean 'step'?"),
    (2, "sample small generation=3", "unknown key 'generation'"),
    (2, "sample small --average other", "keeps no average 'other'; known: none, power-0.1"),
    (2, "sample small --average power", "did you mean 'power-0.1'?"),
    (5, "sample small --out afile", "afile is not a folder; check the path, or choose another"),
    (5, "sample small --out afile/x", "or choose another folder with --out"),
    (2, ["sample", "small", "--out", ""], "--out must be a path, got ''"),
    (2, "sample broken/no_recipe", "is not a run: it has no recipe.yaml"),
    (2, "sample broken/folder", "is not a run: it has no recipe.yaml"),
    (4, "sample broken/open_recipe", "is damaged (file broken/open_recipe/recipe.yaml: did not"),
    (4, "sample broken/empty_recipe", "is damaged (file"),
    (4, "sample broken/cut_recipe", "is damaged"),
    (4, "sample broken/other_recipe", "do not fit this model"),
    (4, "sample broken/misspelt_recipe", "did you mean 'unet'?"),
    (4, "sample broken/no_data", "data.json is missing or damaged; restore it"),
    (4, "sample broken/cut_data", "data.json is missing or damaged"),
    (4, "sample broken/list_data", "data.json is missing or damaged"),
    (4, "sample broken/deep_data", "data.json is missing or damaged"),
    (4, "sample broken/bare_data", "data.json is missing or damaged"),
    (4, "sample broken/flat_data", "data.json is missing or damaged"),
    (4, "sample broken/low_data", "data.json is missing or damaged"),
    (4, "sample broken/thin_data", "data.json is missing or damaged"),
    (4, "sample broken/one_bin", "data.json is missing or damaged"),
    (4, "sample broken/other_shape", "do not fit this model"),
    (4, "sample broken/no_ckpt", "has no checkpoint yet; train it first"),
    (4, "sample broken/flipped", "no whole checkpoint is left in"),
    (4, "sample broken/no_manifest", "no whole checkpoint is left in"),
    (2, "evaluate smal", "did you mean 'small'?"),
    (2, "evaluate small -n 1", "a score needs at least 2 samples, got 1"),
    (2, "evaluate small -n -5", "a score needs at least 2 samples, got -5"),
    (2, "evaluate small extra", "'extra' has no '='"),
    (2, "evaluate small step=ancestral grid=trailin", "did you mean 'trailing'?"),
    (2, "evaluate small --steps 0", "steps must be at least 1"),
    (4, "evaluate broken/open_recipe", "is damaged"),
    (4, "evaluate broken/cut_scores", "scores.json is missing or damaged"),
    (3, "evaluate broken/other_data", "since it was made (as many samples, but others)"),
    (4, "show broken/open_recipe", "did not find expected node content"),
    (2, "show broken/folder", "no recipe or run 'broken/folder'"),
    (4, "train edm --run no_request --runs broken --samples 64", "request.yaml is missing or"),
    (5, "train edm --run folder --runs broken --samples 64", "exists and is not a run"),
    (4, "train edm --run small --samples 64", "made with model.network.kind='unet', not null"),
    *(
        (4, ["train", "edm", "--run", name, "--runs", "broken", "--samples", "96", *TINY], hint)
        for name, hint in (
            ("no_provenance", "provenance.json is missing or damaged; restore it"),
            ("list_provenance", "provenance.json is missing or damaged"),
            ("cut_provenance", "provenance.json is missing or damaged"),
        )
    ),
    (4, ["train", "edm", "--run", "small", *TINY, "--seed", "3"], "was made with seed=0, not 3"),
    (4, ["train", "edm", "--run", "small", *TINY, "name=x"], "insist with --allow-change name"),
]


OTHERS = [
    (2, "inspect", "inspect needs a DATA"),
    (3, "inspect nowhere", "'nowhere' is no known data set"),
    (3, "inspect d/a.zip", "is an archive: unpack it"),
    (3, "inspect d/nothing", "a folder needs at least 2"),
    (3, "inspect d/torn", "3 cannot be read, the first is 0.png"),
    (3, "inspect d/nan.npy", "in row 5 (the first is 0)"),
    (3, "inspect d/grey", "there is nothing to learn"),
    (3, ["inspect", ""], "no data was named"),
    (2, "inspect d/images extra", "'extra' says nothing about data: write data.KEY=VALUE"),
    (2, "inspect digits --seed 1", "inspect has no option '--seed'"),
    (5, "inspect digits --out afile/x", "cannot write afile"),
    (2, "schedules nope", "no process, recipe or run 'nope'; known: "),
    (2, "schedules cosin", "did you mean 'cosine'?"),
    (2, "schedules tabulated.rule=lineer", "did you mean 'linear'?"),
    (2, "schedules tabulated.zzz=3", "known: beta_first, beta_last"),
    (2, "schedules tabulated.steps=1", "must be at least 2"),
    (2, "schedules tabulated.rule=linear,rule=cosine", "is given twice"),
    (2, "schedules vp.beta_max=-1", "beta_max must be greater than 0"),
    (2, "schedules vp.sigma_max=3", "it belongs to the kind 've'"),
    (2, "schedules f/unknown.yaml", "did you mean 'optim.lr'?"),
    (2, "schedules f/empty.yaml", "got nothing"),
    (2, ["schedules", LONG], "is too long for a path"),
    (3, "schedules --data nowhere", "'nowhere' is no known data set"),
    (3, "schedules --data d/nothing", "a folder needs at least 2"),
    (2, "schedules --seed 1.5", "--seed must be a whole number, got '1.5'"),
    (2, ["schedules", "--out", ""], "--out must be a path, got ''"),
    (2, "schedules --out x.txt", "'x.txt' ends otherwise; write --out x.png"),
    (2, "inspect digits --out x.jpg", "'x.jpg' ends otherwise; write --out x.png"),
    (2, "compare small -n 2 --out x", "'x' ends otherwise; write --out x.png"),
    (2, "paths vpp", "'vpp'"),
    (2, "paths vp.beta_max=-1", "beta_max must be greater than 0"),
    (2, "paths vp.sigma_max=3", "it belongs to the kind 've'"),
    (2, "paths --out x.txt", "'x.txt' ends otherwise; write --out x.png"),
    (5, "paths --out /proc/x.png", "choose another folder with --out"),
    (2, "predict smal", "no run 'smal'; did you mean 'small'?"),
    (2, "predict small", "td_vae"),
    (2, "predict small -n 0", "at least 1 sequence, got --number 0"),
    (2, "predict small --out x.txt", "'x.txt' ends otherwise; write --out x.png"),
    (2, "train code_prior", "a stage 'codec' of a plan"),
    (2, "train vq_vae_3", "there is no recipe 'vq_vae_3'; did you mean 'vq_vae_2'?"),
    (2, "train vq_vae_2 --samples 100", "STAGE.optim.samples=N"),
    (2, "train vq_vae_2 optim.lr=1", "begin with the name of a stage"),
    (2, "train vq_vae_2 top.optim.l=1", "stage top: unknown key 'optim.l'"),
    (2, "train edm encoding.codec.path=small", "is no autoencoder, so it cannot encode data"),
    (2, "train edm encoding.codec.path=nowhere", "there is no run 'nowhere'"),
    (2, "train edm encoding.codec.path=small augment.flip=true", "augment varies images"),
    (2, "interpolate smal", "no run 'smal'; did you mean 'small'?"),
    (2, "interpolate small -n 0", "at least 1, got 0; write --number 6"),
    (2, "interpolate small --columns 1", "columns"),
    (2, "interpolate small --between held", "--between must be 'held_out' or 'drawn'"),
    (2, "interpolate small flow.tolerance=0", "tolerance must be greater than 0"),
    (2, "interpolate small --average other", "keeps no average 'other'"),
    (2, "interpolate small --out x.txt", "'x.txt' ends otherwise; write --out x.png"),
    (2, "reconstruct smal", "no run 'smal'; did you mean 'small'?"),
    (2, "reconstruct small", "is of the kind 'diffusion', which has no codes; give a run of an"),
    (2, "reconstruct small --columns 0", "at least 1 sample, got --columns 0"),
    (2, "reconstruct small -n some", "-n must be a whole number, got 'some'"),
    (2, "reconstruct small --out x.jpg", "'x.jpg' ends otherwise; write --out x.png"),
    (2, "reconstruct small clip=true", "reconstruct takes no further word, got 'clip=true'"),
    (2, "encode", "encode needs a RUN; write ornstein encode RUN"),
    (2, "encode smal --out codes", "no run 'smal'; did you mean 'small'?"),
    (2, "encode small --out codes", "is no autoencoder, so it cannot encode data; name a run of"),
    (3, "encode small nowhere.npy --out codes", "nowhere.npy does not exist"),
    (2, "encode small --out codes --indice", "no option '--indice'; did you mean '--indices'?"),
    (2, "decode small --out pictures", "decode needs a CODES"),
    (2, "decode small codes --out pictures", "is no autoencoder, so it cannot encode data"),
    (2, "latents smal", "no run 'smal'; did you mean 'small'?"),
    (2, "latents small", "is of the kind 'diffusion', which has no codes; give a run of an"),
    (2, "latents small --columns 1", "at least 2 columns, its ends; got 1"),
    (2, "latents small --map map.txt", "'map.txt' ends otherwise; write --map map.png"),
    (5, "latents small --out /proc/x.png", "another folder with --out"),
    (2, "restore smal", "no run 'smal'; did you mean 'small'?"),
    (2, "restore small --task paint", "--task must be 'inpaint', 'superres'"),
    (2, "restore small --method mpms", "did you mean 'mmps'?"),
    (2, "restore small --task deblur --method repaint", "is for the task 'inpaint' only"),
    (2, "restore small --method reverse", "is for the task 'denoise' only"),
    (2, "restore small --mask centre", "a picture; did you mean 'center'?"),
    (2, "restore small --mask nowhere.png", "neither a kind of mask nor a picture; known: center"),
    (2, ["restore", "small", "--mask", LONG], "cannot be looked up"),
    (2, ["restore", "small", "--mask", ""], "'' is neither a kind of mask nor a picture"),
    (2, "restore small --mask d/images", "is a folder; a mask is one picture"),
    (2, "restore small --mask d/images/0.png", "is of 12 x 12 pixels"),
    (2, "restore small --mask d/one/a.png", "hides nothing"),
    (3, "restore small --mask d/torn/0.png", "cannot be read: "),
    (2, "restore small --mask random:0", "lies between 0 and 1, got '0'"),
    (2, "restore small --mask random:0.999", "hides everything"),
    (2, "restore small --mask random:some", "write --mask random:0.5"),
    (2, "restore small --mask box:0,0,8,8", "hides everything"),
    (2, "restore small --mask box:0,0,0,2", "is not inside"),
    (2, "restore small --mask box:6,6,4,4", "is not inside the run's images of 8 x 8"),
    (2, "restore small --mask box:1,2", "write --mask box:2,2,4,4"),
    (2, "restore small --task superres --mask left", "--mask belongs to the task 'inpaint'"),
    (2, "restore small --task superres --factor 3", "does not divide the sides of 8 x 8"),
    (2, "restore small --task superres --factor 1", "those that do: 2, 4, 8"),
    (2, "restore small --factor 2", "--factor belongs to the task 'superres'"),
    (2, "restore small --task deblur --width 0", "above 0 and"),
    (2, "restore small --task deblur --width 5", "at most 2.33; got 5"),
    (2, "restore small --task deblur --width nan", "at most 2.33; got nan"),
    (2, "restore small --task colorize", "needs a run on images of 3 channels, and these have 1"),
    (2, "restore small --task denoise --noise 0", "nothing to denoise; write --noise above 0"),
    (2, "restore small --noise -1", "--noise is a standard deviation of at least 0, got -1"),
    (2, "restore small --task denoise --noise 1e6", "more noise in these images than the model"),
    (2, "restore small --task edit --strength 2", "--strength lies between 0"),
    (2, "restore small --task edit --strength 0", "--strength lies between 0"),
    (2, "restore small --task edit --noise 1", "--noise is not for edit"),
    (2, "restore small --strength 0.5", "--strength belongs to --task edit"),
    (2, "restore small --degraded", "it goes with --images"),
    (2, "restore small -n 0", "got --number 0 and --draws 3"),
    (2, "restore small --draws 0", "got --number 8 and --draws 0"),
    (2, "restore small -n 1000", "180 are held out"),
    (2, "restore small --steps 0", "steps must be at least 1"),
    (2, "restore small step=jumpp", "did you mean 'jump'?"),
    (2, "restore small --task denoise step=heun", "write step=jump step.eta=1, or --draws 1"),
    (2, "restore small --average other", "keeps no average 'other'"),
    (2, "restore small --out x.jpg", "'x.jpg' ends otherwise; write --out x.png"),
    (5, "restore small --out /proc/x.png", "another folder with --out"),
    (3, "restore small --images nowhere", "nowhere does not exist; give --images a"),
    (3, "restore small --images d/nothing", "no image in d/nothing can be read"),
    (3, "restore small --images d/torn", "0.png: "),
    (4, "restore broken/no_ckpt", "has no checkpoint yet; train it first"),
    (4, "restore broken/open_recipe", "is damaged"),
    (2, "tune smal", "no run 'smal'; did you mean 'small'?"),
    (2, "tune small --nfe six", "--nfe takes whole numbers such as 6 or 5,6,8,10, got 'six'"),
    (2, "tune small --nfe 5,,6", "--nfe takes whole numbers such as 6 or 5,6,8,10, got '5,,6'"),
    (2, "tune small --nfe 0", "1 to 30 evaluations, not 0"),
    (2, "tune small --nfe 6,1000", "1 to 30 evaluations, not 1000"),
    (2, "tune small --starts 1", "at least 2 starts, and at most 10,000, got 1; write"),
    (2, "tune small --starts 100000000", "at most 10,000, got 100,000,000"),
    (2, "tune small --minutes 0", "more than 0 minutes, got 0"),
    (2, "tune small --minutes nan", "more than 0 minutes, got nan"),
    (2, "tune small step=jump", "tune takes no further word, got 'step=jump'"),
    (2, "tune small --average other", "keeps no average 'other'"),
    (4, "tune broken/no_ckpt", "has no checkpoint yet; train it first"),
    (2, "sample small --nfe 0", "at least 1 evaluation of the network, got 0"),
    (2, "sample small --nfe six", "--nfe must be a whole number, got 'six'"),
    (2, "sample small --nfe 6 --steps 6", "leave --steps out, or leave --nfe out"),
    (2, "sample small --nfe 6 step=heun", "leave step out, or leave --nfe out"),
    (2, "sample small --nfe 6 step.eta=1", "leave step.eta out, or leave --nfe out"),
    (2, "sample small step=learned", "step.rows"),
    (2, "sample small step=learned step.rows=[[1],[2]] steps=2", "must sum to 1, not to 2"),
    (2, "sample small step=learned step.rows=[[1],[1]] steps=3", "has 2 steps and the grid 3"),
    (2, "evaluate small --nfe 6 grid=karras", "leave grid out, or leave --nfe out"),
    (2, "evaluate small flow.trace=foo", "flow.trace must be 'auto', 'exact'"),
    (2, "evaluate small flow.probes=0", "probes must be at least 1"),
    (2, "evaluate small step=corrected step.predictor=renoise", "no kind 'renoise'"),
    (2, "sample small step=heun step.churn=-1", "churn must be at least 0"),
    (2, "train ncsnv2 model.process.sigma_max=0.001", "must be above sigma_min"),
    (2, "train flow objective=score_matching", "this process is pure noise"),
    (2, "train ddpm objective=score_matching objective.projections=0", "projections must be"),
    (2, "compare", "compare needs at least one RUN"),
    (2, "compare step=jump", "compare needs at least one RUN"),
    (2, "compare smal", "no run 'smal'; did you mean 'small'?"),
    (2, "compare small --steps 0", "steps must be at least 1"),
    (2, "compare small --steps 5,many", "steps must be a whole number, got 'many'"),
    (2, "compare small --steps 2.5", "steps must be a whole number, got 2.5"),
    (2, "compare small --steps 3 steps=3", "'steps' is given twice"),
    (2, "compare small --step jumpp", "did you mean 'jump'?"),
    (2, "compare small --grid trailing,karas", "did you mean 'karras'?"),
    (2, "compare small step.eta=1", "it belongs to the kind 'jump'"),
    (2, "compare small zzz=1", "unknown key 'zzz'"),
    (7, "sample small -n 10000000000000", "GiB, more than is free here; draw fewer"),
    (7, "evaluate small -n 10000000000000", "GiB, more than is free here"),
    (5, "compare small --steps 1 -n 2 --out /proc/x.png", "another folder with --out"),
    (5, "schedules --out /proc/x.png", "choose another folder with --out"),
    (5, "inspect digits --out /proc/x.png", "choose another folder with --out"),
    (2, "train ddpm model.process=cosine model.target=v generation.grid=karras", "generation: "),
    (2, "compare small --average other", "keeps no average 'other'"),
    (2, "compare small --likelihood 1.5", "--likelihood must be a whole number"),
    (4, "compare broken/open_recipe", "is damaged"),
    (4, "sample broken/thinned_recipe", "is damaged: it has no optim.batch"),
    (2, "evaluate small --split test", "--split must be 'train' or 'held_out', got 'test'"),
    (2, "evaluate small --extractor fid", "no extractor 'fid'; write --extractor classifier"),
    (2, "evaluate small --average other", "keeps no average 'other'"),
    (2, "evaluate small --likelihood -1", "a likelihood cannot be of -1 samples"),
    (2, "evaluate small --likelihood some", "--likelihood must be a whole number"),
    (4, "evaluate broken/no_ckpt", "has no checkpoint yet; train it first"),
    (2, "train ddpm --dry-run=maybe", "--dry-run must be true or false"),
    (2, "train ddpm --dry-run optim.lr=-1", "optim.lr must be greater than 0"),
    (2, "train ddpm --dry-run --samples 0", "optim.samples must be at least 1"),
    (2, "train ddpm --dry-run model.process=straight", "does not determine the clean image"),
    (2, "train edm --dry-run --run ../x", "must be a plain name, not '../x'"),
    (3, "train ddpm --dry-run --data nowhere", "'nowhere' is no known data set"),
    (4, "train edm --dry-run --run small", "made with model.network.kind='unet', not null"),
    (5, "train edm --dry-run --runs afile", "afile is not a folder"),
]


def in_words(words):
    return words if isinstance(words, list) else shlex.split(words)


def of_data(words):
    """A line of `DATA` as a command: a word for --data, or `KIND.path` and a path."""
    first, *rest = in_words(words)
    if rest:
        kind, _, key = first.partition(".")
        return ["train", "edm", f"data={kind}", f"data.{key}={rest[0]}"]
    return ["train", "edm", "--data", first]


WRONG = [
    *(
        (code, in_words(words), hint)
        for code, words, hint in [*PARSER, *RECIPES, *FILES, *RUNS, *OTHERS]
    ),
    *((code, ["train", "ddpm", *in_words(words)], hint) for code, words, hint in SETTINGS),
    *((code, of_data(words), hint) for code, words, hint in DATA),
    *((code, ["train", *in_words(words)], hint) for code, words, hint in CLASHES),
]
NOTE = re.compile(r".* is now '\w+': its other settings are the defaults|.*, the kind that has .*")


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """A cache of our own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORNSTEIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def tree(folder):
    """Every file and folder below one."""
    walked = os.walk(folder)
    return sorted(f"{at}/{name}" for at, folders, files in walked for name in (*folders, *files))


def test_the_inputs_are_many_and_distinct():
    assert len({tuple(words) for _, words, _ in WRONG}) == len(WRONG) > 400
    assert {words[0] for _, words, _ in WRONG} >= set(COMMANDS)


@pytest.mark.parametrize(("code", "words", "hint"), WRONG, ids=lambda v: repr(v)[:50])
def test_a_mistake_is_one_sentence(code, words, hint, place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    before = tree(place)
    capsys.readouterr()
    found = run(words)
    out, err = capsys.readouterr()
    *notes, sentence = err.removesuffix("\n").split("\n")
    assert found == code, err
    assert out == ""
    assert sentence.startswith("ornstein: ")
    assert hint in sentence
    assert sentence.isprintable()
    assert len(sentence) <= 410
    assert not re.search(r"[\s.,;:]$", sentence)
    assert "bug" not in sentence
    assert all(NOTE.fullmatch(line) for line in notes)
    assert tree(place) == before


@pytest.mark.parametrize(
    ("code", "words", "hint", "name", "value"),
    [
        (2, "sample small", "the device 'tpu' cannot be used", "ORNSTEIN_DEVICE", "tpu"),
        (2, "train edm --samples 64", "set ORNSTEIN_DEVICE to cpu", "ORNSTEIN_DEVICE", "meta:x"),
        (
            5,
            "train edm --data d/images",
            "set ORNSTEIN_CACHE to another",
            "ORNSTEIN_CACHE",
            "afile",
        ),
    ],
)
def test_an_environment_that_cannot_be_used(
    code, words, hint, name, value, place, capsys, monkeypatch
):
    monkeypatch.setenv(name, value)
    test_a_mistake_is_one_sentence(code, in_words(words), hint, place, capsys, monkeypatch)


def test_a_precision_that_would_be_emulated(place, capsys, monkeypatch):
    monkeypatch.setenv("ORNSTEIN_DEVICE", "cpu")
    for part in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(f"torch.cpu.{part}", lambda: False)
    words, hint = ["train", "ddpm", "optim.precision=bf16"], "write optim.precision=auto"
    test_a_mistake_is_one_sentence(2, words, hint, place, capsys, monkeypatch)


# ── What root may do all the same.


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
@pytest.mark.parametrize(
    ("code", "words", "hint", "locked"),
    [
        (2, "train f/good.yaml", "cannot be read: permission denied", "f/good.yaml"),
        (3, "train edm --data d/vectors.npy", "permission denied", "d/vectors.npy"),
        (3, "train edm --data d/images", "d/images", "d/images"),
        (5, "train ddpm --runs d/nothing", "choose a folder that you may write", "d/nothing"),
        (5, "sample small --out d/nothing", "choose a folder that you may write", "d/nothing"),
        (4, "sample broken/other_data", "missing or damaged", "broken/other_data/data.json"),
    ],
)
def test_what_may_not_be_read_or_written(code, words, hint, locked, place, capsys, monkeypatch):
    path = place / locked
    mode = path.stat().st_mode
    path.chmod(0o500 if path.name == "nothing" else 0)
    try:
        test_a_mistake_is_one_sentence(code, in_words(words), hint, place, capsys, monkeypatch)
    finally:
        path.chmod(mode)


# ── As processes of their own.


def child(*words, shell='exec "$0" "$@"', **options):
    """Exit code, output and errors of `python -m ornstein ...`, as bytes."""
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable, "-m", "ornstein", *words],
        capture_output=True,
        check=False,
        timeout=60,
        **options,
    )
    return done.returncode, done.stdout, done.stderr


def told(err, hint):
    """Whether errors are the one sentence with a hint."""
    lines = err.decode().splitlines()
    return len(lines) == 1 and lines[0].startswith("ornstein: ") and hint in lines[0]


def test_without_standard_input():
    code, out, err = child("train", "ddpm", "optim.lr=-1", shell='exec "$0" "$@" <&-')
    assert (code, out) == (2, b"")
    assert told(err, "optim.lr must be greater than 0")


def test_without_standard_output():
    assert child("recipes", shell='exec "$0" "$@" >&-') == (0, b"", b"")
    code, _, err = child("train", "dpm", shell='exec "$0" "$@" >&-')
    assert code == 2
    assert told(err, "did you mean 'ddpm'?")


def test_without_standard_error():
    assert child("train", "dpm", shell='exec "$0" "$@" 2>&-') == (2, b"", b"")


def test_output_that_nobody_reads():
    code, out, err = child("show", "ddpm", shell='("$0" "$@"; echo $? >&2) | true')
    assert (code, out) == (0, b"")
    assert err == b"0\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_output_to_a_full_disk():
    code, _, err = child("show", "ddpm", shell='exec "$0" "$@" >/dev/full')
    assert code == 5
    assert told(err, "the system refused: No space left on device")


def test_a_terminal_without_our_letters():
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code, out, err = child("train", "ddpm", "--data", "фото", env={**os.environ, **plain})
    assert (code, out) == (3, b"")
    assert told(err, "cannot be looked up")
    assert err.isascii()


def test_words_that_are_not_text():
    code, out, err = child("train", b"\xff\xfe")
    assert (code, out) == (2, b"")
    assert told(err, "there is no recipe '\\udcff\\udcfe'")
    code, _, err = child("train", "ddpm", b"\xff=1")
    assert code == 2
    assert told(err, "unknown key '\\udcff'")


def test_a_very_long_word():
    code, out, err = child("train", "ddpm", "optim.lr=" + "x" * 120_000)
    assert (code, out) == (2, b"")
    assert told(err, "optim.lr must be a number, got 'xxx")
    assert len(err) < 420


def test_without_a_home():
    homeless = {name: value for name, value in os.environ.items() if name != "HOME"}
    code, out, err = child("train", "ddpm", "--data", "~nobody-at-all/x", env=homeless)
    assert (code, out) == (3, b"")
    assert told(err, "cannot be looked up")


def test_in_a_folder_that_is_gone(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    shell = f'cd {gone} && rmdir {gone} && exec "$0" "$@"'
    code, out, err = child("sample", "small", shell=shell)
    assert (code, out) == (5, b"")
    assert told(err, "the folder that you are in is gone; change to another one")


def test_in_a_folder_that_may_not_be_written(tmp_path):
    shell = 'exec "$0" "$@"'
    if os.geteuid() == 0:  # who may write everything, so another user tries
        shell = 'exec setpriv --reuid=65534 --regid=65534 --clear-groups "$0" "$@"'
        if shutil.which("setpriv") is None or child("--version", shell=shell)[0] != 0:
            pytest.skip("no other user can run this Python")
    tmp_path.chmod(0o555)
    try:
        words = ["train", "ddpm", "--runs", str(tmp_path / "x")]
        code, out, err = child(*words, shell=shell, cwd="/")
    finally:
        tmp_path.chmod(0o755)
    assert (code, out) == (5, b"")
    assert told(err, "choose a folder that you may write with --runs")


def test_a_damaged_run_has_its_own_exit_code(place):
    code, out, err = child("sample", "broken/open_recipe", cwd=place)
    assert (code, out) == (4, b"")
    assert told(err, "recipe.yaml is damaged")
