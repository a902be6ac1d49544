"""A network behind a denoiser: what it is shown, and that its target does not matter."""

import math

import pytest
import torch
from torch import nn

from ornstein.diffusion.denoiser import Denoiser, bind
from ornstein.diffusion.levels import level_at
from ornstein.diffusion.prediction import X0, Eps, V
from ornstein.diffusion.process import VE, VP, Cosine, Straight
from ornstein.errors import ConfigError
from ornstein.nn.cond import NO_COND, Cond
from ornstein.noise import Noise
from tests.helpers import PAIRS, PROCESSES, TARGETS, Truth, f64, gaussian_data


class Recorder(nn.Module):
    """A network that keeps what it was shown and answers zero."""

    def forward(self, x, label, cond):
        self.x, self.label, self.cond = x, label, cond
        return torch.zeros_like(x)


def batch(n=4, dtype=torch.float64):
    return Noise.of(0, "batch", n).normal(0, (3,), dtype)


@pytest.mark.parametrize(("target", "process"), PAIRS)
def test_a_network_that_knows_the_truth_makes_the_oracle(target, process):
    """Whatever the target, the denoiser around its exact value is the oracle itself."""
    oracle, goal, path = gaussian_data(), TARGETS[target], PROCESSES[process]
    levels = [level_at(path, t) for t in (max(path.smallest, 0.002), 0.3, 0.7, 1.0)]
    denoise = bind(Denoiser(Truth(oracle, goal, path, levels, 0.8), path, goal, sigma_data=0.8))
    for level in levels:
        x = batch() * math.hypot(level.alpha, level.sigma)
        ours, exact = denoise(x, level), oracle(x, level)
        slack = 1e-9 * (1 + level.sigma / max(level.alpha, 1e-3))
        torch.testing.assert_close(ours.x0, exact.x0, rtol=1e-9, atol=slack)
        torch.testing.assert_close(ours.eps, exact.eps, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_the_network_sees_unit_variance_and_the_level_as_a_label(process, sigma_data):
    """c_in = 1/√(σ² + σ_d² α²) and 1000 t, with one level for all or one for each."""
    path, network = PROCESSES[process], Recorder()
    denoiser = Denoiser(network, path, X0(), sigma_data=sigma_data)
    t = f64([0.04, 0.3, 0.77, 1.0])
    level = level_at(path, t)
    scale = torch.sqrt(level.sigma**2 + sigma_data**2 * level.alpha**2)
    denoiser(batch(), level)
    torch.testing.assert_close(network.x, batch() / scale.unsqueeze(1))
    torch.testing.assert_close(network.label, (1000 * t).float())
    for b in range(4):
        denoiser(batch(), level_at(path, t[b].item()))
        torch.testing.assert_close(network.x, batch() / scale[b])
        torch.testing.assert_close(network.label, (1000 * t[b]).float().expand(4))


def test_vp_inputs_are_not_scaled_and_ve_inputs_are_edms():
    network = Recorder()
    Denoiser(network, VP(), Eps())(batch(), level_at(VP(), 0.4))
    torch.testing.assert_close(network.x, batch(), rtol=1e-14, atol=0)
    edm = VE(sigma_min=0.002, sigma_max=80)
    level = level_at(edm, 0.6)
    Denoiser(network, edm, V(), sigma_data=0.5)(batch(), level)
    torch.testing.assert_close(network.x, batch() / math.sqrt(level.sigma**2 + 0.25))


@pytest.mark.parametrize("process", [VP(), VE(sigma_min=0.002, sigma_max=80)])
def test_edms_label_is_a_quarter_of_log_sigma(process):
    network = Recorder()
    denoiser = Denoiser(network, process, V(), label="log_sigma")
    for t in (0.1, 0.5, 1.0):
        level = level_at(process, t)
        denoiser(batch(), level)
        expected = math.log(level.sigma / level.alpha) / 4
        assert network.label.tolist() == pytest.approx([expected] * 4, rel=1e-6)
    denoiser(batch(2), level_at(process, f64([0.2, 0.9])))
    expected = [math.log(k.sigma / k.alpha) / 4 for k in (level_at(process, t) for t in (0.2, 0.9))]
    assert network.label.tolist() == pytest.approx(expected, rel=1e-6)


def test_the_condition_passes_through():
    network = Recorder()
    denoiser = Denoiser(network, VP(), Eps())
    cond = Cond(vector=torch.ones(4, 2))
    bind(denoiser, cond)(batch(), level_at(VP(), 0.4))
    assert network.cond is cond
    bind(denoiser)(batch(), level_at(VP(), 0.4))
    assert network.cond is NO_COND


def test_float32_in_float32_out_whatever_the_network_says():
    class Half(Recorder):
        def forward(self, x, label, cond):
            return x.bfloat16()

    level = level_at(VP(), f64([0.1, 0.2, 0.5, 0.9]))
    prediction = Denoiser(Half(), VP(), V())(batch(dtype=torch.float32), level)
    assert prediction.x0.dtype == prediction.eps.dtype == torch.float32
    torch.testing.assert_close(prediction.at(level), batch(dtype=torch.float32))


def test_inadmissible_choices_are_refused_when_they_are_made():
    for path in (Straight(), Cosine()):
        with pytest.raises(ConfigError, match="eps"):
            Denoiser(Recorder(), path, Eps())
        with pytest.raises(ConfigError, match="label=time"):
            Denoiser(Recorder(), path, V(), label="log_sigma")
