"""`ornstein encode` and `decode`: folders of images to shards of codes and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ornstein.autoencoders.bottlenecks import VQ
from ornstein.autoencoders.moments import moments
from ornstein.cli import run as ornstein
from ornstein.data.encoded import read, write
from ornstein.data.sources import Arrays, Digits, Folder
from ornstein.errors import ConfigError
from ornstein.latent_moments import latent_moments
from ornstein.nn.codecnets import Conv
from ornstein.optim import Optim, Power
from ornstein.recipe import named
from ornstein.run import Run
from ornstein.transcoding import file_names


def trained(folder, data, bottleneck=None, name="codec", updates=12):
    """A first stage of 8 × 8 grey images after a few updates, codes of 2 × 4 × 4."""
    recipe = named("autoencoder_kl")
    changed = {} if bottleneck is None else {"bottleneck": bottleneck}
    recipe = recipe.but(
        data=data,
        model=recipe.model.but(nets=Conv(channels=(8, 8), flat=False), units=2, **changed),
        optim=Optim(batch=16, samples=16 * updates, warmup=0, averages=(Power(width=0.1),)),
    )
    run = Run.create(recipe, folder / "runs", name=name)
    for _ in run.train(previews=False):
        pass
    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """37 grey images of 8 × 8 pixels under names of every kind, in folders."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(37):
        path = folder / ("cats" if n % 2 else "dogs") / f"{n:02d} ü.v{n % 3}.png"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, photos):
    """A folder with the runs of a Gaussian codec and of one with a codebook, of the photos."""
    folder = tmp_path_factory.mktemp("place")
    trained(folder, Folder(path=str(photos)))
    trained(folder, Folder(path=str(photos)), VQ(codes=16), "vq")
    return folder


def snapshot(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def go(place, *words):
    return ornstein([*map(str, words), "--runs", str(place / "runs")])


@pytest.mark.parametrize(("name", "flag"), [("codec", []), ("vq", []), ("vq", ["--indices"])])
def test_there_and_back_is_reconstruction(place, photos, tmp_path, name, flag, capsys):
    """What is decoded is, pixel for pixel, what the run reconstructs, under the same names; and
    the photos are left alone."""
    before = snapshot(photos)
    codes, out = tmp_path / "codes", tmp_path / "deep" / "out"
    assert go(place, "encode", name, photos, "--out", codes, *flag) == 0
    said = capsys.readouterr().out
    assert go(place, "decode", name, codes, "--out", out) == 0
    assert snapshot(photos) == before
    run = Run.open(place / "runs" / name)
    dataset = run.dataset
    wanted = run.reconstruct(np.array(dataset.x[:]))
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*.png"))
    assert files == sorted(dataset.names)
    for file, one in zip(dataset.names, wanted, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(out / file)), one[0])
    x, about = read(codes)
    assert list(x.names()) == list(dataset.names)
    assert about["codec"] == run.weights()
    if flag:
        assert x.shape == (37, 16)
        assert x.dtype == np.int32
        assert "37 samples, codes of 16" in said
    else:
        np.testing.assert_allclose(x[:], run.encode(np.array(dataset.x[:])), rtol=1e-5, atol=1e-5)
        assert "37 samples, latents of 2 × 4 × 4; over the training split their mean is" in said
        assert about["moments"]["std"] == latent_moments(run).std


def test_the_same_command_finds_what_is_there(place, photos, tmp_path, capsys):
    words = ("encode", "codec", photos, "--out", tmp_path / "codes")
    assert go(place, *words) == 0
    before = snapshot(tmp_path)
    assert go(place, *words) == 0
    assert "was there already" in capsys.readouterr().out
    assert snapshot(tmp_path) == before
    assert go(place, "encode", "vq", photos, "--out", tmp_path / "codes") == 5
    assert "holds other codes: codec " in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert go(place, "encode", "codec", photos, "--out", tmp_path / "mine") == 5
    assert go(place, "decode", "codec", tmp_path / "codes", "--out", tmp_path / "mine") == 5
    assert "exists; write to another folder with --out" in capsys.readouterr().err
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    assert snapshot(tmp_path / "codes") == before


