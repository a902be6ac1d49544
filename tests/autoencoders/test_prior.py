"""Priors over codes: laws that sum to one, a known entropy that is reached, draws by the law."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from ornstein.autoencoders.code_drawing import CodeDrawing
from ornstein.autoencoders.discrete import Level
from ornstein.autoencoders.prior import CodePrior, PixelCNN
from ornstein.autoencoders.prior_model import CodePriorModule
from ornstein.choice import RunRef
from ornstein.data.info import Batch, DataInfo
from ornstein.errors import ConfigError
from ornstein.nn.layers import key_dropout
from ornstein.noise import Noise
from ornstein.objectives.base import Context
from ornstein.objectives.codes import Codes
from ornstein.recipe import Recipe, named
from tests.nn.test_networks import perturbed

SMALL = PixelCNN(channels=8, layers=2, head_width=4, dropout=0.0)
TOP, FINE = Level(3, (1, 2)), Level(2, (2, 3))


def info_of(count: int, most: int, classes: int = 0) -> DataInfo:
    return DataInfo(
        name="codes",
        kind="vector",
        shape=(count,),
        range=(0.0, most - 1.0),
        bins=most,
        classes=tuple(map(str, range(classes))),
        count=100,
        mean=1.0,
        std=1.0,
        fingerprint="",
    )


def prior(
    *levels: Level,
    classes: int = 0,
    given: CodePriorModule | None = None,
    network: PixelCNN = SMALL,
    random: bool = True,
) -> CodePriorModule:
    torch.manual_seed(len(levels))
    made = CodePriorModule(levels, network, classes, given, "")
    if random:
        perturbed(made)
        with torch.no_grad():  # so that nothing is nearly even
            made.network.head[-1].weight *= 4
    return made.double().eval()


def every(*levels: Level) -> Tensor:
    """All codes of some levels, flat [N, P]."""
    places = [range(one.codes) for one in levels for _ in range(one.places)]
    return torch.tensor(list(itertools.product(*places)))


@pytest.mark.parametrize(
    ("top_classes", "classes"), [(0, 0), (2, 2), (2, 0)], ids=["none", "both", "top"]
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_law_of_two_levels_sums_to_one(top_classes, classes, temperature):
    top = prior(TOP, classes=top_classes)
    both = prior(TOP, FINE, classes=classes, given=top)
    k = every(TOP, FINE)
    parts = both.parts(k.float(), None, temperature)
    assert sum(parts).neg().exp().sum().item() == pytest.approx(1, abs=1e-6)
    # Each level, too: p(k_fine | k_top) for every k_top.
    fine = parts[1].neg().exp().view(len(every(TOP)), -1).sum(1)
    torch.testing.assert_close(fine, torch.ones_like(fine), atol=1e-6, rtol=0)
    torch.testing.assert_close(parts[0][:: 2**6], top.parts(every(TOP), None, temperature)[0])
    if top_classes:
        known = torch.stack([sum(both.parts(k, y, temperature)) for y in (0, 1)])
        mixed = known.neg().exp().mean(0).log().neg()
        torch.testing.assert_close(sum(parts), mixed)
        assert (known[0] - known[1]).abs().min() > 0


def frequencies(flat: Tensor, options: Tensor) -> Tensor:
    """How often each row of `options` is among the rows of `flat`."""
    index = {tuple(row): i for i, row in enumerate(options.tolist())}
    found = torch.tensor([index[tuple(row)] for row in flat.tolist()])
    return found.bincount(minlength=len(options)).double()


@pytest.mark.parametrize("label", [None, 1])
def test_joint_draws_have_the_law(label):
    """Two levels of 1 and 2 places, classes known to both: 18 codes, by Pearson's chi-square, whose
    mean is 17 and whose standard deviation is 5.8."""
    coarse, fine = Level(2, ()), Level(3, (1, 2))
    top = prior(coarse, classes=2)
    both = prior(coarse, fine, classes=2, given=top)
    drawn = both.draw(Noise.of(0, "draw", 8_000), label)
    assert drawn.shape == (8_000, 3)
    options = every(coarse, fine)
    law = sum(both.parts(options, label)).neg().exp()
    counts = frequencies(drawn, options)
    assert ((counts - 8_000 * law).square() / (8_000 * law)).sum() < 17 + 5 * 5.8
    cooled = both.draw(Noise.of(1, "draw", 8_000), label, 0.5)
    law = sum(both.parts(options, label, 0.5)).neg().exp()
    counts = frequencies(cooled, options)
    assert ((counts - 8_000 * law).square() / (8_000 * law)).sum() < 17 + 5 * 5.8


def test_coarser_codes_are_those_that_their_own_run_draws():
    """By name of noise, so that a sample's coarse codes do not depend on what comes after them."""
    top = prior(TOP, classes=2)
    both = prior(TOP, FINE, classes=2, given=top)
    noise = Noise.of(5, "draw", 7)
    assert torch.equal(both.draw(noise)[:, : TOP.places], top.draw(noise))


