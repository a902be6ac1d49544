"""Restoring: exact where the data are Gaussian and the denoiser is; and what holds of any run."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ornstein import Run, problems, restoration
from ornstein.baselines import Moments
from ornstein.cli import run as command
from ornstein.diffusion.denoiser import Denoiser
from ornstein.diffusion.prediction import X0
from ornstein.diffusion.process import VE
from ornstein.diffusion.steps import Heun, Jump
from ornstein.errors import ConfigError, DataError

TINY = ["model.network=unet", "model.network.channels=[8,16]", "optim.batch=32", "optim.warmup=0"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A run on digits after a few updates."""
    runs = tmp_path_factory.mktemp("runs")
    words = ["train", "edm", "--samples", "320", "--run", "small", "--runs", str(runs)]
    assert command([*words, "--no-previews", *TINY]) == 0
    return Run.open("small", runs)


class Exact(nn.Module):
    """E[x0 | x] of Gaussian data, as a network that is told ¼ ln σ."""

    def __init__(self, mean, covariance):
        super().__init__()
        self.mean = mean.flatten().float()
        values, self.modes = torch.linalg.eigh(covariance.float())
        self.values = values.clamp(min=0)

    def forward(self, scaled, label, cond):
        std = torch.exp(4 * label).unsqueeze(1)
        x = scaled.flatten(1) * (std**2 + 1).sqrt()  # the scale of the input at σ_d = 1
        gain = self.values / (self.values + std**2)
        x0 = self.mean + ((x - self.mean) @ self.modes * gain) @ self.modes.T
        return x0.view_as(scaled)


@pytest.fixture
def gaussian(tiny, monkeypatch):
    """The run with a Gaussian law of its data that is known to model and baselines alike, well
    within the range, so that nothing is clipped."""
    place = torch.arange(8, dtype=torch.float64)
    line = torch.exp(-(place[:, None] - place).abs() / 3)
    covariance = 0.15**2 * torch.kron(line, line)
    mean = 0.2 * torch.sin(torch.arange(64, dtype=torch.float64)).view(1, 8, 8)
    known = Moments(mean, covariance, torch.ones(1, 8, 8, dtype=torch.float64))
    model = Denoiser(Exact(mean, covariance), VE(sigma_min=0.002, sigma_max=10), X0(), "log_sigma")
    run = Run.open(tiny.path)
    monkeypatch.setattr(run, "learner", lambda average="": SimpleNamespace(model=model))
    monkeypatch.setattr(restoration, "known_of", lambda run: known)
    monkeypatch.setattr(restoration, "ITERATIONS", 64)
    root = torch.linalg.cholesky(covariance)
    z = torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = mean + (z @ root.T).view(2, 1, 8, 8)
    return run, covariance, 8 * (x.numpy() + 1)  # in native values, 0 to 16


def posterior_variance(covariance, problem):
    """diag(C − C Aᵀ (A C Aᵀ + s² I)⁻¹ A C), [64]; in native units."""
    measurement = problem.measurement
    units = torch.eye(64, dtype=torch.float64).view(64, 1, 8, 8)
    matrix = measurement(units).flatten(1).T
    of_y = matrix @ covariance @ matrix.T + measurement.std**2 * torch.eye(len(matrix))
    gain = covariance @ matrix.T @ torch.linalg.inv(of_y)
    return 64 * (covariance - gain @ matrix @ covariance).diagonal()


@pytest.mark.parametrize(
    ("task", "noise", "method"),
    [("inpaint", 0.4, "mmps"), ("superres", 0.4, "mmps"), ("denoise", 1.0, "reverse")],
)
def test_draws_of_gaussian_data_have_the_posterior_law(gaussian, task, noise, method):
    """Mean and variance of many draws are those of the conditional Gaussian, which is what the
    best linear estimate is; and so is what the network says of mere noise."""
    run, covariance, x = gaussian
    problem = problems.problem(run, task, noise=noise)
    y = restoration.degraded(run, problem, x)
    second = {"kind": "multistep", "field": "x0", "eta": 1, "order": 2}  # of weak order 2
    how = restoration.sampler(run).but(steps=60, grid={"kind": "log_snr"}, step=second)
    count = 300
    found = restoration.restored(
        run, problem, y, x, method=method, draws=count, generation=how, batch=600
    )
    exact = found.others["best linear"]
    variance = posterior_variance(covariance, problem).view(1, 8, 8).numpy()
    z = (found.average - exact) / np.sqrt(variance / count)
    assert np.abs(z).max() < 5
    assert 0.8 < np.square(z).mean() < 1.25
    assert found.draws.var(axis=1).mean() == pytest.approx(variance.mean(), rel=0.05)
    # A draw is as far from the truth again, on average, as the best estimate is.
    errors = np.square(found.draws - x[:, None]).mean(axis=(1, 2, 3, 4))
    least = np.square(exact - x).mean(axis=(1, 2, 3)) + variance.mean()
    np.testing.assert_allclose(errors, least, rtol=0.1)
    if method == "reverse":
        np.testing.assert_allclose(found.mean, exact, rtol=0, atol=2e-3)
    else:
        assert found.mean is None


