"""Plans: stages in order, each a run; what is skipped, gone on with, or refused by name."""

from __future__ import annotations

import hashlib
import shutil

import pytest

from ornstein import plan as plans
from ornstein.choice import RunRef
from ornstein.cli import run
from ornstein.encoding import Encoding
from ornstein.errors import CheckpointError, ConfigError
from ornstein.plan import Plan, Stage, resolved
from ornstein.recipe import named
from ornstein.run import Run

TEXT = """\
name: tiny
stages:
  codec:
    recipe: vq_vae
    model: {nets: {kind: conv, channels: [4, 8], flat: false}, units: 4, bottleneck: {codes: 8}}
    optim: {batch: 32, samples: 640, warmup: 0}
  latent:
    recipe: ddpm
    encoding: {codec: {path: "stage:codec"}}
    model: {network: {kind: unet, channels: [8], blocks: 1, middle_attention: false}}
    optim: {batch: 16, samples: 160, warmup: 0}
    generation: {steps: 3}
"""


def tiny() -> Plan:
    latent = named("ddpm").but(encoding=Encoding(codec=RunRef(path="stage:codec")))
    stages = Stage(name="codec", recipe=named("vq_vae")), Stage(name="latent", recipe=latent)
    return Plan(name="tiny", stages=stages)


