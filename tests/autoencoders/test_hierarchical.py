"""Two levels of codes against the paper's algorithm, and against two codebooks by themselves."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ornstein import Run, latents
from ornstein.autoencoders.bottlenecks import FSQ, VQ, Hierarchy
from ornstein.autoencoders.discrete import Codebooks, Level, joined, split
from ornstein.autoencoders.hierarchical import HierarchyModule
from ornstein.autoencoders.model import Autoencoder
from ornstein.data.sources import Digits
from ornstein.errors import ConfigError
from ornstein.nn.codecnets import Conv
from ornstein.noise import Noise
from ornstein.recipe import named
from ornstein.settings import resolve
from tests.autoencoders.test_codec import codec, info

SIZES = [(4, 4), (5, 3), (1, 2), (1, 1)]


def module(size: tuple[int, int] = (5, 3), units: int = 6, **changes) -> HierarchyModule:
    """A hierarchy whose nets are not the identity anywhere, with codebooks that are there."""
    torch.manual_seed(0)
    words = {"kmeans": False, "restart": 0.0, **changes}
    chosen = Hierarchy(
        top=VQ(codes=7, commitment=0.3, **words), bottom=VQ(codes=11, **words), channels=8
    )
    built = chosen.build((units, *size))
    assert isinstance(built, HierarchyModule)
    for layer in built.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.2)
    return built


def features(count: int, like: HierarchyModule, seed: int = 0) -> Tensor:
    return Noise.of(seed, "features", count).normal(0, like.latent)


def learn(model: HierarchyModule, h: Tensor, step: int = 0, parts: list[int] | None = None):
    """One update of what has no gradient, with the global batch in parts of these sizes."""
    noise = Noise.of(0, "train", len(h)).at(step)
    stats: dict[str, Tensor] = {}
    start = 0
    for size in parts or [len(h)]:
        part = slice(start, start + size)
        for name, value in model(h[part], noise.of_samples(part)).stats.items():
            stats[name] = stats[name] + value if name in stats else value
        start += size
    assert start == len(h)
    model.after_step(stats, Noise.of(0, "train", 1).at(step).child("after step"))
    return stats


def nearest(rows: Tensor, codebook: Tensor) -> Tensor:
    """Which vector is nearest to rows [B, D, h, w], int64 [B, h, w], from all distances."""
    gaps = rows.movedim(1, -1).unsqueeze(-2).double() - codebook.double()
    return gaps.square().sum(-1).argmin(-1)


# --- flat codes ----------------------------------------------------------------------------------


def test_flat_codes_are_coarse_first_and_in_raster_order():
    levels = (Level(9, ()), Level(9, (1, 2)), Level(9, (2, 3)))
    flat = torch.arange(18).view(2, 9)
    first, second, third = split(flat, levels)
    assert first.tolist() == [0, 9]
    assert second.tolist() == [[[1, 2]], [[10, 11]]]
    assert third[1].tolist() == [[12, 13, 14], [15, 16, 17]]
    assert torch.equal(joined([first, second, third]), flat)
    assert [part.shape for part in split(flat[:0], levels)] == [(0,), (0, 1, 2), (0, 2, 3)]
    with pytest.raises(AssertionError, match="of other levels"):
        split(flat[:, 1:], levels)


def test_what_has_codebooks_says_so():
    one = VQ(codes=5).build((4, 3, 2))
    assert one.levels == (Level(5, (3, 2)),)
    assert VQ(codes=5).build((4,)).levels == (Level(5, ()),)
    assert FSQ(levels=(3, 4)).build((2, 7)).levels == (Level(12, (7,)),)
    two = module((5, 3))
    assert two.levels == (Level(7, (3, 2)), Level(11, (5, 3)))
    assert isinstance(one, Codebooks)
    assert isinstance(two, Codebooks)
    assert not isinstance(codec(Autoencoder(), 1, 8, 8).bottleneck, Codebooks)


# --- the paper's algorithm -----------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_it_is_algorithm_1(size):
    """h_top, e_top, h_bottom given e_top, e_bottom, and D of both; any size, odd ones cut."""
    model = module(size)
    h = features(6, model)
    code = model(h)
    coarse = (math.ceil(size[0] / 2), math.ceil(size[1] / 2))
    h_top = model.down(h)
    top = nearest(h_top, model.top.codebook)
    assert top.shape == (6, *coarse)
    e_top = model.top.codebook[top].movedim(-1, 1)
    given = model.up(e_top)
    h_bottom = nn.functional.conv2d(torch.cat((h, given), 1), model.merge[0].weight)
    h_bottom = h_bottom + model.merge[0].bias[:, None, None]
    bottom = nearest(h_bottom, model.bottom.codebook)
    assert len(top.unique()) > 1 or math.prod(coarse) == 1
    assert torch.equal(code.indices, torch.cat((top.flatten(1), bottom.flatten(1)), 1))
    assert torch.equal(code.z[:, :3], model.bottom.codebook[bottom].movedim(-1, 1))
    torch.testing.assert_close(code.z[:, 3:], given, rtol=1e-5, atol=1e-6)
    assert code.z.shape == h.shape
    costs = {"top": (0.3, h_top, e_top), "bottom": (0.25, h_bottom, code.z[:, :3])}
    for name, (weight, before, after) in costs.items():
        expected = weight * (before - after).square().flatten(1).sum(1)
        torch.testing.assert_close(code.penalties[f"commitment/{name}"], expected)
    assert len(code.penalties) == 2
    assert not code.stats  # without the noise of an update


@pytest.mark.parametrize("size", SIZES)
def test_codes_are_looked_up_to_the_bit(size):
    model = module(size)
    code = model(features(6, model))
    assert torch.equal(model.lookup(code.indices), code.z)


def test_the_bottom_sees_the_top_and_not_the_other_way_round():
    model, seen = module(), []
    model.bottom.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    h = features(9, model)
    top, bottom = split(model(h).indices, model.levels)
    with torch.no_grad():
        model.bottom.codebook.neg_()
    assert torch.equal(split(model(h).indices, model.levels)[0], top)
    assert torch.equal(seen[1], seen[0])
    with torch.no_grad():
        model.bottom.codebook.neg_()
        model.top.codebook.copy_(model.top.codebook.roll(1, 0))  # other vectors for each feature
        model.top.codebook[3:] += 50
    changed, others = split(model(h).indices, model.levels)
    assert not torch.equal(changed, top)
    assert (seen[2] != seen[0]).flatten(1).any(1).all()
    assert not torch.equal(others, bottom)


def test_gradients_pass_straight_through_both_levels():
    """The chain rule by hand, as if each e were its feature."""
    model = module((4, 4))
    h = features(5, model).requires_grad_()
    code = model(h)
    received = Noise.of(1, "features", 5).normal(0, model.latent)
    found = torch.autograd.grad((received * code.z).sum(), [h, *model.parameters()])
    e_top = model.top.lookup(split(code.indices, model.levels)[0]).contiguous().requires_grad_()
    to_b, to_u = received[:, :3], received[:, 3:]
    weight = model.merge[0].weight[:, :, 0, 0]  # (A, B)
    to_h = torch.einsum("oi,bohw->bihw", weight[:, :6], to_b)
    to_u = to_u + torch.einsum("oi,bohw->bihw", weight[:, 6:], to_b)
    to_top, *of_up = torch.autograd.grad(model.up(e_top), [e_top, *model.up.parameters()], to_u)
    down, *of_down = torch.autograd.grad(model.down(h), [h, *model.down.parameters()], to_top)
    named_ = dict(zip(["h", *(name for name, _ in model.named_parameters())], found, strict=True))
    torch.testing.assert_close(named_["h"], to_h + down, rtol=1e-4, atol=1e-5)
    for net, expected in (("up", of_up), ("down", of_down)):
        own = [g for name, g in named_.items() if name.startswith(f"{net}.")]
        for one, other in zip(own, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("half", [slice(0, 3), slice(3, 6)], ids=["fine", "coarse"])
def test_both_halves_of_what_the_decoder_gets_teach_the_top(half):
    model = module()
    h = features(5, model)
    model(h).z[:, half].square().sum().backward()
    assert all(p.grad.abs().max() > 1e-4 for p in model.down.parameters())
    model.zero_grad()
    model(h).penalties["commitment/bottom"].sum().backward()
    assert all(p.grad.abs().max() > 1e-4 for p in model.down.parameters())


def test_narrow_networks_choose_among_whole_vectors():
    model = module()
    with torch.autocast("cpu", torch.bfloat16):
        code = model(features(9, model))
    bottom = split(code.indices, model.levels)[1]
    assert torch.equal(code.z[:, :3], model.bottom.lookup(bottom))
    assert code.z.dtype == torch.float32


# --- learning without a gradient -----------------------------------------------------------------


def test_each_level_learns_as_a_codebook_of_its_own():
    """Bit for bit what two quantisers do that are shown the same features."""
    model = module(restart=0.3, decay=0.6)
    plain = {"top": copy.deepcopy(model.top), "bottom": copy.deepcopy(model.bottom)}
    for step in range(5):
        h = features(20, model, seed=step)
        noise = Noise.of(0, "train", 20).at(step)
        t = model.down(h)
        b = model.merge(torch.cat((h, model.up(model.top(t).z)), 1))
        for one, seen in zip(plain.values(), (t, b), strict=True):
            one.after_step(one(seen, noise).stats, noise)
        learn(model, h, step)
        for name, one in plain.items():
            for key, value in one.state_dict().items():
                assert torch.equal(model.state_dict()[f"{name}.{key}"], value), (name, key)
    assert all(one.tally.sum() == 5 * 20 * one.places for one in plain.values())


@pytest.mark.parametrize("parts", [[3, 6], [1] * 9, [7, 0, 2]])
@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_any_split_of_the_global_batch_learns_the_same(parts, update):
    """Through both starts, restarts and ordinary updates."""
    whole = module(update=update, kmeans=True, restart=0.5, decay=0.5)
    other = copy.deepcopy(whole)
    for step in range(6):
        h = features(9, whole, seed=step)
        stats, same = learn(whole, h, step), learn(other, h, step, parts)
        assert stats.keys() == same.keys()
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    assert whole.top.started
    assert whole.bottom.started


def test_the_top_starts_first_and_the_bottom_in_view_of_it():
    model = module(kmeans=True)
    h = [features(8, model, seed=i) for i in range(3)]
    code = model(h[0], Noise.of(0, "train", 8))
    t = model.down(h[0])
    b = model.merge(torch.cat((h[0], model.up(t)), 1))
    assert torch.equal(code.z, torch.cat((b, model.up(t)), 1))  # nothing is quantised yet
    assert all(not cost.any() for cost in code.penalties.values())
    assert code.kl is None
    assert {name.split("/")[0] for name in code.stats} == {"top"}
    learn(model, h[0], 0)
    assert model.top.started
    assert not model.bottom.started
    # What the bottom starts from is given a top that is quantised.
    e_top = model.top.codebook[nearest(model.down(h[1]), model.top.codebook)].movedim(-1, 1)
    b = model.merge(torch.cat((h[1], model.up(e_top.contiguous())), 1))
    stats = learn(model, h[1], 1)
    given = stats["bottom/candidates"][stats["bottom/filled"] > 0]
    torch.testing.assert_close(given, b.flatten(2).transpose(1, 2).reshape(-1, 3))
    assert model.bottom.started
    code = model(h[2])
    assert torch.equal(model.lookup(code.indices), code.z)
    assert code.kl is not None


def test_usage_is_reported_by_level():
    model = module((2, 2))
    model.epoch = 100
    assert (model.epoch, model.top.epoch, model.bottom.epoch) == (100, 100, 100)
    model.top.tally[:2] = 5
    model.bottom.tally[:] = 3
    found = {name: float(value) for name, value in model.report().items()}
    assert found == {
        "used/top": pytest.approx(2 / 7),
        "perplexity/top": pytest.approx(2),
        "used/bottom": 1,
        "perplexity/bottom": pytest.approx(11),
    }


# --- the law that stands in for a prior ----------------------------------------------------------


def test_code_nats_are_those_of_both_laws():
    """One place above two: the probabilities of all codes add up to one."""
    model = module((1, 2))
    model.top.history.copy_(torch.arange(7.0).view(1, 7))
    model.bottom.history.copy_(torch.arange(22.0).view(2, 11))
    codes = torch.tensor(list(itertools.product(range(7), range(11), range(11))))
    nats = model.code_nats(codes).double()
    assert nats.neg().exp().sum() == pytest.approx(1, abs=1e-5)
    top, bottom = model.top.law(), model.bottom.law()
    expected = -(top[0, 4].log() + bottom[0, 9].log() + bottom[1, 2].log())
    assert model.code_nats(torch.tensor([[4, 9, 2]])).item() == pytest.approx(expected.item())
    h = features(9, model)
    code = model(h)
    torch.testing.assert_close(code.kl, model.code_nats(code.indices))


def test_draws_are_of_both_levels():
    model = module((3, 2))
    learn(model, features(50, model))
    drawn = model.draw_indices(Noise.of(0, "prior", 4000))
    assert drawn.shape == (4000, 2 + 6)
    for level, part in zip((model.top, model.bottom), split(drawn, model.levels), strict=True):
        for place, law in enumerate(level.law()):
            shares = torch.bincount(part.flatten(1)[:, place], minlength=level.codes) / 4000
            torch.testing.assert_close(shares, law, rtol=0, atol=0.04)
    # What the levels draw has nothing in common.
    both = torch.stack((drawn[:, 0], drawn[:, 2])).double()
    assert torch.corrcoef(both)[0, 1].abs() < 0.08
    part = model.draw_indices(Noise.of(0, "prior", range(7, 12)))
    assert torch.equal(part, drawn[7:12])
    z = model.draw(Noise.of(0, "prior", range(7, 12)), (6, 3, 2))
    assert torch.equal(z, model.lookup(part))


# --- as a part of a codec ------------------------------------------------------------------------


def test_a_state_is_all_there_is():
    first, other = (module(kmeans=True, restart=0.1) for _ in range(2))
    for step in range(3):
        learn(first, features(20, first, seed=step), step)
    other.load_state_dict(first.state_dict())
    for step in range(3, 5):
        h = features(20, first, seed=step)
        learn(first, h, step)
        learn(other, h, step)
    for name, value in first.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_all_weights_are_of_networks():
    """Which can be compiled, and shared out over ranks; codebooks that move by eq 13 are none."""
    model = module()
    own = {
        id(p)
        for part in model.modules()
        if getattr(part, "worth_compiling", False)
        for p in part.parameters()
    }
    assert own == {id(p) for p in model.parameters()}


def test_codes_that_cannot_be_are_refused():
    with pytest.raises(ConfigError, match=r"write model\.nets\.kind=conv model\.nets\.flat=false"):
        Hierarchy().build((6,))
    with pytest.raises(ConfigError, match=r"7 is odd; write model\.units=8"):
        Hierarchy().build((7, 4, 4))
    with pytest.raises(ValidationError, match="blocks"):
        Hierarchy(blocks=-1)


def test_the_choice_and_its_nets():
    base = named("vq_vae_2_codec")
    found = resolve(type(base), base, overrides=["model.bottleneck.top.codes=9"]).value
    assert (found.model.bottleneck.top.codes, found.model.bottleneck.bottom.codes) == (9, 128)
    fitted = Autoencoder(bottleneck=Hierarchy()).fitted(info(1, 12, 12))
    assert fitted.nets.flat is False
    built = codec(base.model, 1, 28, 28)
    assert built.latent == (32, 7, 7)
    assert built.bottleneck.levels == (Level(128, (4, 4)), Level(128, (7, 7)))
    x = torch.randn(2, 1, 28, 28)
    code = built.encode(x)
    assert code.indices.shape == (2, 16 + 49)
    assert built.mean(code.z).shape == x.shape


def test_digits_use_both_levels(tmp_path):
    """After a short training each codebook is in use, and a picture suffers from another's codes at
    either level."""
    base = named("vq_vae_2_codec")
    chosen = Hierarchy(top=VQ(codes=8), bottom=VQ(codes=16), channels=16)
    nets = Conv(channels=(16,), patch=2, flat=False)
    model = base.model.but(bottleneck=chosen, units=16, nets=nets)
    optim = base.optim.but(samples=6000, batch=32, warmup=500, lr=3e-3)
    run = Run.create(base.but(data=Digits(), model=model, optim=optim), tmp_path)
    for event in run.train(previews=False):
        last = event.metrics
    assert last["used/top"] == last["used/bottom"] == 1
    found = latents.reconstructions(run)
    used = latents.codebooks(found.codes)
    assert {name: one.codes for name, one in used.items()} == {"top": 180 * 4, "bottom": 180 * 16}
    assert used["top"].perplexity > 4
    assert used["bottom"].perplexity > 8
    model = run.learner().model
    indices, x = found.codes.indices[:100], run.dataset.batch(found.codes.ids[:100], (-1, 1)).x
    errors = []
    for part in (slice(0, 0), slice(0, 4), slice(4, 20)):
        changed = indices.clone()
        changed[:, part] = indices.roll(1, 0)[:, part]
        errors.append(float((model.mean(model.bottleneck.lookup(changed)) - x).square().mean()))
    assert errors[0] < 0.09
    assert errors[1] > 1.1 * errors[0]
    assert errors[2] > 2 * errors[0]