def test_another_codec_is_refused_by_name(place, photos, tmp_path, capsys):
    assert go(place, "encode", "codec", photos, "--out", tmp_path / "codes") == 0
    assert go(place, "decode", "vq", tmp_path / "codes", "--out", tmp_path / "out") == 3
    said = capsys.readouterr().err
    first, second = (Run.open(place / "runs" / name).weights()[:12] for name in ("codec", "vq"))
    assert f"was made with the codec {first} of run 'codec', not with {second} of run 'vq'" in said
    # Other weights of the same run are another codec, too.
    words = ("decode", "codec", tmp_path / "codes", "--out", tmp_path / "out", "--average", "none")
    assert go(place, *words) == 3
    assert not (tmp_path / "out").exists()


def test_a_damaged_shard_is_named_and_nothing_is_left(place, photos, tmp_path, capsys):
    assert go(place, "encode", "codec", photos, "--out", tmp_path / "codes") == 0
    shard = tmp_path / "codes" / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 16
    shard.write_bytes(content)
    assert go(place, "decode", "codec", tmp_path / "codes", "--out", tmp_path / "out") == 3
    assert "shard-00001.safetensors is damaged" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_a_kill_leaves_no_half_of_a_folder(place, photos, tmp_path, monkeypatch):
    from ornstein import pictures

    assert go(place, "encode", "codec", photos, "--out", tmp_path / "codes") == 0
    made = []

    def failing(*given):
        if len(made) == 20:
            raise KeyboardInterrupt
        made.append(given)
        return Image.new("L", (8, 8))

    monkeypatch.setattr(pictures, "single", failing)
    assert go(place, "decode", "codec", tmp_path / "codes", "--out", tmp_path / "out") == 130
    assert [path.name for path in tmp_path.iterdir()] == ["codes"]


def test_data_unlike_the_codec_s_and_runs_of_others_are_refused(place, photos, tmp_path, capsys):
    out = ("--out", tmp_path / "codes")
    assert go(place, "encode", "codec", "digits", *out) == 2  # 0 to 16
    assert "with range [0.0, 255.0], and those of digits have range [0.0, 16.0]" in (
        capsys.readouterr().err
    )
    assert go(place, "encode", "codec", photos, "--indices", *out) == 2
    assert "no entries of a codebook" in capsys.readouterr().err
    assert go(place, "encode", "codec", tmp_path / "none", *out) == 3
    assert not (tmp_path / "codes").exists()


def test_larger_colour_photos_are_read_at_the_codec_s_size(place, tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "photos").mkdir()
    for n in range(3):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{n}.bmp")
    assert go(place, "encode", "codec", tmp_path / "photos", "--out", tmp_path / "codes") == 0
    assert read(tmp_path / "codes")[0].shape == (3, 2, 4, 4)
    assert go(place, "decode", "codec", tmp_path / "codes", "--out", tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "1.png", "2.png"]


def test_the_own_data_and_arrays_have_numbers_for_names(tmp_path):
    trained(tmp_path, Digits())
    assert go(tmp_path, "encode", "codec", "--out", tmp_path / "codes") == 0
    assert len(read(tmp_path / "codes")[0]) == 1797
    codes, about = read(tmp_path / "codes")
    assert list(codes.names()) == []
    assert about["name"] == "digits"
    names = [str(name) for name in file_names(iter(()), 101)]
    assert names[:2] + names[-1:] == ["000.png", "001.png", "100.png"]