def test_draws_are_the_same_in_any_batch():
    both = prior(TOP, FINE, classes=2, given=prior(TOP, classes=2))
    whole = both.draw(Noise.of(0, "draw", 6))
    assert torch.equal(both.draw(Noise.of(0, "draw", [5, 2])), whole[[5, 2]])


def test_finer_codes_are_not_looked_at():
    top = prior(TOP)
    k = every(TOP, FINE)
    torch.testing.assert_close(top.parts(k)[0], top.parts(k[:, : TOP.places])[0])


def chain(count: int, places: int, noise: Noise) -> Tensor:
    """Codes of a Markov chain along the raster, int64 [count, places]."""
    reached, marks = CHAIN.cumsum(1), noise.uniform(0, (places, 1), torch.float64)
    found = [(START.cumsum(0) < marks[:, 0]).sum(1)]
    for p in range(1, places):
        found.append((reached[found[-1]] < marks[:, p]).sum(1))
    return torch.stack(found, 1).clamp(max=2)


START = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
CHAIN = torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.1, 0.8], [0.4, 0.5, 0.1]], dtype=torch.float64)


def test_training_reaches_the_entropy_of_a_known_chain():
    """Codes of 2 × 3 places that go on from one place of the raster to the next, over the ends of
    rows, too. All 729 are enumerated: the excess over the entropy is a divergence, free of noise,
    never negative; and pairs of neighbours are drawn as often as the chain has them."""
    level = Level(3, (2, 3))
    model = prior(level, network=PixelCNN(channels=16, layers=2, dropout=0.0), random=False)
    model.float().train()
    objective = Codes().build(model, info_of(6, 3), None)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    steps = 100
    for step in range(steps):
        noise = Noise.of(0, "train", 256).at(step)
        batch = Batch(chain(256, 6, noise).float(), torch.arange(256))
        loss = objective(model, batch, Context(step, step / steps, noise))
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimizer.zero_grad()
        loss.per_sample.mean().backward()
        optimizer.step()
    model.eval()
    k = every(level)
    log_p = START.log()[k[:, 0]] + sum(CHAIN.log()[k[:, p - 1], k[:, p]] for p in range(1, 6))
    p = log_p.exp()
    assert p.sum().item() == pytest.approx(1)
    (nats,) = model.parts(k.float())
    assert nats.neg().exp().sum().item() == pytest.approx(1, abs=1e-5)
    entropy = -(p * log_p).sum()
    assert 0 <= (p * nats).sum() - entropy < 0.01
    assert entropy < 4.5 < 6 * math.log(3)  # far from even
    drawn = model.draw(Noise.of(1, "draw", 4000))
    marginal = START
    for place in range(1, 6):
        pairs = (drawn[:, place - 1] * 3 + drawn[:, place]).bincount(minlength=9) / 4000
        law = (marginal[:, None] * CHAIN).flatten()
        assert (pairs - law).abs().max() < 0.035  # more than four standard errors
        marginal = marginal @ CHAIN


def test_the_objective_is_the_likelihood_of_its_level():
    top = prior(TOP, classes=2)
    both = prior(TOP, FINE, classes=2, given=top)
    k, label = every(TOP, FINE)[::50], torch.arange(12) % 2
    objective = Codes().build(both, info_of(8, 3, 2), None)
    assert objective.range is None
    noise = Noise.of(0, "train", len(k))
    loss = objective(both, Batch(k.float(), torch.arange(len(k)), label), Context(0, 0.0, noise))
    assert loss.per_sample.dtype == torch.float32
    expected = torch.stack([both.parts(k, y)[1] for y in (0, 1)]).gather(0, label[None])[0]
    torch.testing.assert_close(loss.per_sample.double(), expected, atol=1e-5, rtol=1e-5)
    total, count = loss.metrics["bits/code"]
    nats, samples = loss.metrics["nats"]
    assert (count, samples) == (len(k) * FINE.places, len(k))
    assert total / count == pytest.approx(nats / samples / FINE.places / math.log(2))
    loss.per_sample.sum().backward()
    assert all(p.grad is not None for p in both.parameters())
    assert all(p.grad is None for p in top.parameters())
    assert all(name.startswith("network.") for name in both.state_dict())


@pytest.mark.parametrize("wrong", [math.nan, -1.0, 3.0, 0.5, math.inf])
def test_what_is_no_code_has_no_likelihood(wrong):
    top = prior(TOP)
    k = every(TOP)[:3].double()
    k[1, 1] = wrong
    assert top.nats(k, None).isnan().tolist() == [False, True, False]


def test_without_training_a_code_costs_log_k():
    both = prior(TOP, FINE, given=prior(TOP, random=False), random=False)
    found = CodeDrawing().likelihood(
        both, info_of(8, 3), every(TOP, FINE)[:5].float(), Noise.of(0, "likelihood", 5)
    )
    assert found.exact
    assert list(found.parts) == ["codes of level 0", "codes of level 1"]
    expected = 2 * math.log(3) + 6 * math.log(2)
    torch.testing.assert_close(found.total, torch.full((5,), expected).double(), rtol=1e-6, atol=0)