def hashes(folder):
    """SHA-256 of the tensors of the last checkpoint of each stage."""
    found = {}
    for stage in sorted(path.parent for path in folder.glob("*/recipe.yaml")):
        last = max((stage / "ckpt").glob("step-*"))
        for path in last.glob("*.safetensors"):
            found[f"{stage.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(TEXT)
    return path


def train(file, folder, *words):
    return run(["train", str(file), "--run", "p", "--runs", str(folder), *words])


def test_words_go_to_their_stages():
    asked = resolved(tiny(), None, ["codec.optim.lr=5e-4", "seed=7", "latent.optim.batch=8"])
    codec, latent = (stage.recipe for stage in asked.plan.stages)
    assert codec.optim.lr == 5e-4
    assert latent.optim.batch == 8
    assert codec.seed == latent.seed == 7
    assert latent.optim.lr == named("ddpm").optim.lr
    assert asked.provenance["codec"]["optim.lr"] == "command line"
    assert asked.provenance["latent"]["optim.lr"] == "recipe"


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("optim.lr=1e-3", "begin with the name of a stage"),
        ("codex.optim.lr=1e-3", "did you mean 'codec'"),
        ("codec.optim.l=1e-3", "stage codec: unknown key .optim.l.*did you mean"),
        ("name=x", "begin with the name of a stage"),
    ],
)
def test_a_word_for_no_stage_is_refused(word, wanted):
    with pytest.raises(ConfigError, match=wanted):
        resolved(tiny(), None, [word])


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("name: x\nstages: {}\n", "one stage or more"),
        ("stages: [1]\n", "stages is a section of stages"),
        ("name: Two Words\nstages: {codec: {recipe: vq_vae}}\n", "name.*Two Words"),
        ("stages: {My Codec: {recipe: vq_vae}}\n", "small letters.*My Codec"),
        ("stages: {optim: {recipe: vq_vae}}\n", "not like a setting"),
        ("stages: {codec: {recipe: vq_va}}\n", "did you mean 'vq_vae'"),
        ("stages: {codec: {}}\n", "there is no recipe ''"),
        ("data: digits\nstages: {codec: {recipe: vq_vae}}\n", "no 'data'"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(text, wanted, tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=wanted):
        resolved(None, path)


def test_a_plan_is_in_order():
    later = tiny().stages[::-1]
    with pytest.raises(ValueError, match="'latent' builds on 'codec', which is no stage before"):
        Plan(name="tiny", stages=later)
    twice = (tiny().stages[0], tiny().stages[0])
    with pytest.raises(ValueError, match="two stages 'codec'"):
        Plan(name="tiny", stages=twice)
    with pytest.raises(ValueError, match="not like a setting"):
        Stage(name="optim", recipe=named("vq_vae"))


def test_a_plan_is_read_back(tmp_path, file):
    asked = resolved(None, file)
    placed = asked.plan.placed(tmp_path / "p")
    plans.keep(placed, tmp_path / "p")
    again = plans.read(tmp_path / "p")
    assert again == placed
    assert again.last.recipe.encoding.codec.path == str((tmp_path / "p" / "codec").resolve())
    assert resolved(None, file, ["seed=1"]).plan.run_name() != asked.plan.run_name()
    assert asked.plan.run_name().startswith("tiny-digits-")
    (tmp_path / "p" / "plan.yaml").write_text("name: tiny\n")
    with pytest.raises(CheckpointError, match=r"plan.yaml is damaged"):
        plans.read(tmp_path / "p")


def test_every_plan_of_the_library_is_whole():
    for name in plans.names():
        plan = plans.named(name)
        assert plan.name == name
        assert plans.about(name)
        assert resolved(plan).plan == plan


def test_a_plan_is_trained_skipped_and_drawn_from(tmp_path, file, capsys):
    assert train(file, tmp_path) == 0
    first = hashes(tmp_path / "p")
    assert {name.split("/")[0] for name in first} == {"codec", "latent"}
    told = capsys.readouterr().err
    assert "stage 1 of 2: codec" in told
    assert "stage 2 of 2: latent" in told
    assert train(file, tmp_path) == 0
    assert capsys.readouterr().err.count("is finished") == 2
    assert hashes(tmp_path / "p") == first
    assert run(["sample", "p", "--runs", str(tmp_path), "-n", "4"]) == 0
    assert list((tmp_path / "p" / "latent" / "samples").glob("grid-*.png"))
    assert Run.open("p", tmp_path).path == tmp_path / "p" / "latent"
    assert Run.open("p/codec", tmp_path).path == tmp_path / "p" / "codec"
    assert run(["runs", "--runs", str(tmp_path)]) == 0
    assert "p/latent" in capsys.readouterr().out
    assert run(["show", "p", "--runs", str(tmp_path)]) == 0
    assert "  latent:" in capsys.readouterr().out


def test_a_longer_codec_makes_a_later_stage_refuse(tmp_path, file, capsys):
    assert train(file, tmp_path) == 0
    capsys.readouterr()
    assert train(file, tmp_path, "codec.optim.samples=704") == 4
    told = capsys.readouterr().err
    assert "stage latent" in told
    assert "other weights" in told
    assert str(tmp_path / "p" / "latent") in told
    (tmp_path / "p" / "latent").rename(tmp_path / "old")
    assert train(file, tmp_path, "codec.optim.samples=704") == 0


def test_a_missing_stage_is_trained_again_to_the_bit(tmp_path, file):
    assert train(file, tmp_path) == 0
    whole = hashes(tmp_path / "p")
    shutil.rmtree(tmp_path / "p" / "codec")
    assert train(file, tmp_path) == 0
    assert hashes(tmp_path / "p") == whole


def test_a_damaged_stage_is_named(tmp_path, file, capsys):
    assert train(file, tmp_path) == 0
    for path in (tmp_path / "p" / "codec" / "ckpt").glob("step-*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])
    for path in (tmp_path / "p" / "codec" / "ckpt").glob("step-*/average*"):
        path.write_bytes(path.read_bytes()[:-7])
    capsys.readouterr()
    assert run(["sample", "p", "--runs", str(tmp_path)]) == 4
    assert "codec" in capsys.readouterr().err


def test_without_its_last_stage_a_plan_draws_nothing(tmp_path, file, capsys):
    assert train(file, tmp_path) == 0
    shutil.rmtree(tmp_path / "p" / "latent")
    assert run(["sample", "p", "--runs", str(tmp_path)]) == 4
    told = capsys.readouterr().err
    assert "no run of its last stage 'latent'" in told


def test_data_of_another_shape_than_a_codec_has_seen(tmp_path, file, capsys):
    assert train(file, tmp_path) == 0
    capsys.readouterr()
    words = ["latent.data.kind=shapes", "latent.data.count=50"]
    assert run(["train", str(file), "--run", "q", "--runs", str(tmp_path), *words]) == 2
    told = capsys.readouterr().err
    assert "shape [1, 8, 8]" in told
    assert "shapes" in told


def test_a_rehearsal_shows_every_stage(tmp_path, file, capsys):
    assert train(file, tmp_path, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "# stage codec" in out
    assert "# stage latent" in out
    assert "once stage codec is trained" in out
    assert not (tmp_path / "p").exists()
    assert run(["train", str(file), "--minutes", "1", "--runs", str(tmp_path)]) == 2
    assert "STAGE.optim.minutes" in capsys.readouterr().err
