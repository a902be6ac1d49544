"""Reconstructions, traversals and maps of known codecs, and of runs after a few updates."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

from ornstein import Run, latents
from ornstein.autoencoders.codec import Codec
from ornstein.autoencoders.continuous import GaussianModule, PlainModule
from ornstein.autoencoders.laws import NormalModule
from ornstein.cli import run as command
from ornstein.errors import ConfigError
from ornstein.metrics.codes import usage
from ornstein.metrics.reconstruction import MOST


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of a few updates on digits, one for each kind of code."""
    folder = tmp_path_factory.mktemp("runs")
    for recipe in (
        "vae",
        "autoencoder",
        "denoising_autoencoder",
        "vq_vae",
        "fsq_vae",
        "vq_vae_2_codec",
        "edm",
    ):
        words = ["train", recipe, "--samples", "256", "--run", recipe, "--runs", str(folder)]
        more = ["model.network.channels=[8,16]"] if recipe == "edm" else []
        assert command([*words, "--no-previews", "optim.batch=64", "optim.warmup=0", *more]) == 0
    return folder


class Picked(nn.Module):
    """Features that are chosen pixels at the model's scale, times `gain`, and a log variance."""

    def __init__(self, pixels, gain=1.0, std=None):
        super().__init__()
        self.pixels, self.gain, self.std = pixels, gain, std

    def forward(self, x):
        h = self.gain * x.flatten(1)[:, self.pixels]
        return h if self.std is None else torch.cat([h, 2 * self.std.log().expand_as(h)], dim=1)


class Put(nn.Module):
    """An image with each unit, divided by `gain`, at its pixel, and black elsewhere."""

    def __init__(self, pixels, gain=1.0):
        super().__init__()
        self.pixels, self.gain = pixels, gain

    def forward(self, z):
        x = torch.full((len(z), 64), -1.0)
        x[:, self.pixels] = z / self.gain
        return x.view(-1, 1, 8, 8)


def known(runs, name, monkeypatch, pixels, gain=1.0, std=None):
    """A run with a codec that copies pixels."""
    run = Run.open(name, runs)
    size = (len(pixels),)
    kind = PlainModule(size) if std is None else GaussianModule(size)
    law = NormalModule(run.recipe.at_model_scale(run.info), 1.0)
    model = Codec(Picked(pixels, gain, std), kind, Put(pixels, gain), law, size).eval()
    monkeypatch.setattr(run, "learner", lambda average="": SimpleNamespace(model=model))
    return run


EVERY = torch.arange(64)


def test_what_is_copied_comes_back(runs, monkeypatch):
    run = known(runs, "autoencoder", monkeypatch, EVERY)
    found = latents.reconstructions(run, shown=4)
    assert np.array_equal(found.back, found.x)
    assert found.x.shape == (4, 1, 8, 8)
    assert found.given is None
    assert found.psnr.tolist() == [MOST] * 180
    torch.testing.assert_close(found.ssim, torch.ones(180, dtype=torch.float64))
    assert sorted(found.codes.ids) == sorted(run.dataset.held_out)
    # Half of the pixels are lost: what is left of the error is theirs, in closed form.
    half = known(runs, "autoencoder", monkeypatch, EVERY[:32])
    lost = latents.reconstructions(half, 50, shown=50)
    errors = np.square(lost.x.reshape(50, 64)[:, 32:].astype(float)).sum(1) / 64
    np.testing.assert_allclose(lost.psnr.numpy(), 10 * np.log10(256 / errors), rtol=1e-12)
    assert lost.numbers()["PSNR, dB"].value == pytest.approx(float(lost.psnr.mean()))


def test_a_run_says_the_same_wherever_it_is_asked(runs):
    """As `Run.reconstruct`, which `evaluate` measures."""
    run = Run.open("vae", runs)
    found = latents.reconstructions(run, shown=180)
    assert np.array_equal(found.back, run.reconstruct(found.x))
    score = run.scores(1000, likelihood=0).reconstruction
    assert score.count == len(found.psnr) == 180
    for name, of in (("PSNR, dB", score.psnr), ("SSIM", score.ssim)):
        ours = found.numbers()[name]
        assert (ours.value, ours.low, ours.high) == pytest.approx((of.value, of.low, of.high))
    codes = latents.codes(run)
    torch.testing.assert_close(codes.z, found.codes.z)