def test_drawing_yields_flat_codes_and_takes_classes_that_exist():
    both = prior(TOP, FINE, classes=2, given=prior(TOP, classes=2))
    noise = Noise.of(0, "draw", 4)
    info = info_of(8, 3, 2)
    (codes,) = CodeDrawing(label=1)(both, info, noise)
    assert codes.dtype == torch.float32
    assert torch.equal(codes.long(), both.draw(noise, 1))
    with pytest.raises(ConfigError, match=r"0 to 1; got generation\.label=2"):
        next(CodeDrawing(label=2)(both, info, noise))
    with pytest.raises(ConfigError, match=r"write generation\.label=null"):
        next(CodeDrawing(label=0)(prior(TOP), info, noise))
    assert CodeDrawing(temperature=0.9, label=3).words == "codes of class 3 at temperature 0.9"
    assert CodeDrawing(temperature=0.9, label=3).stem == "codes-class3-t0.9"


def test_dropout_is_keyed_and_off_outside_of_training():
    model = prior(TOP, network=SMALL.but(dropout=0.5)).train()
    k = every(TOP)
    key_dropout(model, Noise.of(0, "dropout", len(k)))
    first = model.nats(k, None)
    assert torch.equal(first, model.nats(k, None))
    assert not torch.equal(first, model.eval().nats(k, None))


# What is chosen


def codec(*levels: Level) -> Any:
    return SimpleNamespace(bottleneck=SimpleNamespace(levels=levels))


def built(choice: CodePrior, info: DataInfo, runs: dict[str, Any]) -> CodePriorModule:
    return choice.build(info, lambda reference: runs[reference.path])


C, T = RunRef(path="codec"), RunRef(path="top")


def test_a_prior_is_built_for_the_levels_of_its_codec():
    runs = {"codec": codec(TOP, FINE)}
    choice = CodePrior(codec=C, network=SMALL).fitted(info_of(8, 3, 2))
    assert choice.classes is True
    top = runs["top"] = built(choice, info_of(8, 3, 2), runs)
    assert (top.levels, top.classes, top.given) == ((TOP,), 2, None)
    fine = built(CodePrior(codec=C, level=1, given=T, network=SMALL), info_of(8, 3, 2), runs)
    assert (fine.levels, fine.given) == ((TOP, FINE), top)
    assert fine.eval().draw(Noise.of(0, "draw", 2)).shape == (2, 8)
    free = built(CodePrior(codec=C, network=SMALL, classes=False), info_of(8, 3, 2), runs)
    assert free.classes == 0


@pytest.mark.parametrize(
    ("changes", "info", "sentence"),
    [
        ({}, info_of(9, 3), r"codec has 8 codes for a sample.*shape \[9\]"),
        ({"level": 2, "given": T}, info_of(8, 3), "has 2 levels of codes.*got model.level=2"),
        ({"classes": True}, info_of(8, 3), "have no classes; write model.classes=false"),
        ({"codec": RunRef(path="plain")}, info_of(8, 3), "plain has no codebook"),
        ({"level": 1, "given": C}, info_of(8, 3), "codec is no prior over codes"),
        ({"level": 1, "given": RunRef(path="other")}, info_of(8, 3), "1 × 2 of 5 codes"),
        ({"level": 1, "given": T}, info_of(8, 3, 2), "top knows no classes"),
        (
            {"level": 1, "given": T, "codec": RunRef(path="codec", weights="b" * 64)},
            info_of(8, 3),
            "codes of another codec than codec",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(changes, info, sentence):
    top = prior(TOP)
    top.codec = "a" * 64
    runs = {
        "codec": codec(TOP, FINE),
        "plain": SimpleNamespace(bottleneck=None),
        "top": top,
        "other": prior(Level(5, (1, 2))),
    }
    with pytest.raises(ConfigError, match=sentence):
        built(CodePrior(**{"codec": C, "network": SMALL, **changes}), info, runs)


def test_levels_are_drawn_in_order():
    with pytest.raises(ValidationError, match=r"model\.given\.path="):
        CodePrior(codec=C, level=1)
    with pytest.raises(ValidationError, match="nothing is coarser than level 0"):
        CodePrior(codec=C, given=T)


def test_a_recipe_names_one_codec_and_one_family():
    recipe = named("code_prior")
    with pytest.raises(ValidationError, match=r"encoding\.form=codes"):
        recipe.but(encoding=recipe.encoding.but(form="latents"))
    with pytest.raises(ValidationError, match=r"encoding\.form=codes"):
        recipe.but(encoding=None)
    with pytest.raises(ValidationError, match="names stage:codec and encoding.codec elsewhere"):
        recipe.but(encoding=recipe.encoding.but(codec=RunRef(path="elsewhere")))
    with pytest.raises(ValidationError, match=r"write generation\.kind=code_drawing"):
        recipe.but(generation=named("vq_vae").generation)
    with pytest.raises(ValidationError, match=r"write objective\.kind=denoising"):
        Recipe(name="x", objective=Codes())
    with pytest.raises(ConfigError, match=r"write encoding\.form=codes"):
        Codes().build(prior(TOP), info_of(8, 3).model_copy(update={"bins": None}), None)
