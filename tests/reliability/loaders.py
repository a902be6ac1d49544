"""Everything that reads files, done in a child that listens for unpickling: see `test_no_code`."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ornstein.cli.request import request
from ornstein.data.images import cache_folder
from ornstein.data.sources import Digits, Folder, Parquet, Shards, Toy, recognise
from ornstein.diffusion.grid import Trailing
from ornstein.diffusion.model import Diffusion
from ornstein.diffusion.sampling import Sampling
from ornstein.diffusion.steps import Ancestral
from ornstein.errors import OrnsteinError
from ornstein.features.select import extractor_for
from ornstein.features.stored import Stored, kept
from ornstein.nn.networks import MLP, UNet
from ornstein.optim import HalfLife, Optim
from ornstein.recipe import Recipe
from ornstein.run import Run
from ornstein.scores import read

OPTIM = Optim(batch=20, samples=40, warmup=0, averages=(HalfLife(samples=60),))
RECIPE = Recipe(
    name="living",
    data=Toy(name="moons", count=100),
    model=Diffusion(network=MLP(width=8, depth=1)),
    optim=OPTIM,
    generation=Sampling(steps=2),
)
NETWORK = Diffusion(network=UNet(channels=(8,), blocks=1, middle_attention=False))
CHANGED = RECIPE.model_copy(update={"optim": OPTIM.model_copy(update={"lr": 1e-4})})
LONGER = RECIPE.model_copy(update={"optim": OPTIM.model_copy(update={"samples": 60})})


def heard() -> list[str]:
    """A list to which, from now on, every class that an unpickler looks for is added."""
    classes: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "pickle.find_class":
            classes.append(".".join(arguments))

    sys.addaudithook(hook)
    return classes


def unpickling(folder: str) -> None:
    """Show that the hook hears: unpickle something harmless."""
    import pickle
    from collections import OrderedDict

    classes = heard()
    pickle.loads(pickle.dumps(OrderedDict()))
    print(json.dumps(classes))


def train(recipe: Recipe, folder: Path, name: str = "job") -> Run:
    run = Run.create(recipe, folder, name)
    for _ in run.train(previews=False):
        pass
    return run


def living(folder: str) -> None:
    """The life of a run, and data of every kind."""
    classes, place = heard(), Path(folder)
    place.mkdir(exist_ok=True)
    run = train(RECIPE, place)
    run = train(LONGER, place)
    run = Run.open(run.path)
    run.generate(2)
    marks = RECIPE.model_copy(update={"data": Digits(), "model": NETWORK})
    pictures = train(marks, place, "marks")
    pictures.scores(16, likelihood=2, extractor="pixels")
    read(pictures.path / "scores.json")
    run = Run.create(CHANGED, place, "job")
    how = Sampling(step=Ancestral(), grid=Trailing(), steps=2)
    run.likelihood(run.dataset.x[:2], generation=how)
    for source in data(place):
        source.load()
        source.load()  # from the cache, where there is one
    for _ in range(2):  # made, and from the cache
        kept(cache_folder(), "features", {}, lambda: Stored({"x": torch.zeros(3)}, {}))
    assert classes == [], classes


def data(place: Path) -> list[Any]:
    """A source of each kind that is read from files."""
    x = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), np.uint8)
    np.save(place / "x.npy", x)
    np.savez(place / "x.npz", x=x, y=np.arange(4))
    (place / "pictures").mkdir(exist_ok=True)
    for i, pixels in enumerate(x):
        Image.fromarray(pixels).save(place / "pictures" / f"{i}.png")
    with tarfile.open(place / "x.tar", "w") as archive:
        for i in range(4):
            archive.add(place / "pictures" / f"{i}.png", f"{i}.png")
    found = [recognise(str(place / name)) for name in ("x.npy", "x.npz", "pictures", "x.tar")]
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return found
    images = []
    for pixels in x:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": None})
    pq.write_table(pa.table({"image": images}), place / "x.parquet")
    table = place / "x.parquet"
    return [*found, recognise(str(table)), Shards(path=str(table))]


def uses(run: Path) -> dict[str, tuple[Callable[[], Any], ...]]:
    """For each file of a run: what reads it."""
    opened = (lambda: Run.open(run), lambda: Run.create(RECIPE, run.parent, run.name))
    weights = (
        lambda: Run.open(run).learner(),
        lambda: Run.open(run).learner("none"),
        lambda: Run.open(run).state(),
        lambda: [*Run.create(LONGER, run.parent, run.name).train(previews=False)],
    )
    return {
        "recipe.yaml": opened,
        "data.json": opened,
        "request.yaml": (lambda: Run.create(CHANGED, run.parent, run.name),),
        "provenance.json": (lambda: Run.create(CHANGED, run.parent, run.name),),
        "scores.json": (lambda: read(run / "scores.json"), lambda: Run.open(run).scores(4)),
        "ckpt/step-00000002/model.safetensors": weights[1:],
        "ckpt/step-00000002/average-half-life-60.safetensors": (weights[0], *weights[2:]),
        "ckpt/step-00000002/optimizer.safetensors": weights[2:],
        "ckpt/step-00000002/state.json": weights,
        "ckpt/step-00000002/manifest.json": weights,
    }


def vouched(file: Path) -> None:
    """Let the manifest vouch for a file that has been put in a checkpoint."""
    path = file.parent / "manifest.json"
    manifest = json.loads(path.read_bytes())
    content = file.read_bytes()
    manifest["files"][file.name] = {
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    manifest.pop("digest")
    text = json.dumps(manifest, sort_keys=True).encode()
    manifest["digest"] = hashlib.sha256(text).hexdigest()
    path.write_text(json.dumps(manifest, indent=1))


def poisoned(folder: str) -> None:
    """Put every payload in the place of every file, and use it. Prints what came of it."""
    place = Path(folder)
    digits = Digits().load()
    source = train(RECIPE, place / "clean").path
    classes, tried, opened, wrong = heard(), 0, [], []

    def attempt(what: str, use: Callable[[], Any], refused: bool = True) -> None:
        nonlocal tried
        tried += 1
        try:
            use()
        except OrnsteinError:
            return
        except Exception as error:
            wrong.append(f"{what}: {error!r}")
            return
        if refused:
            opened.append(what)

    for payload in sorted((place / "payloads").iterdir()):
        content = payload.read_bytes()
        for name in uses(source):
            for vouch in (False, True) if name.endswith(("tensors", "state.json")) else (False,):
                for number in range(len(uses(source)[name])):
                    shutil.rmtree(place / "job", ignore_errors=True)
                    run = Path(shutil.copytree(source, place / "job"))
                    (run / name).write_bytes(content)
                    if vouch:
                        vouched(run / name)
                    told = f"{payload.name} as {name} ({number}, vouched {vouch})"
                    # A forged file without tensors is an optimizer at its start, and no code.
                    harmless = vouch and "optimizer" in name
                    attempt(told, uses(run)[name][number], refused=not harmless)
        kinds = (".npy", ".npz", ".parquet", ".tar", ".png", ".pt", ".pkl", ".safetensors", ".csv")
        for kind in (*kinds, ""):
            file = place / f"data{kind}"
            file.write_bytes(content)
            attempt(f"{payload.name} as data{kind}", lambda f=file: recognise(str(f)).load())
            file.unlink()
        pictures = place / "pictures"
        pictures.mkdir(exist_ok=True)
        for i in range(3):
            (pictures / f"{i}.png").write_bytes(content)
        attempt(f"{payload.name} as pictures", Folder(path=str(pictures)).load)
        (pictures / "train-00000-of-00001.parquet").write_bytes(content)
        attempt(f"{payload.name} as parquet", Parquet(path=str(pictures)).load)
        attempt(f"{payload.name} as shards", Shards(path=str(pictures)).load)
        shutil.rmtree(pictures)
        weights = place / "weights.safetensors"
        weights.write_bytes(content)
        attempt(
            f"{payload.name} as features",
            lambda f=weights: extractor_for(digits, choice=str(f)),
        )
        file = place / "asked.yaml"
        file.write_bytes(content)
        attempt(f"{payload.name} as a recipe", lambda f=file: request(str(f)))
        attempt(f"{payload.name} with --file", lambda f=file: request("edm", file=f))

        # What is in the cache and is no good is as good as none: it is made again.
        again = place / "again"
        again.mkdir()
        found = data(again)
        features = partial(kept, cache_folder(), "features", {}, partial(Stored, {}, {}))
        for use in (*(made.load for made in found), features):
            use()
        for cached in [*cache_folder().rglob("*")]:
            if cached.is_file():
                cached.write_bytes(content)
        for use in (*(made.load for made in found), features):
            attempt(f"{payload.name} in the cache", use, refused=False)
        shutil.rmtree(again)
    print(json.dumps({"classes": classes, "tried": tried, "opened": opened, "wrong": wrong}))
