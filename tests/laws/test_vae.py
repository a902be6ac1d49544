"""Gaussian codes against what is known exactly: linear models, whose p(x) is a Gaussian.

With x|z ~ N(W z + b, σ² I) and z ~ N(0, I), x ~ N(b, W Wᵀ + σ² I), and the posterior of z is
N(M⁻¹ Wᵀ (x − b), σ² M⁻¹) with M = Wᵀ W + σ² I (M. Tipping, C. Bishop 1999, "Probabilistic principal
component analysis").
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import distributions, nn

from ornstein.autoencoders.bottlenecks import Gaussian
from ornstein.autoencoders.bounds import nats
from ornstein.autoencoders.codec import Code, Codec
from ornstein.autoencoders.continuous import GaussianModule, PlainModule
from ornstein.autoencoders.laws import BernoulliModule, LogisticModule, NormalModule
from ornstein.autoencoders.likelihoods import Bernoulli, Logistic, Normal
from ornstein.autoencoders.model import Autoencoder
from ornstein.data.info import DataInfo
from ornstein.errors import ConfigError
from ornstein.nats import bits_per_dim
from ornstein.nn.codecnets import Dense
from ornstein.noise import Noise
from tests.helpers import f64


def vectors(size, std=1.0, **known):
    return DataInfo(
        name="test",
        kind="vector",
        shape=(size,),
        count=1,
        mean=0.0,
        std=std,
        fingerprint="",
        **known,
    )


def grey(shape=(1, 4, 4), bins=256, std=0.5):
    return DataInfo(
        name="test", kind="image", shape=shape, range=(-1, 1), bins=bins,
        count=1, mean=0.0, std=std, fingerprint="",
    )  # fmt: skip


def linear(weight, bias, std, encoder, log_variance, info=None):
    """A linear model [D, q] with q(z|x) = N(E x, e^v): the codec and its data."""
    weight, bias, encoder = (
        torch.as_tensor(v, dtype=torch.float32) for v in (weight, bias, encoder)
    )
    size, units = weight.shape
    info = info or vectors(size)
    codec = Codec(
        nn.Linear(size, 2 * units), GaussianModule((units,)), nn.Linear(units, size),
        NormalModule(info, std), (units,),
    )  # fmt: skip
    with torch.no_grad():
        codec.encoder.weight.copy_(torch.cat((encoder, torch.zeros_like(encoder))))
        codec.encoder.bias.copy_(
            torch.cat((torch.zeros(units), torch.full((units,), log_variance)))
        )
        codec.decoder.weight.copy_(weight)
        codec.decoder.bias.copy_(bias)
    return codec, info


def affine(codec):
    """W and b of a linear decoder, float64."""
    units = codec.latent[0]
    bias, *columns = codec.decode(torch.cat((torch.zeros(1, units), torch.eye(units)))).double()
    return torch.stack([column - bias for column in columns], dim=1).detach(), bias.detach()


def exact_nats(codec, x):
    """−log N(x; b, W Wᵀ + σ² I), float64 [N]."""
    weight, bias = affine(codec)
    covariance = weight @ weight.T + codec.likelihood.std.double() ** 2 * torch.eye(len(weight))
    return -distributions.MultivariateNormal(bias, covariance).log_prob(x.double()).detach()


WEIGHT = [[1.0, 0.2], [-0.5, 0.7], [0.3, 0.3]]
BIAS = [0.3, -0.2, 0.1]


def inexact(log_variance=-0.5):
    """A model whose posterior is another one."""
    return linear(WEIGHT, BIAS, 0.6, [[0.5, -0.2, 0.1], [0.1, 0.4, 0.2]], log_variance)


def again(x, count):
    """One sample [D] as `count` of them, each with noise of its own."""
    return x.repeat(count, 1), Noise.of(0, "again", count)


# --- the linear VAE is probabilistic PCA ----------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """A linear VAE at the maximum of its ELBO, and its data, N(.., ..) in five dimensions.

    The expectation over q is exact: of a quadratic, the mean over ± √q e_i is the one over N(0, I).
    """
    root = f64(np.random.default_rng(0).normal(size=(5, 5)) * [2.0, 1.5, 0.5, 0.4, 0.3])
    x = Noise.of(0, "data", 300).normal(0, (5,), torch.float64) @ root.T + f64([1, 0, -1, 0, 2.0])
    x = x.float()
    info = vectors(5, std=float(x.std()))
    torch.manual_seed(0)
    choice = Autoencoder(
        nets=Dense(hidden=()), units=2, bottleneck=Gaussian(), likelihood=Normal(std=None)
    )
    codec = choice.build(info, lambda reference: reference)
    points = math.sqrt(2) * torch.cat((torch.eye(2), -torch.eye(2)))

    def elbo():
        code = codec.encode(x)
        found = [codec.likelihood.nats(codec.decode(code.mean + code.std * p), x) for p in points]
        return torch.stack(found).mean(0) + code.kl

    search = torch.optim.LBFGS(
        codec.parameters(), max_iter=2000, history_size=50, tolerance_grad=1e-7,
        tolerance_change=0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        search.zero_grad()
        loss = elbo().mean()
        loss.backward()
        return loss

    search.step(closure)
    return codec, info, x, elbo().detach().double()


def test_a_linear_vae_reaches_the_maximum_likelihood_of_probabilistic_pca(trained):
    codec, _, x, elbo = trained
    mean, centred = x.double().mean(0), x.double() - x.double().mean(0)
    values, axes = torch.linalg.eigh(centred.T @ centred / len(x))
    noise = values[:3].mean()  # σ² is the mean of what is left out
    best = (axes[:, 3:] * (values[3:] - noise)) @ axes[:, 3:].T + noise * torch.eye(5)
    law = distributions.MultivariateNormal(mean, best.double())
    assert elbo.mean().item() == pytest.approx(-law.log_prob(x.double()).mean().item(), abs=1e-5)
    (weight, bias), std = affine(codec), codec.likelihood.std.double()
    torch.testing.assert_close(weight @ weight.T + std**2 * torch.eye(5), best, atol=1e-3, rtol=0)
    torch.testing.assert_close(bias, mean, atol=1e-3, rtol=0)


def test_the_elbo_is_tight_there(trained):
    codec, info, x, elbo = trained
    torch.testing.assert_close(elbo, exact_nats(codec, x), atol=2e-5, rtol=0)
    # q is the posterior, and every weight p(x|z) p(z)/q(z|x) is p(x): any K is exact, any draw is.
    for samples in (2, 5):
        found = nats(codec, info, x, Noise.of(0, "z", len(x)), samples)
        torch.testing.assert_close(found.total, exact_nats(codec, x), atol=5e-3, rtol=0)
        assert found.error.max() < 5e-3


# --- bounds ---------------------------------------------------------------------------------------


def test_the_kl_divergence_is_that_of_torch_and_of_draws():
    mean, std = f64([[0.7, -1.2, 0.0]]), f64([[0.3, 1.8, 1.0]])
    code = GaussianModule((3,))(torch.cat((mean, 2 * std.log()), dim=1).float())
    q, p = distributions.Normal(mean, std), distributions.Normal(0, 1)
    expected = distributions.kl_divergence(q, distributions.Normal(0 * mean, 1 + 0 * std)).sum(1)
    torch.testing.assert_close(code.kl.double(), expected, atol=1e-6, rtol=1e-6)
    z = mean + std * Noise.of(0, "z", 20_000).normal(0, (3,), torch.float64)
    ratios = (q.log_prob(z) - p.log_prob(z)).sum(1)
    assert abs(ratios.mean() - expected[0]) < 4 * ratios.std() / math.sqrt(len(z))


def test_the_elbo_misses_by_the_divergence_from_the_posterior():
    """E_q log p(x|z) − KL(q ‖ p(z)) = log p(x) − KL(q ‖ p(z|x)), the last in closed form."""
    codec, info = inexact()
    x, noise = again(torch.tensor([1.0, -0.4, 0.8]), 20_000)
    found = nats(codec, info, x, noise, 1)
    assert set(found.parts) == {"reconstruction", "kl"}
    assert not found.exact
    weight = f64(WEIGHT)
    inverse = (weight.T @ weight + 0.36 * torch.eye(2)).inverse()
    posterior = distributions.MultivariateNormal(
        inverse @ weight.T @ (x[0].double() - f64(BIAS)), 0.36 * inverse
    )
    code = codec.encode(x[:1])
    q = distributions.MultivariateNormal(
        code.mean[0].double(), torch.diag(code.std[0].double() ** 2)
    )
    gap = distributions.kl_divergence(q, posterior)
    error = found.total.std() / math.sqrt(len(x))
    assert gap > 20 * error
    assert abs(found.total.mean() - exact_nats(codec, x)[0] - gap) < 4 * error


def test_more_draws_tighten_the_bound_in_expectation():
    codec, info = inexact()
    x, noise = again(torch.tensor([1.0, -0.4, 0.8]), 4000)
    exact, before = exact_nats(codec, x)[0], math.inf
    for samples in (1, 2, 5, 20, 100):
        total = nats(codec, info, x, noise, samples).total
        error = total.std() / math.sqrt(len(x))
        assert exact - 4 * error < total.mean() < before - 4 * error
        before = total.mean()
    assert before - exact < 0.02


def test_many_draws_find_the_likelihood_and_how_well():
    codec, info = inexact(log_variance=0.0)
    x = torch.tensor([[1.0, -0.4, 0.8], [0.0, 0.0, 0.0], [-2.0, 1.0, 0.5]])
    found = nats(codec, info, x, Noise.of(0, "many", 3), 50_000)
    assert (found.error < 0.02).all()
    assert ((found.total - exact_nats(codec, x)).abs() < 4 * found.error).all()
    # Its standard error is what repetition finds.
    x, noise = again(x[0], 2000)
    found = nats(codec, info, x, noise, 500)
    assert found.error.mean().item() == pytest.approx(found.total.std().item(), rel=0.1)


def test_a_sample_and_a_draw_depend_on_their_own_noise_only():
    """In one block, in many, or alone."""
    codec, info = inexact()
    x, noise = again(torch.tensor([1.0, -0.4, 0.8]), 6)
    whole = nats(codec, info, x, noise, 23)
    for values in (1, 18, 5 * 18, 10_000):
        parted = nats(codec, info, x, noise, 23, values)
        torch.testing.assert_close(parted.total, whole.total, atol=1e-6, rtol=0)
        torch.testing.assert_close(parted.error, whole.error, atol=1e-6, rtol=0)
    alone = nats(codec, info, x[4:5], noise.of_samples(slice(4, 5)), 23)
    torch.testing.assert_close(alone.total, whole.total[4:5], atol=1e-6, rtol=0)
    assert whole.total.std() > 1e-3


@pytest.mark.parametrize(("scale", "std"), [(0.4, 0.3), (0.05, 0.04)])
def test_a_density_with_bins_finds_the_probability_of_whole_numbers(scale, std):
    """∫ over the bin of each value, as differences of the normal law: W is diagonal here."""
    info = vectors(2, range=(-1, 1), bins=17)
    width = 2 / 16
    codec, _ = linear(
        [[scale, 0], [0, scale / 2]], [0.1, -0.1], std, [[1.8, 0], [0, 2.0]], 0.0, info
    )
    x = torch.tensor([[0.125, -0.125], [0.0, 0.0]])
    spread = (f64([scale, scale / 2]).square() + std**2).sqrt()
    law = distributions.Normal(f64([0.1, -0.1]), spread)
    exact = -torch.log(law.cdf(x + width / 2) - law.cdf(x - width / 2)).sum(1)
    found = nats(codec, info, x, Noise.of(0, "bins", 2), 100_000)
    assert found.parts["bins"].tolist() == pytest.approx([-2 * math.log(width)] * 2)
    assert (found.error < 0.02).all()
    assert ((found.total - exact).abs() < 4 * found.error).all()
    # And one draw bounds it in the mean.
    many, noise = again(x[0], 4000)
    assert nats(codec, info, many, noise, 1).total.mean() > exact[0]


class Fixed(nn.Module):
    """The same outputs whatever the code."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    def forward(self, z):
        return self.out.expand(len(z), *self.out.shape)


