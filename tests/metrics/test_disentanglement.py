"""Disentanglement: codes whose scores are known, other implementations, and invariants."""

import math

import numpy as np
import pytest
import torch

from ornstein.disentangling import FACTORS, ORDERED, drawn, images
from ornstein.errors import ConfigError, NumericsError
from ornstein.metrics import disentanglement
from ornstein.metrics.disentanglement import beta_vae_score, dci, mig, sap
from ornstein.noise import Noise

VALUES = (6, 8, 4, 8, 8)
CLASSES = (False, False, False, True, True)  # which are ordered
COUNT = 2000


def factors(count=COUNT, values=VALUES, seed=0):
    noise = Noise.of(seed, "factors", count)
    return torch.stack([noise.integers(k, high) for k, high in enumerate(values)], 1)


def normal(count, width, seed=0, purpose="codes"):
    return Noise.of(seed, purpose, count).normal(0, (width,), torch.float64)


def perfect(v, values=VALUES):
    """Each factor in a code of its own, with mean 0 and variance 1."""
    highest = torch.tensor(values, dtype=torch.float64) - 1
    return (v - highest / 2) / (highest * (highest + 2) / 12).sqrt()


def rotation(width, seed=0):
    return torch.linalg.qr(normal(width, width, seed, "rotation")).Q


def even(width):
    """A rotation that mixes all codes in equal parts: Hadamard's, for a power of two."""
    found = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(int(math.log2(width))):
        found = torch.kron(found, torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double() / math.sqrt(2))
    return found


def scores(z, v, ordered=CLASSES):
    """MIG, SAP, disentanglement, completeness and informativeness."""
    found = dci(z, v, ordered)
    return [
        mig(z, v).value,
        sap(z, v, ordered).value,
        *(found.disentanglement, found.completeness, found.informativeness.value),
    ]


# ── Codes whose scores are known.


def test_perfect_codes_score_one_and_units_that_say_nothing_do_not_matter():
    v = factors()
    idle = normal(COUNT, 3)
    for z in (perfect(v), torch.cat((idle[:, :1], perfect(v), idle[:, 1:]), 1)):
        assert scores(z, v) == pytest.approx([1, 1, 1, 1, 1], abs=0.03)
    found = beta_vae_score(lambda v, noise: perfect(v), VALUES)
    assert (found.value, found.high) == (1, 1)


def test_an_even_rotation_takes_the_first_three_to_zero_though_codes_say_as_much():
    values = (8, 8, 8, 8)
    v = factors(values=values)
    z = perfect(v, values) @ even(4)
    *axes, informative = scores(z, v, (True,) * 4)
    assert axes == pytest.approx([0, 0, 0, 0], abs=0.03)
    assert informative > 0.9


def test_other_rotations_take_them_far_down():
    v = factors()
    found = np.mean([scores(perfect(v) @ rotation(5, s), v)[:4] for s in range(3)], axis=0)
    assert (found < [0.15, 0.2, 0.4, 0.4]).all()


def test_the_beta_vae_metric_does_not_see_a_rotation_given_enough_pairs():
    """Fixing a factor leaves less variance in all codes that it is mixed into; the means of more
    pairs tell by how much."""
    rotated = rotation(5, 1)

    def accuracy(pairs):
        return beta_vae_score(lambda v, noise: perfect(v) @ rotated, VALUES, pairs, 400).value

    assert accuracy(256) > 0.95
    assert accuracy(256) > accuracy(4) + 0.3


def test_the_beta_vae_metric_is_blind_to_an_even_mix():
    """Differences of (a ± b) / √2 have one law whichever of two alike is fixed."""
    for values, mix, accuracy in (
        ((8, 8, 8, 8), even(4), 1 / 4),
        ((8, 8, 8, 8), torch.kron(torch.eye(2).double(), even(2)), 1 / 2),
    ):
        found = beta_vae_score(lambda v, noise, q=mix: perfect(v, (8,) * 4) @ q, values)
        assert found.low <= accuracy <= found.high


def test_codes_that_say_nothing_score_nothing():
    v = factors()
    assert scores(normal(COUNT, 10), v) == pytest.approx([0, 0, 0, 0, 0], abs=0.03)
    found = beta_vae_score(lambda v, noise: noise.normal(0, (10,), torch.float64), VALUES)
    assert found.low <= 1 / len(VALUES) <= found.high


def test_principal_components_of_images_are_in_between():
    """They follow variance, not factors: better than nothing, and far from perfect."""
    v = drawn(COUNT, 0)
    x = torch.from_numpy(images(v, Noise.of(0, "images", COUNT), 16)).double().flatten(1) / 255
    x -= x.mean(0)
    z = x @ torch.linalg.eigh(x.T @ x).eigenvectors[:, -10:]
    found = np.array(scores(z, v, ORDERED))
    nothing = np.array(scores(normal(COUNT, 10), v, ORDERED))
    assert (found[[0, 2, 3, 4]] > nothing[[0, 2, 3, 4]] + 0.03).all()
    assert (found < 0.8).all()
    assert found[0] < 0.5


