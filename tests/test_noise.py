"""Randomness is a pure function of (seed, purpose, step, draw, id), and it is random."""

import hashlib
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ornstein import noise as noises
from ornstein.noise import Noise, Shuffle, leading, permutation, philox

WORD = 2**32


def philox_in_python(counter: list[int], key: tuple[int, int]) -> list[int]:
    """Philox4x32-10 as the paper's figure draws it, in exact integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 // WORD) ^ c1 ^ k0, p1 % WORD, (p0 // WORD) ^ c3 ^ k1, p0 % WORD
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return [c0, c1, c2, c3]


KNOWN = [  # counter, key, result: Random123's kat_vectors
    ([0] * 4, (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([WORD - 1] * 4, (WORD - 1, WORD - 1), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "known"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, known):
    expected = [int(word, 16) for word in known.split()]
    assert philox(torch.tensor(counter).view(4, 1), key).flatten().tolist() == expected
    assert philox_in_python(counter, key) == expected


word = st.integers(0, WORD - 1)


@given(st.lists(st.tuples(word, word, word, word), min_size=1, max_size=5), st.tuples(word, word))
def test_philox_agrees_with_exact_integers(counters, key):
    out = philox(torch.tensor(counters).T.contiguous(), key)
    assert out.T.tolist() == [philox_in_python(list(c), key) for c in counters]


def test_bits_are_philox_of_block_draw_step_and_id():
    digest = hashlib.blake2b(b"7/test", digest_size=8).digest()
    key = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"))
    noise = Noise.of(7, "test", [37, 4, WORD - 1, 0]).at(5)
    expected = [
        [w for block in range(3) for w in philox_in_python([block, 2, 5, i], key)][:10]
        for i in (37, 4, WORD - 1, 0)
    ]
    assert noise.bits(2, 10).tolist() == expected


# --- the key ---------------------------------------------------------------------------------


def test_a_torch_generator_keeps_32_bits_of_its_seed_and_noise_keeps_all():
    """Seeds that agree in their low half: the same numbers from torch on a CPU, others here."""
    seed, other = 5, 5 + 2**40
    torch_draws = [
        torch.randn(8, generator=torch.Generator().manual_seed(s)) for s in (seed, other)
    ]
    assert torch.equal(*torch_draws)
    draws = [Noise.of(s, "test", 1).normal(0, (8,)) for s in (seed, other)]
    assert not (draws[0] == draws[1]).any()


def test_every_bit_of_the_seed_and_of_the_key_matters():
    """Flipping any one of 64 bits flips half of the output, within 5 standard deviations."""
    base = Noise.of(0, "test", 8)
    words = base.bits(0, 32)
    flipped = [Noise.of(1 << i, "test", 8) for i in range(64)]
    for i in range(32):
        flipped.append(base._replace(key=(base.key[0] ^ (1 << i), base.key[1])))
        flipped.append(base._replace(key=(base.key[0], base.key[1] ^ (1 << i))))
    assert len({n.key for n in flipped}) == 128
    total = 8 * 32 * 32
    for noise in flipped:
        changed = sum(int(w).bit_count() for w in (noise.bits(0, 32) ^ words).flatten().tolist())
        assert abs(changed - total / 2) < 5 * math.sqrt(total) / 2


# --- any batch, order, split -----------------------------------------------------------------


def everything(noise: Noise) -> list[torch.Tensor]:
    return [
        noise.bits(1, 7),
        noise.uniform(0, (3,)),
        noise.uniform(0, (2, 2), torch.float64),
        noise.normal(2, (5,)),
        noise.normal(2, (1, 2, 3), torch.float64),
        noise.integers(3, 1000, (2,)),
        noise.child("dropout").at(3).normal(0, (2,)),
    ]


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 9), st.integers(0, 99))
def test_noise_is_equal_for_any_worker_count_batch_size_and_order(total, workers, micro, seed):
    """What sample i draws is bit-equal however the ids are dealt out, cut up and shuffled."""
    whole = everything(Noise.of(seed, "train", total).at(11))
    seen = 0
    for rank in range(workers):
        ids = list(range(rank, total, workers))
        random.Random(seed).shuffle(ids)
        for start in range(0, len(ids), micro):
            part = ids[start : start + micro]
            for a, b in zip(everything(Noise.of(seed, "train", part).at(11)), whole, strict=True):
                assert torch.equal(a, b[part])
            seen += len(part)
    assert seen == total


def test_parts_of_a_batch_and_forms_of_ids():
    noise = Noise.of(1, "test", range(100, 120))
    part = noise.of_samples(slice(5, 9)).normal(0, (3,))
    assert torch.equal(part, noise.normal(0, (3,))[5:9])
    assert torch.equal(part, Noise.of(1, "test", torch.arange(105, 109)).normal(0, (3,)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_bits_are_equal_on_a_gpu():
    here, there = (Noise.of(3, "test", torch.arange(99, device=d)) for d in ("cpu", "cuda"))
    assert torch.equal(here.bits(0, 33), there.bits(0, 33).cpu())
    torch.testing.assert_close(here.normal(0, (33,)), there.normal(0, (33,)).cpu())


# --- independence ----------------------------------------------------------------------------


def neighbours() -> dict[str, torch.Tensor]:
    n, shape = Noise.of(0, "test", 500), (40,)
    high = Noise.of(0, "test", torch.arange(500) + WORD)
    return {
        "base": n.normal(0, shape),
        "draw": n.normal(1, shape),
        "step": n.at(1).normal(0, shape),
        "seed": Noise.of(1, "test", 500).normal(0, shape),
        "purpose": Noise.of(0, "tests", 500).normal(0, shape),
        "child": n.child("test").normal(0, shape),
        "grandchild": n.child("test").child("test").normal(0, shape),
        "id beyond 32 bits": high.normal(0, shape),
        "id beyond 33 bits": Noise.of(0, "test", torch.arange(500) + 2 * WORD).normal(0, shape),
        "draw of an id beyond 32 bits": high.normal(1, shape),
        "next ids": Noise.of(0, "test", range(500, 1000)).normal(0, shape),
    }


def test_neighbouring_noise_is_independent():
    """Correlations of 20,000 pairs stay below 4.5/√n, and no number comes twice."""
    named = neighbours()
    stacked = torch.stack([z.flatten() for z in named.values()])
    correlation = torch.corrcoef(stacked) - torch.eye(len(named))
    assert correlation.abs().max() < 4.5 / math.sqrt(stacked.shape[1])
    squares = torch.corrcoef(stacked**2) - torch.eye(len(named))
    assert squares.abs().max() < 4.5 / math.sqrt(stacked.shape[1])
    for i in range(len(named)):
        for j in range(i):
            assert (stacked[i] == stacked[j]).float().mean() < 1e-3


def test_the_numbers_of_one_sample_are_independent_of_each_other():
    z = Noise.of(0, "test", 20_000).normal(0, (12,), torch.float64)
    for power in (1, 2):
        correlation = torch.corrcoef((z**power).T) - torch.eye(12, dtype=torch.float64)
        assert correlation.abs().max() < 4.5 / math.sqrt(len(z))


# --- distributions ---------------------------------------------------------------------------


def kolmogorov(u: torch.Tensor) -> float:
    """√n sup |F_n − F| of numbers that should be uniform; above 1.95 once in a thousand."""
    u = u.double().flatten().sort().values
    n = len(u)
    i = torch.arange(n, dtype=torch.float64)
    return math.sqrt(n) * max((u - i / n).max().item(), ((i + 1) / n - u).max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_and_normals_have_their_laws(dtype):
    noise = Noise.of(0, "test", 1000)
    assert kolmogorov(noise.uniform(0, (200,), dtype)) < 1.95
    z = noise.normal(1, (201,), dtype).double()  # an odd count: one cosine has no sine
    assert kolmogorov(torch.special.ndtr(z)) < 1.95
    n = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean().item() - moment) < 4.5 * math.sqrt(variance / n)


def test_normals_are_box_muller_of_the_bits_in_both_precisions():
    """z = √(−2 ln u) (cos 2πw, sin 2πw) with u, w in (0, 1) from 32 bits each."""
    noise = Noise.of(4, "test", 50)
    words = noise.bits(0, 6).tolist()
    expected = []
    for row in words:
        length = [math.sqrt(-2 * math.log((w + 0.5) / WORD)) for w in row[:3]]
        turn = [2 * math.pi * w / WORD for w in row[3:]]
        expected.append(
            [r * math.cos(a) for r, a in zip(length, turn, strict=True)]
            + [r * math.sin(a) for r, a in zip(length, turn, strict=True)]
        )
    z64, z32 = noise.normal(0, (6,), torch.float64), noise.normal(0, (6,))
    torch.testing.assert_close(z64, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(z32.double(), z64, atol=3e-6, rtol=3e-6)


def test_gaussian_tails_are_there_in_single_precision():
    """Of 2 million normals 133 pass 4 σ (± 5 standard deviations), and the largest passes 4.7."""
    z = Noise.of(0, "test", 2048).normal(0, (1024,)).abs()
    expected = z.numel() * math.erfc(4 / math.sqrt(2))
    assert abs((z > 4).sum().item() - expected) < 5 * math.sqrt(expected)
    assert 4.7 < z.max() < 6.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("extreme", [0, WORD - 1])
def test_the_ends_of_the_unit_interval_are_never_returned(monkeypatch, dtype, extreme):
    noise = Noise.of(0, "test", 2)
    monkeypatch.setattr(Noise, "bits", lambda self, draw, n: torch.full((2, n), extreme))
    u = noise.uniform(0, (3,), dtype)
    assert (u > 0).all()
    assert (u < 1).all()
    assert noise.normal(0, (3,), dtype).isfinite().all()


def test_whole_numbers_are_uniform():
    n, high = 60_000, 7
    drawn = Noise.of(0, "test", n).integers(0, high)
    assert drawn.shape == (n,)
    counts = torch.bincount(drawn, minlength=high).double()
    assert len(counts) == high
    assert ((counts - n / high) ** 2 / (n / high)).sum() < 22.5  # chi², 6 degrees, p = 0.001


def test_shapes_dtypes_and_an_empty_batch():
    noise = Noise.of(0, "test", 3)
    assert noise.normal(0).shape == (3,)
    assert noise.uniform(0, (2, 4)).shape == (3, 2, 4)
    assert noise.normal(0, (2,), torch.float64).dtype == torch.float64
    assert noise.normal(0, (0, 2)).shape == (3, 0, 2)
    assert Noise.of(0, "test", 0).normal(0, (3,)).shape == (0, 3)
    assert Noise.of(0, "test", 0).uniform(0, (3,), torch.float64).shape == (0, 3)


# --- permutations ----------------------------------------------------------------------------


@given(st.integers(1, 300), st.integers(0, 2**63), st.integers(0, 1000))
def test_a_permutation_is_a_bijection_named_by_its_key(count, seed, epoch):
    order = permutation(seed, "order", epoch, count)
    assert sorted(order.tolist()) == list(range(count))
    assert torch.equal(order, permutation(seed, "order", epoch, count))
    if count > 20:
        assert not torch.equal(order, permutation(seed, "order", epoch + 1, count))
        assert not torch.equal(order, permutation(seed, "other", epoch, count))


def test_all_orders_are_equally_likely():
    trials = 1200
    orders = [tuple(permutation(0, "order", step, 4).tolist()) for step in range(trials)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 24
    assert sum((c - trials / 24) ** 2 / (trials / 24) for c in counts) < 49.7  # 23 degrees, 0.001


def test_a_permutation_is_the_same_however_its_words_are_drawn(monkeypatch):
    """By parts, or all at once, as it was defined."""
    words = Noise.of(3, "order", 1000).at(7).bits(0, 2)
    expected = torch.argsort(((words[:, 0] & 0x7FFFFFFF) << 32) | words[:, 1], stable=True)
    for block in (1 << 18, 1000, 999, 7):
        monkeypatch.setattr(noises, "_BLOCK", block)
        assert torch.equal(permutation(3, "order", 7, 1000), expected)


@given(st.integers(0, 200), st.integers(0, 200), st.booleans())
def test_the_leading_part_of_a_permutation_is_known_without_it(count, size, ties):
    with pytest.MonkeyPatch.context() as patch:
        if ties:
            drawn = noises._sorted_by
            patch.setattr(noises, "_sorted_by", lambda *key: drawn(*key) % 5)
        size = min(size, count)
        found = leading(5, "order", 2, count, size)
        expected = permutation(5, "order", 2, count)[:size].sort().values
    assert found.dtype == torch.bool
    assert found.shape == (count,)
    assert torch.equal(found.nonzero().squeeze(1), expected)


# --- orders that are asked for place by place ------------------------------------------------


SIZES = [*range(1, 40), 47, 64, 100, 127, 128, 129, 899, 900, 901, 1021, 4096, 9973, 65_536]


@pytest.mark.parametrize("count", SIZES)
def test_every_number_stands_at_one_place(count):
    for step in range(5):
        order = Shuffle.of(1, "order", step, count)(torch.arange(count))
        assert torch.equal(order.sort().values, torch.arange(count))


def shuffled_in_python(seed: int, purpose: str, step: int, count: int, place: int) -> int:
    """The network in exact integers, a function at a time, as the docstring writes it."""
    a = next(a for a in range(2, count + 3, 2) if a * a >= count)
    b = next(b for b in range(1, count + 1) if a * b >= count)
    rounds = next(r for r in range(8, 99, 2) if b == 1 or b ** (r // 2) >= 2**20)
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    key = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"))
    while True:
        left, right = place % a, place // a
        for i in range(rounds):
            word = philox_in_python([i // 4, 0, step, right], key)[i % 4]
            side = b if i % 2 else a
            left, right = right, (left + word * side // WORD) % side
        place = a * right + left
        if place < count:
            return place


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 64, 1797, 10_000_019, 2**40 + 15])
def test_an_order_is_the_network_in_exact_integers(count):
    places = sorted({0, 1, 2, count // 3, count - 1} & set(range(min(count, 3))) | {count - 1})
    places += [count // 2] * (count < 10**9)
    if count > 10**9:  # its tables take a million numbers each
        assert Shuffle.of(0, "order", 0, count).sides == (2**20 + 2, 2**20 - 1)
        return
    found = Shuffle.of(4, "order", 9, count)(torch.tensor(places))
    expected = [shuffled_in_python(4, "order", 9, count, place) for place in places]
    assert found.tolist() == expected


@given(
    st.integers(1, 10**7),
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 10**7), min_size=1, max_size=20),
)
def test_any_part_of_the_places_is_that_part_of_the_order(count, epoch, places):
    order = Shuffle.of(2, "order", epoch, count)
    asked = torch.tensor(places) % count
    whole = order(asked)
    assert ((whole >= 0) & (whole < count)).all()
    assert len(set(whole.tolist())) == len(set(asked.tolist()))
    for place, number in zip(asked, whole, strict=True):
        assert order(place.view(1, 1)).item() == number
    assert torch.equal(Shuffle.of(2, "order", epoch, count)(asked.flip(0)), whole.flip(0))


def chi_squared(counts: torch.Tensor) -> float:
    """χ² against equal chances as a standard normal number (E. Wilson, M. Hilferty, 1931)."""
    counts = counts.double().flatten()
    mean, spread = counts.mean(), 2 / (9 * (len(counts) - 1))
    square = ((counts - mean) ** 2 / mean).sum() / (len(counts) - 1)
    return float((square ** (1 / 3) - 1 + spread) / math.sqrt(spread))


@pytest.mark.parametrize("count", [2, 3, 5, 8, 11])
def test_every_number_is_as_likely_at_every_place_and_every_pair_at_every_two(count):
    """With 8 rounds, whatever the sides, the pairs of 8 numbers would be off by 15 of these."""
    trials = 800
    orders = [Shuffle.of(7, "order", step, count)(torch.arange(count)) for step in range(trials)]
    stacked = torch.stack(orders)
    for place in range(count):
        assert chi_squared(torch.bincount(stacked[:, place], minlength=count)) < 4
    for one in range(count - 1):
        for other in {one + 1, count - 1} - {one}:
            pairs = torch.bincount(stacked[:, one] * count + stacked[:, other], minlength=count**2)
            possible = ~torch.eye(count, dtype=torch.bool).flatten()
            assert not pairs[~possible].any()
            assert count == 2 or chi_squared(pairs[possible]) < 4


@pytest.mark.parametrize("count", [3, 4])
def test_shuffles_make_all_orders_equally_likely(count):
    trials = 720
    ids = torch.arange(count)
    found = [tuple(Shuffle.of(0, "order", s, count)(ids).tolist()) for s in range(trials)]
    counts = torch.tensor([found.count(order) for order in set(found)])
    assert len(counts) == math.factorial(count)
    assert chi_squared(counts) < 4


def test_half_of_all_orders_are_odd():
    """Sides of 3 and 3 would allow even ones only."""
    odd = 0
    for step in range(300):
        order = Shuffle.of(0, "order", step, 9)(torch.arange(9))
        odd += int((order[:, None] > order)[torch.ones(9, 9).triu(1) > 0].sum()) % 2
    assert abs(odd - 150) < 5 * 9


@pytest.mark.parametrize("count", [1797, 60_000, 1_000_003])
def test_a_long_order_shows_no_pattern(count):
    """Neighbours, digits and distances are as those of independent numbers, and so are epochs."""
    places = torch.arange(count)
    order, other = (Shuffle.of(5, "order", step, count)(places) for step in (0, 1))
    scaled, moved = order.double() / count, places.double() / count
    for one in (scaled.roll(1), scaled.roll(2), scaled.roll(44), moved, other.double() / count):
        assert abs(torch.corrcoef(torch.stack((scaled, one)))[0, 1]) < 4.5 / math.sqrt(count)
        near = ((scaled * 8).long() * 8 + (one * 8).long()).clamp(max=63)
        assert chi_squared(torch.bincount(near, minlength=64)) < 4
    step = (order - order.roll(1)) % count
    assert chi_squared(torch.bincount(step * 50 // count, minlength=50)) < 4
    side = math.isqrt(count)
    digits = torch.bincount(order[: count // 2] % side * 4 // side, minlength=4)
    assert chi_squared(digits) < 4
    assert (order == other).sum() < 10  # one on average
    assert (order == places).sum() < 10


def test_an_order_of_a_billion_takes_little():
    shuffle = Shuffle.of(0, "order", 3, 10**9)
    assert shuffle.functions.numel() < 300_000
    found = shuffle(torch.arange(0, 10**9, 10**6))
    assert len(found.unique()) == 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_drawn_ahead_are_the_steps(dtype):
    noise = Noise.of(3, "ahead", [5, 2**33 + 1, 7])
    together = noise.ahead(4, 3).normal(1, (2, 5), dtype).split(3)
    for step, z in zip((4, 5, 6), together, strict=True):
        assert torch.equal(z, noise.at(step).normal(1, (2, 5), dtype))


def test_masking_numbers_are_uniform_independent_and_of_their_sample():
    """Means, variances and correlations within five standard errors; the same in any batch."""
    noise = Noise.of(3, "masks", 64).at(7)
    u = noise.masking(0, (4096,))
    assert 0 < u.min() < u.max() < 1
    n = u.numel()
    assert abs(u.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    assert abs(u.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / n)
    centred = u.double() - 0.5
    for shifted in (centred.roll(1, 0), centred.roll(1, 1), centred.roll(17, 1)):
        assert abs((centred * shifted).mean() * 12) < 5 / math.sqrt(n)
    other = noise.at(8).masking(0, (4096,)).double() - 0.5
    assert abs((centred * other).mean() * 12) < 5 / math.sqrt(n)
    assert torch.equal(noise.of_samples(slice(10, 20)).masking(0, (4096,)), u[10:20])
    shares = torch.histc(u, 32, 0, 1) / n
    assert (shares - 1 / 32).abs().max() < 6 * math.sqrt(1 / 32 / n)