@pytest.mark.parametrize("task", ["inpaint", "superres", "deblur", "denoise"])
def test_an_image_does_not_depend_on_the_others(tiny, task):
    problem = problems.problem(tiny, task)
    how = restoration.sampler(tiny).but(steps=4)
    three, one = problems.held_out(tiny, 3), problems.held_out(tiny, 1)
    assert three.names[:1] == one.names
    found = []
    for inputs, draws, batch in ((three, 2, 64), (one, 1, 64), (three, 2, 4)):
        y = restoration.degraded(tiny, problem, inputs.x)
        found.append(
            restoration.restored(
                tiny, problem, y, inputs.x, draws=draws, generation=how, batch=batch
            )
        )
    np.testing.assert_allclose(found[1].draws[0, 0], found[0].draws[0, 0], rtol=0, atol=5e-3)
    np.testing.assert_allclose(found[2].draws, found[0].draws, rtol=0, atol=5e-3)
    assert np.abs(found[0].draws[0, 0] - found[0].draws[0, 1]).max() > 0.02
    assert found[0].draws.shape == (3, 2, 1, 8, 8)
    assert 0 <= found[0].draws.min() <= found[0].draws.max() <= 16
    y = restoration.degraded(tiny, problem, one.x)
    other = restoration.restored(tiny, problem, y, one.x, draws=1, seed=1, generation=how)
    assert np.abs(other.draws - found[1].draws).max() > 0.1


@pytest.mark.parametrize("method", ["mmps", "pigdm", "dps", "repaint"])
def test_what_was_seen_is_kept(tiny, method):
    """Where there is next to no noise, known pixels are as they were; RePaint's to the last bit."""
    problem = problems.problem(tiny, "inpaint", mask="random:0.3", noise=0.01)
    inputs = problems.held_out(tiny, 2)
    y = restoration.degraded(tiny, problem, inputs.x)
    found = restoration.restored(tiny, problem, y, inputs.x, method=method, draws=1)
    seen = problem.measurement.mask.numpy()[0]
    difference = np.abs(found.draws[:, 0, 0] - found.given[:, 0])
    # DPS guides in proportion to a single length, and does not reach every pixel.
    assert difference[:, seen].max() < {"repaint": 1e-4, "dps": 3.0}.get(method, 0.1)
    assert difference[:, ~seen].max() > 1


def test_psnr():
    problem = SimpleNamespace(task="denoise")
    truth = np.zeros((2, 1, 4, 4))
    draws = np.stack([truth + 1, truth - 1], axis=1)
    found = restoration.Restored(problem, truth + 2, draws, {"half": truth + 0.5}, None, truth, 10)
    np.testing.assert_allclose(found.psnr(found.draws), [20, 20])
    np.testing.assert_allclose(found.psnr(found.given), 20 - 20 * np.log10(2))
    assert found.psnr(found.average).min() == pytest.approx(120)  # the most that is told apart
    ahead = restoration.lead(found)
    assert ahead.baseline == "half"
    assert ahead.value == pytest.approx(120 - 20 - 20 * np.log10(2))
    assert ahead.error == 0
    unknown = found._replace(truth=None)
    with pytest.raises(ConfigError, match="not known"):
        unknown.psnr(draws)
    assert unknown.best == "half"
    assert found._replace(others={}).best is None
    assert restoration.lead(found._replace(others={})) is None
    value, error = restoration.mean_and_error(np.array([1.0, 3.0]))
    assert (value, error) == (2, 1)


def test_edits_are_between_the_image_and_any(tiny):
    x = problems.held_out(tiny, 3).x
    how = tiny.recipe.generation.but(steps=8)
    distances = []
    for strength in (0.02, 0.3, 1.0):
        edits = restoration.edited(tiny, x, strength, draws=2, generation=how)
        assert edits.shape == (3, 2, 1, 8, 8)
        distances.append(np.sqrt(np.square(edits - x[:, None]).mean()))
    assert distances[0] < 0.2
    assert distances[0] < distances[1] < distances[2]
    for strength in (0, -1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match="--strength lies between 0"):
            restoration.edited(tiny, x, strength, generation=how)


