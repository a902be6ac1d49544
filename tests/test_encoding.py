"""Data seen through a codec: what the model sees, what is kept of it, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from ornstein.autoencoders.bottlenecks import VQ, Plain
from ornstein.autoencoders.codec import Codec
from ornstein.autoencoders.likelihoods import Normal
from ornstein.choice import RunRef
from ornstein.data.sources import Digits, Toy
from ornstein.data.stream import Stream
from ornstein.encoding import Encoding, Trained, encoded
from ornstein.errors import ConfigError, DataError
from ornstein.nn.codec import ConvDecoder, ConvEncoder
from ornstein.nn.networks import UNet
from ornstein.noise import Noise
from ornstein.optim import Optim
from ornstein.recipe import Recipe, named
from ornstein.run import Run
from ornstein.training import TrainState, train

REF = RunRef(path="codec")
LATENTS, CODES = Encoding(codec=REF), Encoding(codec=REF, form="codes")


@pytest.fixture(scope="module")
def digits():
    return Digits().load()


def codec(bottleneck, info, range_=(-1.0, 1.0), name="codec", weights="a" * 64, seed=0):
    """An untrained codec of 4 numbers at 2×2 places, or of the data as they are (None)."""
    scaled = info.scaled(range_)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if bottleneck is None:
            parts = nn.Identity(), Plain().build(info.shape), nn.Identity()
            model = Codec(*parts, Normal(std=None).build(scaled), info.shape)
        else:
            latent = (4, 2, 2)
            encoder = ConvEncoder(info.shape, (8, 8, 8), 1, 4 * bottleneck.features, False)
            decoder = ConvDecoder(4, (8, 8, 8), 1, info.shape, False)
            parts = encoder, bottleneck.build(latent), decoder
            model = Codec(*parts, Normal().build(scaled), latent)
    return Trained(model.eval(), info, range_, weights, name)


def started(bottleneck=None):
    return bottleneck or VQ(codes=16, kmeans=False)


def test_an_identity_codec_is_training_on_pixels_bit_for_bit(digits, tmp_path):
    recipe = named("ddpm").but(optim=Optim(batch=16, samples=64, warmup=0))
    model = recipe.model.but(network=UNet(channels=(8,), blocks=1, middle_attention=False))
    recipe = recipe.but(model=model)
    through = Encoding(codec=REF, standardise=False)
    codes = encoded(digits, codec(None, digits.info), through, tmp_path)
    assert codes.info.shape == digits.info.shape
    np.testing.assert_array_equal(codes.train, digits.train)

    def trained(dataset):
        state = TrainState(recipe.learner(dataset.info, lambda _: None), recipe.optim)
        source = Stream(dataset, 0, recipe.objective.range)
        for _ in train(state, source, recipe.optim, 64, 0):
            pass
        noise = Noise.of(0, "generate", 3)
        how = recipe.generation.but(steps=4)
        *_, x = how(state.learner.model.eval(), recipe.at_model_scale(dataset.info), noise)
        return [*state.learner.state_dict().values(), x]

    for pixels, latents in zip(trained(digits), trained(codes), strict=True):
        assert torch.equal(pixels, latents)


def test_codes_are_what_the_codec_says(digits, tmp_path):
    given = codec(started(), digits.info)
    codes = encoded(digits, given, CODES, tmp_path)
    latents = encoded(digits, given, LATENTS, tmp_path)
    ids = np.array([5, 0, 1796])
    with torch.no_grad():
        code = given.codec.encode(given.seen(digits.x[ids]))
    assert codes.x[ids].dtype == np.int32
    assert codes.x.shape == (1797, 4)
    np.testing.assert_array_equal(codes.x[ids], code.indices.flatten(1).numpy())
    np.testing.assert_allclose(latents.x[ids], code.z.numpy(), atol=1e-6)
    assert codes.info.bins == 16
    assert codes.info.range == (0.0, 15.0)
    # Back again: the codes of a batch, as an objective that asks for native values gets them.
    batch = codes.batch(ids, None)
    again = given.latent(batch.x, "codes")
    assert torch.equal(again, given.codec.bottleneck.lookup(code.indices))
    torch.testing.assert_close(given.decode(batch.x, "codes"), given.codec.mean(again))
    assert codes.label is not None
    np.testing.assert_array_equal(codes.label, digits.label)


def test_latents_are_standardised(digits, tmp_path):
    codes = encoded(digits, codec(Plain(), digits.info), LATENTS, tmp_path)
    x = codes.batch(codes.train, (-1.0, 1.0)).x.double()
    assert abs(float(x.mean())) < 1e-5
    assert abs(float(x.std(correction=0)) - 1) < 1e-5
    scaled = codes.info.scaled((-1.0, 1.0))
    assert scaled.std == pytest.approx(1)
    wide = codec(Plain(), digits.info, weights="b" * 64)
    for parameter in wide.codec.encoder.parameters():
        parameter.data *= 3
    with pytest.raises(ConfigError, match="must be standardised"):
        encoded(digits, wide, Encoding(codec=REF, standardise=False), tmp_path)


def test_what_was_encoded_once_is_read(digits, tmp_path):
    given = codec(started(), digits.info)
    first = encoded(digits, given, CODES, tmp_path)

    def never(*_):
        raise AssertionError("encoded again")

    given.codec.encode = never
    again = encoded(digits, given, CODES, tmp_path)
    np.testing.assert_array_equal(first.x[np.arange(1797)], again.x[np.arange(1797)])
    assert again.info == first.info


def test_whatever_changes_makes_other_codes(digits, tmp_path):
    given = codec(started(), digits.info)
    found = {encoded(digits, given, CODES, tmp_path).info.fingerprint}
    found.add(encoded(digits, given, LATENTS, tmp_path).info.fingerprint)
    found.add(encoded(digits, given._replace(weights="b" * 64), CODES, tmp_path).info.fingerprint)
    found.add(encoded(digits, given._replace(range=(0, 1)), CODES, tmp_path).info.fingerprint)
    info = digits.info.model_copy(update={"fingerprint": "other"})
    other = encoded(digits._replace(info=info), given, CODES, tmp_path)
    found.add(other.info.fingerprint)
    assert len(found) == len(list((tmp_path / "encoded").iterdir())) == 5


def test_a_stale_cache_is_refused_by_name(digits, tmp_path):
    given = codec(started(), digits.info)
    encoded(digits, given, CODES, tmp_path)
    (folder,) = (tmp_path / "encoded").iterdir()
    changed = given._replace(weights="b" * 64)
    encoded(digits, changed, CODES, tmp_path)
    (other,) = {*(tmp_path / "encoded").iterdir()} - {folder}
    moved = tmp_path / "moved"
    other.rename(moved)
    folder.rename(other)  # the old codes where the new ones are looked for
    with pytest.raises(DataError, match="codec") as error:
        encoded(digits, changed, CODES, tmp_path)
    assert str(other) in str(error.value)
    assert "aaaa" in str(error.value)


def test_a_damaged_cache_is_refused_by_name(digits, tmp_path):
    given = codec(started(), digits.info)
    encoded(digits, given, CODES, tmp_path)
    (folder,) = (tmp_path / "encoded").iterdir()
    shard = min(folder.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=shard.name):
        encoded(digits, given, CODES, tmp_path)


def test_what_a_codec_cannot_see_is_refused(digits, tmp_path):
    given = codec(started(), digits.info)
    moons = Toy(name="moons", count=100).load()
    with pytest.raises(ConfigError, match=r"shape \[1, 8, 8\].*moons.*shape \[2\]"):
        encoded(moons, given, CODES, tmp_path)
    with pytest.raises(ConfigError, match="no entries of a codebook"):
        encoded(digits, codec(Plain(), digits.info), CODES, tmp_path)
    broken = codec(started(Plain()), digits.info, weights="c" * 64)
    next(broken.codec.encoder.parameters()).data.fill_(float("nan"))
    with pytest.raises(DataError, match="not finite"):
        encoded(digits, broken, LATENTS, tmp_path)
    with pytest.raises(ValueError, match="augment"):
        named("ddpm").but(encoding=LATENTS, augment={"flip": True})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of a codec, and one of a small diffusion model of its latents."""
    folder = tmp_path_factory.mktemp("runs")
    whole = named("vq_vae")
    optim = Optim(batch=32, samples=1600, warmup=0, lr=2e-3)
    made = Run.create(whole.but(optim=optim), folder, "codec")
    for _ in made.train(previews=False):
        pass
    recipe = named("ddpm").but(
        encoding=Encoding(codec=RunRef(path=str(folder / "codec"))),
        optim=Optim(batch=16, samples=64, warmup=0),
        generation=named("ddpm").generation.but(steps=3),
    )
    network = UNet(channels=(8,), blocks=1, middle_attention=False)
    latent = Run.create(recipe.but(model=recipe.model.but(network=network)), folder, "latent")
    for _ in latent.train():
        pass
    return folder