class Nothing(nn.Module):
    """An encoder that says N(0, 1), the prior."""

    def forward(self, x):
        return x.new_zeros(len(x), 4)


@pytest.mark.parametrize("samples", [1, 7])
def test_units(samples):
    """A fair coin costs a bit. A wide density costs the share of a bin of it."""
    noise = Noise.of(0, "z", 3)
    x = 2 * noise.uniform(0, (1, 4, 4)) - 1
    std, width = 50.0, 2 / 255
    for law, bits in (
        (BernoulliModule(grey(), "random"), 1.0),
        (NormalModule(grey(), std), math.log2(std * math.sqrt(2 * math.pi) / width)),
    ):
        codec = Codec(Nothing(), GaussianModule((2,)), Fixed(torch.zeros(1, 4, 4)), law, (2,))
        total = nats(codec, grey(), x, noise, samples).total
        assert bits_per_dim(total.mean().item(), (1, 4, 4)) == pytest.approx(bits, abs=1e-3)
        plain = nats(codec, grey().model_copy(update={"bins": None}), x, noise, samples)
        assert ("bins" in plain.parts) is False


class Certain(nn.Module):
    """A code that is known for certain, of 3 nats."""

    def forward(self, h, noise=None):
        return Code(h[:, :2], kl=torch.full((len(h),), 3.0))