def test_vectors_have_codes_but_no_pictures(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((40, 5), np.float32))
    recipe = named("autoencoder").but(data=Arrays(path=str(tmp_path / "x.npy")))
    recipe = recipe.but(optim=Optim(batch=16, samples=32, warmup=0))
    run = Run.create(recipe, tmp_path / "runs", name="codec")
    for _ in run.train(previews=False):
        pass
    assert go(tmp_path, "encode", "codec", "--out", tmp_path / "codes") == 0
    assert go(tmp_path, "decode", "codec", tmp_path / "codes", "--out", tmp_path / "out") == 2
    assert "Run.decode gives them as numbers" in capsys.readouterr().err


def test_names_of_strangers_stay_in_their_folder():
    given = ["../../etc/passwd", "/a/b.jpg", "a/b.JPG", "..", "C:\\x.png", "", "a/b", "x\0y.gif"]
    given += ["train.parquet row 1", "train.parquet row 2", "A/B.png", "v1.2", "é" * 400 + ".png"]
    found = list(map(str, file_names(iter(given), len(given))))
    assert found[:-1] == [
        "etc/passwd.png",
        "a/b.png",
        "a/b-2.png",
        "image.png",
        "C__x.png",
        "image-2.png",
        "a/b-3.png",
        "x_y.png",
        "train.parquet row 1.png",
        "train.parquet row 2.png",
        "A/B-4.png",
        "v1.2.png",
    ]
    assert len(found[-1].encode()) < 255


def test_moments_are_those_of_all_numbers_and_of_channels(place):
    run = Run.open(place / "runs" / "codec")
    found = latent_moments(run)
    dataset = run.dataset
    z = run.encode(dataset.x[dataset.train]).astype(np.float64)
    assert found.samples == len(dataset.train)
    assert found.mean == pytest.approx(z.mean(), rel=1e-5)
    assert found.std == pytest.approx(z.std(), rel=1e-5)
    np.testing.assert_allclose(found.channel_mean, z.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.channel_std, z.std((0, 2, 3)), rtol=1e-5)
    codec = run.learner().model
    a, b = run.info.affine((-1, 1))
    x = torch.from_numpy(dataset.x[dataset.train].astype(np.float32)) * a + b
    for sizes in ([5, 1, 27], [len(x)]):
        parts = moments(codec, torch.split(x[: sum(sizes)], sizes))
        np.testing.assert_allclose(parts[1:3], moments(codec, [x[: sum(sizes)]])[1:3], rtol=1e-6)


def test_moments_are_kept_for_their_weights(place, monkeypatch):
    run = Run.open(place / "runs" / "codec")
    found = latent_moments(run)
    path = run.path / "latents.json"
    assert json.loads(path.read_text())["weights"] == run.weights()
    with monkeypatch.context() as patch:
        patch.setattr("ornstein.latent_moments.moments", None)  # it would fail if it were asked
        assert latent_moments(Run.open(run.path)) == found
    other = latent_moments(run, "none")
    assert other != found
    path.write_text("{")
    assert latent_moments(run) == found


def test_runs_without_codes_are_refused(tmp_path):
    recipe = named("ddpm").but(data=Digits(), optim=Optim(batch=4, samples=4, warmup=0))
    run = Run.create(recipe, tmp_path)
    for _ in run.train(previews=False):
        pass
    with pytest.raises(ConfigError, match="no autoencoder"):
        latent_moments(run)


def test_codes_beyond_a_codebook_are_refused(place, photos, tmp_path, capsys):
    assert go(place, "encode", "vq", photos, "--indices", "--out", tmp_path / "codes") == 0
    x, about = read(tmp_path / "codes")
    for name, part in (("much", x[:] + 16), ("less", x[:] - 16)):
        write(tmp_path / name, about, [part])
        assert go(place, "decode", "vq", tmp_path / name, "--out", tmp_path / "out") == 3
        assert "codes that no codebook of run vq has" in capsys.readouterr().err
    write(tmp_path / "other", about, [x[:][:, :-1]])
    assert go(place, "decode", "vq", tmp_path / "other", "--out", tmp_path / "out") == 3
    assert "holds codes int32 [15], and those of run vq are [16]" in capsys.readouterr().err
