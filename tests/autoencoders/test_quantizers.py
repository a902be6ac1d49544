"""Vector quantisation against eq 11-13, one by one, and against Lloyd's algorithm."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor

from ornstein.autoencoders.bottlenecks import VQ
from ornstein.autoencoders.quantizers import RESTARTS, VQModule
from ornstein.noise import Noise

SHAPES = [(5,), (5, 1, 1), (5, 3, 2)]


def module(latent: tuple[int, ...] = (5,), codes: int = 8, **changes) -> VQModule:
    torch.manual_seed(0)
    return VQModule(latent, codes, **{"kmeans": False, "restart": 0.0, **changes})


def features(count: int, latent: tuple[int, ...] = (5,), seed: int = 0) -> Tensor:
    return Noise.of(seed, "features", count).normal(0, latent)


def learn(vq: VQModule, h: Tensor, step: int = 0, parts: list[int] | None = None):
    """One update of what has no gradient, with the global batch in parts of these sizes."""
    noise = Noise.of(0, "train", len(h)).at(step)
    stats: dict[str, Tensor] = {}
    start = 0
    for size in parts or [len(h)]:
        part = slice(start, start + size)
        code = vq(h[part], noise.of_samples(part))
        for name, value in code.stats.items():
            stats[name] = stats[name] + value if name in stats else value
        start += size
    assert start == len(h)
    vq.after_step(stats, Noise.of(0, "train", 1).at(step).child("after step"))
    return stats


# --- eq 11 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("latent", SHAPES)
def test_a_code_is_the_nearest_vector(latent):
    vq, h = module(latent), features(6, latent)
    code = vq(h)
    rows = h.reshape(6, 5, -1).permute(0, 2, 1).double()
    expected = torch.cdist(rows, vq.codebook.double().expand(6, -1, -1)).argmin(2)
    assert torch.equal(code.indices, expected.view(6, *latent[1:]))
    assert code.indices.dtype == torch.int64
    assert code.z.shape == h.shape
    for b, place in np.ndindex(6, rows.shape[1]):
        z = code.z.reshape(6, 5, -1)[b, :, place]
        assert torch.equal(z, vq.codebook[expected[b, place]])
    assert torch.equal(vq.lookup(code.indices), code.z)
    assert not code.stats  # without the noise of an update


def test_narrow_networks_change_nothing():
    """Under autocast products are rounded to 8 bits; these are not."""
    vq, h = module(), features(200).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        code = vq(h)
    assert torch.equal(code.indices, vq(h.float()).indices)
    assert code.z.dtype == torch.float32


def test_what_is_not_a_number_stays_so():
    """Training stops for a loss that is not finite, and not in here."""
    h = features(4)
    h[2, 1] = float("nan")
    code = module()(h, Noise.of(0, "train", 4))
    bad = torch.isnan(code.penalties["commitment"])
    assert bad.tolist() == torch.isnan(code.z).any(1).tolist() == [False, False, True, False]


# --- eq 12 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("latent", SHAPES)
def test_the_decoders_gradient_passes_straight_through(latent, update):
    vq, h = module(latent, update=update), features(6, latent).requires_grad_()
    received = features(6, latent, seed=1)
    vq(h).z.backward(received)
    assert torch.equal(h.grad, received)
    assert vq.codebook.grad is None


@pytest.mark.parametrize("latent", SHAPES)
def test_the_gradient_of_commitment(latent):
    """β ‖h − e‖² for each sample, whose gradient is 2 β (h − e)."""
    vq, h = module(latent, commitment=0.4), features(6, latent).requires_grad_()
    code = vq(h)
    gap = (h - code.z).detach()
    assert set(code.penalties) == {"commitment"}
    torch.testing.assert_close(code.penalties["commitment"], 0.4 * gap.square().flatten(1).sum(1))
    weights = torch.arange(1.0, 7)
    (code.penalties["commitment"] * weights).sum().backward()
    expected = 0.8 * gap * weights.view(-1, *[1] * len(latent))
    torch.testing.assert_close(h.grad, expected)
    assert not vq.codebook.requires_grad


@pytest.mark.parametrize("latent", SHAPES)
def test_the_gradient_of_a_codebook(latent):
    """‖h − e‖² over n vectors of a code: 2 n (e − mean), and nothing for the encoder."""
    vq, h = module(latent, update="gradient"), features(6, latent).requires_grad_()
    code = vq(h)
    code.penalties["codebook"].sum().backward()
    rows = h.detach().reshape(6, 5, -1).permute(0, 2, 1).reshape(-1, 5)
    for i, e in enumerate(vq.codebook.detach()):
        own = rows[code.indices.flatten() == i]
        torch.testing.assert_close(vq.codebook.grad[i], 2 * (len(own) * e - own.sum(0)))
    assert h.grad is None
    assert "sums" not in vq(h, Noise.of(0, "train", 6)).stats


# --- eq 13 ---------------------------------------------------------------------------------------


def test_without_memory_an_update_is_a_step_of_lloyds():
    vq, h = module(decay=0.0, codes=20), features(60)
    before, indices = vq.codebook.clone(), vq(h).indices
    learn(vq, h)
    assert 3 < len(indices.unique()) < 20
    for i in range(20):
        own = h[indices == i]
        expected = own.mean(0) if len(own) else before[i]
        torch.testing.assert_close(vq.codebook[i], expected)


def test_without_memory_updates_end_where_k_means_does():
    from sklearn.cluster import KMeans

    h = features(400)
    vq = module(decay=0.0)
    vq.codebook.copy_(h[:8])
    for step in range(200):
        learn(vq, h, step)
    peer = KMeans(8, init=h[:8].numpy(), n_init=1, max_iter=200, tol=0, algorithm="lloyd").fit(h)
    np.testing.assert_allclose(vq.codebook, peer.cluster_centers_, rtol=1e-4, atol=1e-5)


def test_with_memory_they_end_where_a_step_of_lloyds_changes_nothing():
    vq, h = module(decay=0.8), features(400)
    for step in range(400):
        learn(vq, h, step)
    indices = vq(h).indices
    means = torch.stack([h[indices == i].mean(0) for i in range(8)])
    torch.testing.assert_close(vq.codebook, means, rtol=1e-4, atol=1e-5)


def test_updates_are_equation_13():
    """N and m as they are written, in double precision, over batches that differ."""
    vq = module((5, 3, 2), codes=40, decay=0.7)
    n, m = torch.zeros(40).double(), torch.zeros(40, 5).double()
    expected = vq.codebook.double()
    for step in range(30):
        h = features(4, (5, 3, 2), seed=step)
        rows = h.reshape(4, 5, 6).permute(0, 2, 1).reshape(-1, 5).double()
        used = vq(h).indices.flatten()
        learn(vq, h, step)
        own = (used[:, None] == torch.arange(40)).double()
        n, m = 0.7 * n + 0.3 * own.sum(0), 0.7 * m + 0.3 * own.T @ rows
        expected = torch.where(n[:, None] > 0, m / n[:, None], expected)
        torch.testing.assert_close(vq.codebook.double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(vq.n.double(), n, rtol=1e-5, atol=1e-7)


def test_with_fixed_assignments_sums_are_geometric():
    """Two far codes and two points: after t updates N = (1 − γ^t) n + γ^t N_0, and m likewise."""
    vq = module((1,), codes=2, decay=0.9)
    vq.codebook.copy_(torch.tensor([[-10.0], [10.0]]))
    vq.n.copy_(torch.tensor([4.0, 1.0]))
    h = torch.tensor([[-8.0], [-9.0], [9.5]])
    for t in range(1, 25):
        learn(vq, h, t)
        kept = 0.9**t
        n = torch.tensor([4 * kept + 2 * (1 - kept), kept + (1 - kept)])
        m = torch.tensor([-40 * kept - 17 * (1 - kept), 10 * kept + 9.5 * (1 - kept)])
        torch.testing.assert_close(vq.n, n)
        torch.testing.assert_close(vq.codebook.squeeze(1), m / n)


def test_a_code_that_nobody_uses_stays_where_it_is():
    """Also where N_i and m_i would be below the smallest float; m_i/N_i of those is 0/0."""
    vq, h = module((1,), codes=2, decay=0.5), torch.tensor([[1.0], [2.0]])
    vq.codebook.copy_(torch.tensor([[1.0], [1 / 3 + 50]]))
    vq.n.copy_(torch.tensor([1.0, 1.0]))
    for step in range(200):
        learn(vq, h, step)
    assert vq.n[1] == 0
    assert vq.codebook[1] == torch.tensor(1 / 3 + 50)


# --- splits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [[3, 6], [1] * 9, [0, 7, 0, 2]])
@pytest.mark.parametrize("latent", SHAPES)
@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_any_split_of_the_global_batch_learns_the_same(parts, latent, update):
    """Through the start, restarts and ordinary updates."""
    whole = module(latent, 16, update=update, kmeans=True, restart=0.5, decay=0.5)
    split = copy.deepcopy(whole)
    for step in range(6):
        h = features(9, latent, seed=step)
        stats = learn(whole, h, step)
        other = learn(split, h, step, parts)
        assert stats.keys() == other.keys()
        for name, value in stats.items():
            torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-5)
        if "filled" in stats:
            assert torch.equal(stats["candidates"], other["candidates"])  # each from one sample
            assert stats["filled"].max() <= 1
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(split.state_dict()[name], value, rtol=1e-5, atol=1e-5)
    assert whole.started


def test_a_start_sees_all_vectors_of_a_batch():
    vq, h = module((5, 3, 2), kmeans=True), features(4, (5, 3, 2))
    stats = vq(h, Noise.of(0, "train", 4)).stats
    given = stats["candidates"][stats["filled"] == 1]
    rows = h.reshape(4, 5, 6).permute(0, 2, 1).reshape(-1, 5)
    assert torch.equal(given, rows)


def test_restarts_are_offered_one_vector_of_each_sample_and_all_places():
    vq = module((5, 3, 2), codes=1000, restart=0.1)
    h = features(300, (5, 3, 2))
    stats = vq(h, Noise.of(0, "train", 300)).stats
    given = stats["candidates"]
    assert stats["filled"].tolist() == [1] * RESTARTS
    same = (given[:, :, None] == h.flatten(2)[:RESTARTS]).all(1)  # [sample, place]
    assert same.sum(1).tolist() == [1] * RESTARTS
    even = RESTARTS / 6
    assert ((same.sum(0) - even).abs() < 0.1 * even).all()
    later = vq(h, Noise.of(0, "train", 300).at(1)).stats["candidates"]
    assert not torch.equal(given, later)


# --- start and restart ---------------------------------------------------------------------------


def clusters(count: int, seed: int) -> Tensor:
    """Vectors [count, 4] around 16 points that are 10 apart."""
    corners = torch.cartesian_prod(*[torch.tensor([-5.0, 5.0])] * 4) + torch.tensor([20.0, 0, 0, 0])
    noise = Noise.of(seed, "clusters", count)
    return corners[noise.integers(0, 16)] + 0.5 * noise.normal(1, (4,))


def trained(**changes) -> VQModule:
    """A codebook of 16 after an epoch and a half of 40 updates."""
    vq = module((4,), codes=16, **changes)
    vq.epoch = 40 * 128
    for step in range(60):
        learn(vq, clusters(128, step), step)
    return vq


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_start_by_k_means_uses_all_codes(update):
    """The gradient is not even needed: the start alone has them."""
    vq = trained(kmeans=True, update=update)
    assert vq.used == 1
    assert vq.perplexity > 15.5
    if update == "ema":
        wanted = torch.cartesian_prod(*[torch.tensor([-5.0, 5.0])] * 4)
        wanted = wanted + torch.tensor([20.0, 0, 0, 0])
        assert torch.cdist(wanted, vq.codebook).amin(1).max() < 0.6


def test_a_random_start_does_not():
    vq = trained(kmeans=False)
    assert vq.used < 0.5
    assert vq.perplexity < 8


def test_restarts_bring_a_bad_start_back():
    vq = trained(kmeans=False, restart=0.1, decay=0.9)
    assert vq.used == 1
    assert vq.perplexity > 12


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_until_it_has_started_all_passes(update):
    vq, h = module(kmeans=True, update=update), features(20).requires_grad_()
    code = vq(h, Noise.of(0, "train", 20))
    assert torch.equal(code.z, h)
    assert all(not p.any() for p in code.penalties.values())
    code.z.sum().backward()
    assert torch.equal(h.grad, torch.ones(20, 5))
    if update == "gradient":  # a parameter without a gradient is an error on several ranks
        sum(p.sum() for p in code.penalties.values()).backward()
        assert torch.equal(vq.codebook.grad, torch.zeros(8, 5))
    learn(vq, h.detach())
    assert not torch.equal(vq(h).z, h)
    assert vq.n.sum() == 20
    assert vq.seen == 20


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_dead_code_restarts_on_a_feature(update):
    vq = module(codes=6, restart=0.1, decay=0.5, update=update)
    with torch.no_grad():
        vq.codebook[2:] += 1000
    vq.n.fill_(1.0)
    h = features(3)
    for step in range(4):  # 1/16 is still more than a tenth of the mean, about a half
        learn(vq, h, step)
        assert (vq.codebook[2:] > 900).all()
    learn(vq, h, 4)
    # There are four dead codes and three features: the first three have one each.
    restarted = vq.codebook.detach()[2:5]
    assert torch.equal(restarted, h)
    assert (vq.codebook[5] > 900).all()
    torch.testing.assert_close(vq.n[2:5], vq.n[2].expand(3))
    assert vq.n[2] > 10 * vq.n[5]
    learn(vq, features(3, seed=1), 5)
    assert (vq.codebook < 900).all()
    assert len(vq(h).indices.unique()) == 3


# --- what stays ----------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["ema", "gradient"])
def test_a_state_is_all_there_is(update):
    vq = module(kmeans=True, restart=0.1, update=update)
    empty = copy.deepcopy(vq.state_dict())
    other = module(kmeans=True, restart=0.1, update=update)
    for step in range(4):
        learn(vq, features(20, seed=step), step)
    other.load_state_dict(vq.state_dict())
    for step in range(4, 7):
        learn(vq, features(20, seed=step), step)
        learn(other, features(20, seed=step), step)
    h = features(10, seed=9)
    assert torch.equal(vq(h).z, other(h).z)
    for name, value in vq.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)
    other.load_state_dict(empty)
    assert torch.equal(other(h).z, h)  # which is not started again


def test_an_average_of_weights_can_be_used():
    """As training averages: floating numbers move, others are copied."""
    vq = module(kmeans=True, restart=0.1)
    average = copy.deepcopy(vq)
    for step in range(40):
        learn(vq, features(20, seed=step), step)
        for kept, now in zip(average.buffers(), vq.buffers(), strict=True):
            kept.lerp_(now, 0.2) if kept.is_floating_point() else kept.copy_(now)
    h = features(10, seed=99)
    code = average(h)
    assert torch.equal(code.z, average.lookup(code.indices))
    assert torch.isfinite(average.code_nats(code.indices)).all()
    assert average.perplexity == vq.perplexity
    assert torch.cdist(average.codebook, vq.codebook).amin(1).max() < 0.5


def test_a_drawn_code_is_one_of_the_codebook():
    vq = module((5, 3, 2))
    learn(vq, features(50, (5, 3, 2)))
    noise = Noise.of(0, "prior", 7)
    z = vq.draw(noise, (5, 3, 2))
    assert z.shape == (7, 5, 3, 2)
    assert torch.equal(z, vq.lookup(vq.draw_indices(noise)))
    assert torch.equal(vq(z).indices, vq.draw_indices(noise))


def test_the_choice_builds_it():
    vq = VQ(codes=3, update="gradient", commitment=1.5, decay=0.5, restart=0.0).build((2, 4, 4))
    assert isinstance(vq, VQModule)
    assert (vq.codes, vq.update, vq.commitment, vq.decay, vq.restart) == (
        3,
        "gradient",
        1.5,
        0.5,
        0,
    )
    assert vq.codebook.shape == (3, 2)
    assert not vq.started