@pytest.mark.parametrize("samples", [1, 7])
def test_a_certain_code_has_one_bound(samples):
    law = BernoulliModule(grey(), "threshold")
    codec = Codec(Nothing(), Certain(), Fixed(torch.zeros(1, 4, 4)), law, (2,))
    found = nats(codec, grey(), torch.zeros(3, 1, 4, 4), Noise.of(0, "z", 3), samples)
    assert found.total.tolist() == pytest.approx([3 + 16 * math.log(2)] * 3)


def test_the_encoder_sees_the_binary_image():
    """Whose law it is: what it was made from is not known to whoever has the image."""
    law = BernoulliModule(vectors(2, range=(-1, 1)), "threshold")
    codec, info = linear(torch.eye(2), [0.0, 0.0], 1.0, torch.eye(2), 0.0)
    codec.likelihood = law
    found = nats(codec, info, torch.tensor([[0.3, -0.2]]), Noise.of(0, "z", 1), 1)
    assert found.parts["kl"].item() == pytest.approx(0.5 * (1 + 1))


def test_what_has_no_law_says_so():
    x, noise = torch.zeros(2, 1, 4, 4), Noise.of(0, "z", 2)
    law = BernoulliModule(grey(), "none")
    codec = Codec(Nothing(), GaussianModule((2,)), Fixed(torch.zeros(1, 4, 4)), law, (2,))
    with pytest.raises(ConfigError, match="binarise=random"):
        nats(codec, grey(), x, noise, 1)
    codec.likelihood, codec.bottleneck = NormalModule(grey(), 1.0), PlainModule((4,))
    with pytest.raises(ConfigError, match="bottleneck=gaussian"):
        nats(codec, grey(), x, noise, 1)
    with pytest.raises(ConfigError, match="no range"):
        Bernoulli().build(vectors(3))
    with pytest.raises(ConfigError, match="no whole numbers"):
        Logistic().build(vectors(3, range=(0, 1)))