def test_a_copy_of_each_code_closes_the_gaps_and_leaves_codes_incomplete():
    """Of six codes, two say the same: MIG and SAP are 0, and completeness is 1 − log 2 / log 6."""
    v = factors(values=(8, 8, 8))
    z = perfect(v, (8, 8, 8))
    found = scores(torch.cat((z, z), 1), v, (True,) * 3)
    assert found[:2] == pytest.approx([0, 0], abs=1e-9)
    assert found[2] == pytest.approx(1, abs=1e-6)
    # A tree takes one of two equal codes by chance; ten trees do not take both as often.
    assert 1 - math.log(2) / math.log(6) - 1e-6 <= found[3] < 0.75
    accuracy = beta_vae_score(lambda v, noise: perfect(v).repeat(1, 2), VALUES).value
    assert accuracy == 1


def test_a_code_of_two_factors_is_complete_but_mixed():
    """z = 8 a + b holds both: each factor is in one code, and that code is of two in equal parts
    of what a forest can find."""
    v = factors(values=(8, 8, 8))
    z = torch.stack((8.0 * v[:, 0] + v[:, 1], normal(COUNT, 1)[:, 0], 1.0 * v[:, 2]), 1)
    found = dci(z, v, (False,) * 3)
    assert found.completeness > 0.9
    assert found.disentanglement == pytest.approx(
        (2 * (1 - math.log(2) / math.log(3)) + 1) / 3, abs=0.05
    )


# ── What changes nothing.


def test_order_scale_sign_and_offset_of_codes_change_nothing():
    v = factors(500)
    z = perfect(v) @ rotation(5, 2) + 0.3 * normal(500, 5)
    order = torch.tensor([3, 0, 4, 2, 1])
    changed = (z * torch.tensor([1e-3, -7.0, 1.0, 1e4, -0.5]) + 20)[:, order]
    before, after = scores(z, v), scores(changed, v)
    assert after[1] == pytest.approx(before[1], abs=1e-9)
    assert after[0] == pytest.approx(before[0], abs=0.01)  # bins are closed on one side
    assert after[2:] == pytest.approx(before[2:], abs=0.05)  # trees break ties by chance

    def accuracy(change):
        return beta_vae_score(lambda v, noise: change(perfect(v) @ rotation(5, 2)), VALUES).value

    scale = torch.tensor([1e-3, -7.0, 1.0, 1e4, -0.5])
    assert accuracy(lambda z: (z * scale + 20)[:, order]) == accuracy(lambda z: z) < 1


def test_names_of_classes_and_units_of_quantities_change_nothing():
    v = factors(500)
    z = perfect(v) @ rotation(5, 2)
    renamed = v.clone()
    renamed[:, 1] = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])[v[:, 1]] + 100
    renamed[:, 3] = 3 * v[:, 3] - 50
    assert scores(z, renamed) == pytest.approx(scores(z, v), abs=1e-9)


def test_the_same_seed_gives_the_same_scores():
    v = factors(500)
    z = normal(500, 4)
    assert torch.equal(dci(z, v, CLASSES, 3).importance, dci(z, v, CLASSES, 3).importance)
    assert not torch.equal(dci(z, v, CLASSES, 3).importance, dci(z, v, CLASSES, 4).importance)


# ── Other implementations.


def test_mig_is_what_scikit_learn_counts():
    from sklearn.metrics import mutual_info_score

    v = factors(400, (4, 3))
    z = perfect(v, (4, 3)) @ rotation(2) + 0.5 * normal(400, 2)
    z = torch.cat((z, 0 * z[:, :1] + 0.1), 1)  # and a unit that has collapsed
    gaps = []
    for k in range(2):
        found = []
        for j in range(3):
            column = z[:, j].numpy()
            edges = np.histogram_bin_edges(column, 12)
            bins = np.digitize(column, edges[1:-1])
            found.append(mutual_info_score(bins, v[:, k].numpy()))
        found.sort()
        gaps.append((found[-1] - found[-2]) / mutual_info_score(v[:, k], v[:, k]))
    assert mig(z, v, bins=12).value == pytest.approx(np.mean(gaps), abs=1e-12)


def test_sap_is_what_correlations_and_nearest_centroids_say():
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.neighbors import NearestCentroid

    v = factors(400, (5, 7))
    v[:, 1] = v[:, 1] // 2 * (v[:, 1] > 1)  # 4 values, not equally frequent
    z = (v.double() - 2) @ rotation(2, 3) + 0.7 * normal(400, 2)
    line = sorted(np.corrcoef(z[:, j], v[:, 0])[0, 1] ** 2 for j in range(2))
    nearest = []
    for j in range(2):
        column = z[:, j : j + 1].numpy()
        guess = NearestCentroid().fit(column, v[:, 1].numpy()).predict(column)
        nearest.append(balanced_accuracy_score(v[:, 1].numpy(), guess, adjusted=True))
    expected = (line[1] - line[0] + max(nearest) - min(nearest)) / 2
    assert sap(z, v, (True, False)).value == pytest.approx(expected, abs=1e-12)