def test_draws_have_fresh_noise_unless_told_otherwise(tiny):
    assert restoration.sampler(tiny).step == Jump(eta=1)
    assert restoration.sampler(tiny).grid == tiny.recipe.generation.grid
    problem = problems.problem(tiny, "denoise")
    y = restoration.degraded(tiny, problem, problems.held_out(tiny, 1).x)
    how = restoration.sampler(tiny).model_copy(update={"step": Heun()})
    with pytest.raises(ConfigError, match="all draws from one image would be the same"):
        restoration.restored(tiny, problem, y, generation=how)
    assert restoration.restored(tiny, problem, y, generation=how, draws=1).draws.shape[1] == 1
    loud = problems.problem(tiny, "denoise", noise=1e4)
    with pytest.raises(ConfigError, match="more noise in these images than the model"):
        restoration.restored(tiny, loud, y)
    with pytest.raises(ConfigError, match="at least 1 draw"):
        restoration.restored(tiny, problem, y, draws=0)


def test_data_that_is_gone_leaves_the_simplest(tiny, monkeypatch):
    def gone(run):
        raise DataError("gone")

    monkeypatch.setattr(restoration, "known_of", gone)
    for task, names in (("inpaint", ["harmonic"]), ("superres", ["bicubic"]), ("deblur", [])):
        problem = problems.problem(tiny, task)
        shape = restoration.shape_of(tiny, problem)
        assert list(restoration.baselines(tiny, problem, torch.zeros(1, *shape))) == names


# ── Masks and inputs.


def test_masks_in_words():
    def hidden(word, size=(4, 6)):
        seen = problems.mask_of(word, size)
        assert seen.shape == (1, *size)
        return (1 - seen[0]).int().tolist()

    assert hidden("left") == [[1, 1, 1, 0, 0, 0]] * 4
    assert hidden("right") == [[0, 0, 0, 1, 1, 1]] * 4
    assert hidden("top") == [[1] * 6] * 2 + [[0] * 6] * 2
    assert hidden("bottom") == [[0] * 6] * 2 + [[1] * 6] * 2
    assert hidden("center") == [[0] * 6, [0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0] * 6]
    assert hidden("box:1,2,3,1") == [[0] * 6] + [[0, 0, 1, 0, 0, 0]] * 3
    assert np.sum(hidden("random:0.25")) == 6
    assert hidden("random:0.5") != hidden("left")
    assert (
        problems.mask_of("random:0.5", (8, 8), 1) != problems.mask_of("random:0.5", (8, 8))
    ).any()


def test_a_mask_in_a_picture_is_white_where_pixels_are_missing(tiny, tmp_path):
    pixels = np.zeros((8, 8), np.uint8)
    pixels[2:4, 1:] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    problem = problems.problem(tiny, "inpaint", mask=str(tmp_path / "mask.png"))
    assert torch.equal(problem.measurement.mask[0], torch.from_numpy(pixels == 0))


def test_noise_is_in_native_units(tiny):
    """0 ... 16 becomes −1 ... 1, so that 0.8 becomes 0.1."""
    assert problems.problem(tiny, "deblur", noise=0.8).measurement.std == pytest.approx(0.1)
    assert problems.problem(tiny, "deblur").noise == pytest.approx(0.16)
    assert problems.problem(tiny, "denoise").noise == pytest.approx(3.2)


def test_images_of_ones_own(tiny, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    for name, image in zip("bac", pixels, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    (tmp_path / "0.png").write_text("no picture")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    found = problems.read(tiny, tmp_path, 3)
    assert found.names == ("a.png", "b.png")  # the first three, of which one cannot be read
    assert [bad.path for bad in found.bad] == ["0.png"]
    np.testing.assert_allclose(found.x[:, 0], pixels[[1, 0]] / 255 * 16)
    assert problems.read(tiny, tmp_path / "c.png", 8).x.shape == (1, 1, 8, 8)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    # What is degraded already is smaller, for super-resolution.
    problem = problems.problem(tiny, "superres")
    shape = restoration.shape_of(tiny, problem)
    small = problems.read(tiny, tmp_path / "c.png", 1, shape)
    assert small.x.shape == (1, 1, 4, 4)
    y = restoration.as_measured(tiny, problem, small.x)
    np.testing.assert_allclose(y, small.x / 8 - 1, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match=r"no image in .*0\.png can be read"):
        problems.read(tiny, tmp_path / "0.png", 8)