# --- the laws of x --------------------------------------------------------------------------------


def test_the_normal_law_is_that_of_torch():
    x, mean = (Noise.of(i, "x", 4).normal(0, (1, 4, 4)) for i in (0, 1))
    for std in (0.5**0.5, 3.0, None):
        law = NormalModule(grey(std=0.4).model_copy(update={"bins": None}), std)
        expected = -distributions.Normal(mean, std or 0.4).log_prob(x).flatten(1).sum(1)
        torch.testing.assert_close(law.nats(mean, x), expected)
    half = NormalModule(grey(), 0.5**0.5).nats(mean, x)  # notes eq 1, up to a constant
    torch.testing.assert_close(half - half[0], _squares(mean - x) - _squares(mean - x)[0])
    drawn = law.sample(torch.full((2000, 1, 4, 4), 0.3), Noise.of(0, "x", 2000))
    assert drawn.mean().item() == pytest.approx(0.3, abs=0.01)
    assert drawn.std().item() == pytest.approx(0.4, abs=0.01)


def _squares(error):
    return error.square().flatten(1).sum(1)


def test_a_learned_std_does_not_fall_below_what_rounding_adds():
    law = NormalModule(grey(std=0.4), None)
    assert law.std.item() == pytest.approx(0.4, rel=1e-4)
    with torch.no_grad():
        law.log_std.fill_(-40.0)
    assert law.std.item() == pytest.approx(2 / 255 / math.sqrt(12), rel=1e-5)