def test_dci_follows_from_the_importance_of_codes(monkeypatch):
    """Entropies of a small table, by hand."""
    columns = iter(torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]], dtype=torch.float64))
    monkeypatch.setattr(
        disentanglement, "_forest", lambda z, v, unseen, *_: (next(columns), unseen[:, 0])
    )
    found = dci(normal(50, 3), factors(50, (4, 4)), (True, True))
    mixed = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))  # of the second code
    assert found.disentanglement == pytest.approx((0.5 + 0.75 * (1 - mixed) + 0.75) / 2)
    first = math.log(2) / math.log(3)
    second = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(3)
    assert found.completeness == pytest.approx(1 - (first + second) / 2)


def test_the_discriminant_is_fishers():
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    label = torch.arange(120) % 3
    points = normal(120, 4) + normal(3, 4, 1)[label]
    unseen = normal(500, 4, 2)
    found = disentanglement._discriminant(points, label, unseen, 3)
    peer = LinearDiscriminantAnalysis(priors=[1 / 3] * 3).fit(points.numpy(), label.numpy())
    assert (found.numpy() == peer.predict(unseen.numpy())).mean() > 0.995


# ── Intervals.


def test_intervals_hold_what_such_samples_score_on_average():
    """Nominal 95 %."""

    def noisy(seed):
        v = factors(400, (4, 6), seed)
        z = perfect(v, (4, 6)) @ rotation(2, 5)
        return torch.cat((z, z[:, :1]), 1) + 0.8 * normal(400, 3, seed), v

    draws = [noisy(seed) for seed in range(200)]
    for metric in (mig, lambda z, v: sap(z, v, (False, True))):
        found = [metric(z, v) for z, v in draws]
        truth = np.mean([f.value for f in found])
        inside = sum(f.low <= truth <= f.high for f in found)
        assert inside >= 178
        assert all(f.low <= f.value <= f.high for f in found)
        spread = np.std([f.value for f in found])
        assert np.mean([f.high - f.low for f in found]) < 1.4 * 2 * 1.96 * spread


def test_the_votes_share_one_factor_and_nothing_else(monkeypatch):
    """The images that are asked for: pairs in which one factor agrees, the others by chance."""
    seen = []

    def encode(v, noise):
        assert len(noise.ids) == len(v)
        seen.append((v, noise.ids))
        return v.double()

    monkeypatch.setattr(disentanglement, "_BLOCK", 1000)
    beta_vae_score(encode, VALUES, pairs=50, votes=60)
    v = torch.cat([part for part, _ in seen]).view(60, 2, 50, len(VALUES))
    assert torch.equal(torch.cat([ids for _, ids in seen]), torch.arange(6000))
    agree = (v[:, 0] == v[:, 1]).double().mean(1)  # [votes, F]
    assert ((agree == 1).sum(1) == 1).all()
    assert set(agree.argmax(1).tolist()) == set(range(len(VALUES)))
    others = torch.where(agree == 1, torch.nan, agree).nanmean(0)
    expected = 1 / torch.tensor(VALUES, dtype=torch.float64)
    assert (others - expected).abs().max() < 4 * 0.5 / math.sqrt(50 * 40)
    for k, count in enumerate(VALUES):
        assert set(v[..., k].flatten().tolist()) == set(range(count))


# ── What is refused.


def test_what_does_not_fit_is_refused():
    v = factors(50)
    for bad in (v[:40], v.double(), v[:, 0]):
        with pytest.raises(ConfigError, match=r"whole numbers \[50, F\]"):
            mig(normal(50, 3), bad)
    with pytest.raises(ConfigError, match="more units"):
        mig(normal(50, 1), v)
    with pytest.raises(ConfigError, match="same value in all samples"):
        sap(normal(50, 3), v * torch.tensor([1, 1, 0, 1, 1]), CLASSES)
    with pytest.raises(ConfigError, match="2 factors are said .* of 5"):
        dci(normal(50, 3), v, (True, False))
    with pytest.raises(ConfigError, match="2 factors or more"):
        dci(normal(50, 3), v[:, :1], (True,))
    with pytest.raises(NumericsError, match="50 of 50"):
        mig(normal(50, 3) / 0, v)
    for values, pairs, votes in (((5,), 9, 90), ((5, 1), 9, 90), ((5, 5), 0, 90), ((5, 5), 9, 19)):
        with pytest.raises(ConfigError, match="10 votes a factor"):
            beta_vae_score(lambda v, noise: v.double(), values, pairs, votes)


def test_factors_of_shapes_are_drawn_evenly():
    v = drawn(6000, 0)
    for k, count in enumerate(FACTORS.values()):
        frequency = torch.bincount(v[:, k], minlength=count).double() / 6000
        assert (frequency - 1 / count).abs().max() < 5 * math.sqrt(1 / count / 6000)