def test_corruption_is_a_sample_s_own(runs):
    """Half of the pixels are masked, the same ones whatever else is asked for."""
    run = Run.open("denoising_autoencoder", runs)
    found = latents.reconstructions(run, shown=180)
    masked = (found.given != found.x).mean() / (found.x > 0).mean()
    assert masked == pytest.approx(0.5, abs=0.03)
    assert np.isin(found.given[found.given != found.x], 0).all()
    few = latents.reconstructions(run, 3, shown=2)
    assert np.array_equal(few.given, found.given[:2])
    assert np.array_equal(few.codes.ids, found.codes.ids[:3])
    torch.testing.assert_close(few.psnr, found.psnr[:3], rtol=0, atol=0.3)  # rounded to whole ones
    assert float(found.given_psnr.mean()) < 12
    other = latents.reconstructions(run, 180, seed=1, shown=180)
    assert not np.array_equal(other.codes.ids, found.codes.ids)
    order = np.argsort(found.codes.ids), np.argsort(other.codes.ids)
    assert not np.array_equal(other.given[order[1]], found.given[order[0]])


@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_plain_units_move_about_their_mean(runs, monkeypatch, gain):
    """Units are pixels: each row changes one, to mean ± 2 deviations within what was seen."""
    run = known(runs, "autoencoder", monkeypatch, EVERY, gain)
    codes = latents.codes(run)
    found = latents.traversals(run, codes, columns=5)
    assert list(found.marks) == ["-2", "-1", "0", "1", "2"]
    assert np.array_equal(found.back, found.x)
    pixels = run.dataset.x[codes.ids].reshape(180, 64).astype(float)
    order = np.argsort(-pixels.std(0, ddof=1), kind="stable")[:10]
    assert [name.split(":")[0] for name, _ in found.rows] == [f"unit {i}" for i in order]
    for unit, (_, images) in zip(order, found.rows, strict=True):
        expected = np.repeat(found.x.reshape(1, 64), 5, axis=0).astype(float)
        way = pixels[:, unit].mean() + np.arange(-2, 3) * pixels[:, unit].std(ddof=1)
        expected[:, unit] = np.rint(way.clip(pixels[:, unit].min(), pixels[:, unit].max()))
        assert np.array_equal(images.reshape(5, 64), expected)


def test_gaussian_units_move_through_their_prior(runs, monkeypatch):
    """Active units alone, the costliest first; −2 to 2 is what the decoder gets."""
    pixels = torch.tensor([20, 27, 0, 35])  # the third is black in all digits
    std = torch.tensor([0.5, 0.1, 1.0, 0.02])
    run = known(runs, "vae", monkeypatch, pixels, gain=0.5, std=std)
    codes = latents.codes(run)
    x = run.dataset.x[codes.ids].reshape(180, 64)[:, pixels].astype(float)
    mean = 0.5 * (x / 8 - 1)
    kl = 0.5 * (mean**2 + std.numpy() ** 2 - 1) - np.log(std.numpy())
    np.testing.assert_allclose(codes.kl, kl.mean(0), rtol=1e-5)
    found = latents.traversals(run, codes, columns=5)
    names = [f"unit {u}: {kl.mean(0)[u]:.2f} nats" for u in (3, 1, 0)]
    assert [name for name, _ in found.rows] == names
    for unit, (_, images) in zip((3, 1, 0), found.rows, strict=True):
        values = images.reshape(5, 64)[:, pixels[unit]]
        assert values.tolist() == np.clip(8 * (np.arange(-2, 3) / 0.5 + 1), 0, 16).tolist()
        others = np.delete(images.reshape(5, 64), pixels[unit], axis=1)
        assert (others == np.delete(found.back.reshape(64), pixels[unit])).all()


def test_a_code_that_says_nothing_has_one_row(runs, monkeypatch):
    run = known(runs, "vae", monkeypatch, torch.tensor([0, 56]), gain=1e-3, std=torch.ones(2))
    assert len(latents.traversals(run, latents.codes(run)).rows) == 1