def test_the_bernoulli_law_is_that_of_torch():
    law = BernoulliModule(grey(), "random")
    logits = 3 * Noise.of(0, "logits", 4).normal(0, (1, 4, 4))
    logits[0, 0, 0, 0], logits[1, 0, 0, 0] = 200.0, -200.0  # finite where the chance rounds to 0
    grey_x = 2 * Noise.of(1, "x", 4).uniform(0, (1, 4, 4)) - 1
    x = law.seen(grey_x, Noise.of(2, "seen", 4))
    assert set(x.unique().tolist()) == {-1.0, 1.0}
    expected = -distributions.Bernoulli(logits=logits).log_prob((x + 1) / 2).flatten(1).sum(1)
    torch.testing.assert_close(law.nats(logits, x), expected)
    torch.testing.assert_close(law.mean(logits), 2 * torch.sigmoid(logits) - 1)


def test_binary_images_are_drawn_or_cut():
    u = torch.linspace(0, 1, 5)  # of a range that is not [0, 1]
    x = (2 * u - 1).repeat(20_000, 1)
    noise = Noise.of(0, "seen", len(x))
    info = vectors(5, range=(-1, 1))
    drawn = BernoulliModule(info, "random").seen(x, noise)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert drawn.mean(0).tolist() == pytest.approx((2 * u - 1).tolist(), abs=0.03)
    assert drawn[:, [0, 4]].mean(0).tolist() == [-1.0, 1.0]  # certain at the ends
    part = slice(7, 12)
    alone = BernoulliModule(info, "random").seen(x[part], noise.of_samples(part))
    assert torch.equal(alone, drawn[part])
    cut = BernoulliModule(info, "threshold").seen(x[:1], noise.of_samples(slice(0, 1)))
    assert cut.tolist() == [[-1.0, -1.0, -1.0, 1.0, 1.0]]
    law = BernoulliModule(info, "random")
    logits = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0])
    samples = law.sample(logits.repeat(20_000, 1), noise)
    assert samples.mean(0).tolist() == pytest.approx(law.mean(logits).tolist(), abs=0.03)


VALUES = torch.linspace(-1, 1, 256, dtype=torch.float64)