def test_a_run_of_latents_speaks_of_images(runs):
    run = Run.open("latent", runs)
    assert run.info.shape == (1, 8, 8)
    assert run.seen.shape == (16, 2, 2)
    x = run.generate(3, batch=2)
    assert x.shape == (3, 1, 8, 8)
    assert x.dtype == np.uint8
    assert x.max() <= 16
    np.testing.assert_array_equal(x[2:], run.generate(1, first=2))
    assert list((run.path / "previews").iterdir())
    assert run.finished
    # What it draws are the codec's words for latents.
    noise = Noise.of(0, "generate", 3)
    model = run.learner().model
    with torch.no_grad():
        *_, z = run.recipe.generation(model, run.recipe.at_model_scale(run.seen), noise)
        spoken = run.codec.codec.mean(z * run.seen.std + run.seen.mean)
    np.testing.assert_array_equal(run.native(spoken), x)
    with pytest.raises(ConfigError, match="codes of the data"):
        run.encode(x)


def test_a_run_of_latents_refuses_another_codec(runs, tmp_path):
    run = Run.open("latent", runs)
    run.check_references()
    codec_run = Run.open("codec", runs)
    longer = codec_run.recipe.optim.but(samples=1700)
    again = Run.create(codec_run.recipe.but(optim=longer), runs, "codec")
    kept = tmp_path / "kept"
    (runs / "codec" / "ckpt").rename(kept)
    try:
        for _ in again.train(previews=False):
            pass
        with pytest.raises(Exception, match="other weights"):
            Run.open("latent", runs).check_references()
        with pytest.raises(Exception, match="other weights"):
            Run.open("latent", runs).generate(1)
    finally:
        (runs / "codec" / "ckpt").rename(tmp_path / "new")
        kept.rename(runs / "codec" / "ckpt")
    Run.open("latent", runs).check_references()


def test_what_is_known_of_codes_is_kept(runs):
    run = Run.open("latent", runs)
    stored = json.loads((run.path / "encoded.json").read_text())
    assert tuple(stored["shape"]) == run.training_data.info.shape
    assert run.training_data.info.model_dump() == run.seen.model_dump()


def test_a_recipe_without_encoding_is_as_before():
    assert Recipe(name="x").encoding is None
    assert "encoding" not in named("ddpm").model_dump(exclude_defaults=True)