@pytest.mark.parametrize("kind", ["vae", "autoencoder"])
def test_the_plane_of_two_units_is_decoded_at_even_quantiles(runs, monkeypatch, kind):
    """Of the prior, or of a Gaussian with the codes' moments; up is up."""
    pixels, gain = torch.tensor([27, 35]), 2.0
    std = torch.full((2,), 0.3) if kind == "vae" else None
    run = known(runs, kind, monkeypatch, pixels, gain, std)
    codes = latents.codes(run)
    found = latents.latent_map(run, codes, side=5)
    assert found.axes == ("unit 0", "unit 1")
    np.testing.assert_array_equal(found.points, codes.z.numpy())
    np.testing.assert_array_equal(found.label, run.dataset.label[codes.ids])
    at = Normal(0.0, 1.0).icdf(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    middle, spread = (0.0, 1.0) if kind == "vae" else (codes.z.mean(0), codes.z.std(0))
    z = middle + at.view(5, 1) * spread * torch.ones(2)
    if kind == "autoencoder":
        z = z.clamp(codes.z.amin(0), codes.z.amax(0))
    values = (8 * (z / gain + 1)).clamp(0, 16).round().numpy()
    decoded = found.decoded.reshape(5, 5, 64)
    for row in range(5):
        np.testing.assert_array_equal(decoded[row, :, 27], values[:, 0])
        np.testing.assert_array_equal(decoded[:, row, 35], values[::-1, 1])


def test_more_units_are_mapped_by_cost_or_by_variance(runs, monkeypatch):
    std = torch.tensor([0.5, 0.1, 0.02])
    run = known(runs, "vae", monkeypatch, torch.tensor([20, 27, 35]), std=std)
    codes = latents.codes(run)
    found = latents.latent_map(run, codes)
    assert [axis.split(":")[0] for axis in found.axes] == ["unit 2", "unit 1"]
    np.testing.assert_array_equal(found.points, codes.z[:, [2, 1]].numpy())
    assert found.decoded is None
    run = known(runs, "autoencoder", monkeypatch, EVERY)
    found = latents.latent_map(run, latents.codes(run))
    assert found.axes[0].startswith("first principal component: ")


def test_principal_components_are_those_of_the_covariance():
    z = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 8)
    points, shares = latents.principal(z + 5)
    values, vectors = np.linalg.eigh(np.cov((z + 5).double().numpy().T))
    np.testing.assert_allclose(np.cov(points.numpy().T), np.diag(values[:-3:-1]), atol=1e-10)
    np.testing.assert_allclose(shares, values[:-3:-1] / values.sum())
    for i in (1, 2):
        weights = vectors[:, -i] * np.sign(vectors[np.abs(vectors[:, -i]).argmax(), -i])
        np.testing.assert_allclose(points[:, i - 1], (z - z.mean(0)).numpy() @ weights, atol=1e-5)


@pytest.mark.parametrize(("name", "entries"), [("vq_vae", 128), ("fsq_vae", None)])
def test_codebooks_are_counted_over_all_that_is_held_out(runs, name, entries):
    run = Run.open(name, runs)
    codes = latents.codes(run)
    (found,) = latents.codebooks(codes).values()
    entries = entries or math.prod(run.recipe.model.bottleneck.levels)
    model = run.learner().model
    x = run.dataset.batch(run.dataset.held_out, run.recipe.objective.range).x
    indices = model.encode(x).indices
    assert found == usage(indices, entries)
    assert found.codes == indices.numel() == 180 * math.prod(model.latent[1:])
    for refused in (latents.traversals, latents.latent_map):
        with pytest.raises(ConfigError, match=f"`ornstein reconstruct {name}` says how"):
            refused(run, codes)


def test_each_level_has_its_codebook(runs):
    run = Run.open("vq_vae_2_codec", runs)
    codes = latents.codes(run)
    found = latents.codebooks(codes)
    top, bottom = codes.indices[:, :1], codes.indices[:, 1:]
    assert found == {"top": usage(top, 128), "bottom": usage(bottom, 128)}
    assert (found["top"].codes, found["bottom"].codes) == (180, 180 * 4)
    with pytest.raises(ConfigError, match=r"entries of a codebook \(hierarchy\)"):
        latents.traversals(run, codes)


def test_names_of_units_and_what_is_refused(runs):
    assert latents.unit_name(5, (8,)) == "unit 5"
    assert latents.unit_name(17, (4, 2, 3)) == "unit 2 at (1, 2)"
    edm, vae = Run.open("edm", runs), Run.open("vae", runs)
    for refused in (latents.codec, latents.codes, latents.reconstructions):
        with pytest.raises(ConfigError, match="'diffusion', which has no codes"):
            refused(edm)
    with pytest.raises(ConfigError, match="at least 2 samples, got 1"):
        latents.codes(vae, 1)
    with pytest.raises(ConfigError, match="181 held-out samples were asked for, and 180 are"):
        latents.codes(vae, 181)
    codes = latents.codes(vae, 2)
    with pytest.raises(ConfigError, match="at least 2 columns"):
        latents.traversals(vae, codes, columns=1)
    assert latents.codebooks(codes) == {}
    with pytest.raises(ConfigError, match="codes of one number"):
        latents.latent_map(vae, codes._replace(z=codes.z[:, :1]))