def logistic(locations, scale):
    """−log P of all 256 values at each location [L], [L, 256]; the law has one scale."""
    law = LogisticModule(vectors(1, range=(-1, 1), bins=256), "channel").double()
    with torch.no_grad():
        law.log_scale.fill_(math.log(scale - 2 / 255 / 20))
    rows = [
        law.nats(torch.full((256, 1), m, dtype=torch.float64), VALUES[:, None]) for m in locations
    ]
    return law, torch.stack(rows).detach()


@pytest.mark.parametrize("scale", [0.0005, 0.01, 0.2, 30.0])
def test_the_logistic_law_adds_up_to_one_and_has_the_mass_of_its_bins(scale):
    locations = [-3.0, -1.0, 0.1234, 0.9999, 1.7]
    law, found = logistic(locations, scale)
    torch.testing.assert_close((-found).exp().sum(1), torch.ones(5, dtype=torch.float64))
    edges = torch.cat((f64([-math.inf]), (VALUES[1:] + VALUES[:-1]) / 2, f64([math.inf])))
    for m, row in zip(locations, found, strict=True):
        cumulated = torch.sigmoid((edges - m) / scale)
        torch.testing.assert_close((-row).exp(), cumulated.diff(), atol=1e-12, rtol=1e-6)
        # The mean of the law, but for rounding to w: w²/24 times the density at the ends, and up to
        # half a bin where the law is narrower than one.
        mean = ((-row).exp() * VALUES).sum()
        close = (2 / 255) ** 2 / (90 * scale) + 1e-9 if scale > 0.001 else 1 / 255
        assert abs(law.mean(f64([[m]])) - mean) < close


def test_the_logistic_law_has_a_gradient_however_far_away():
    """In single precision, where the difference of two sigmoids is 0 long before."""
    law = LogisticModule(vectors(1, range=(-1, 1), bins=256), "value")
    x = torch.tensor([[-1.0], [0.1], [1.0]]).repeat_interleave(4, 0)
    far = torch.tensor([-1e6, -30.0, 30.0, 1e6]).repeat(3)
    out = torch.stack((far, torch.full_like(far, -9.0)), dim=1).requires_grad_()
    found = law.nats(out, x)
    found.sum().backward()
    assert found.isfinite().all()
    assert out.grad.isfinite().all()
    slope = out.grad[:, 0].sign()
    assert slope.tolist() == [
        0,
        0,
        1,
        1,
        -1,
        -1,
        1,
        1,
        -1,
        -1,
        0,
        0,
    ]  # towards x, unless it is there
    expected = (far - x[:, 0]).abs() / law.law(out)[1][:, 0]
    torch.testing.assert_close(found[4:8], expected[4:8], rtol=0.01, atol=0)


def test_each_value_has_a_scale_of_its_own_where_the_decoder_says_one():
    info = grey(shape=(3, 2, 2))
    by_value, by_channel = LogisticModule(info, "value"), LogisticModule(info, "channel")
    x = VALUES[Noise.of(0, "x", 5).integers(0, 256, (3, 2, 2))].float()
    location = Noise.of(1, "m", 5).normal(0, (3, 2, 2))
    scale = torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1)
    with torch.no_grad():
        by_channel.log_scale.add_(scale)
    out = torch.cat((location, scale.expand(5, 3, 2, 2)), dim=1)
    torch.testing.assert_close(by_value.nats(out, x), by_channel.nats(location, x))
    torch.testing.assert_close(by_value.mean(out), by_channel.mean(location))
    assert Logistic(scale="value").multiplier == 2


def test_logistic_samples_are_as_likely_as_they_say():
    law, found = logistic([-0.97], 0.02)
    drawn = law.sample(f64([[-0.97]]).repeat(40_000, 1), Noise.of(0, "x", 40_000))
    place = ((drawn + 1) * 127.5).round().long()
    torch.testing.assert_close(VALUES[place], drawn)
    counts = torch.bincount(place.flatten(), minlength=256)[:12]
    expected = 40_000 * (-found[0, :12]).exp()
    assert ((counts - expected).abs() < 4.5 * expected.sqrt()).all()
