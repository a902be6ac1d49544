"""Randomness as a value: a pure function of its key, the same in any batch, worker or rank.

    u = Philox4x32-10(counter = (block, draw, step, id), key = hash(seed, purpose))

J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
The key has 64 bits (a torch CPU generator keeps 32 of a seed), and every sample has counters of
its own: what sample 37 of step 5 draws depends on (seed, purpose, step 5, 37) only. Bits are
equal on every device; normals agree to rounding, since logarithms and cosines differ there.

There is no state to save or restore, and nothing to advance: a draw is named, not taken. That
holds for random orders, too: `Shuffle` says what stands at a place of one, without the others.
"""

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_BLOCK = 1 << 18  # numbers whose words are in memory at a time


def philox(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Philox4x32-10 of int64 `counter[4, n]` (32-bit words) -> int64 `[4, n]` (32-bit words)."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        p, q = c0 * _M0, c2 * _M1  # these wrap in int64, where the low 64 bits are still right
        # The low words keep what is above their 32 bits until a mask must come anyway.
        c0 = (q >> 32).bitwise_xor_(c1).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = (p >> 32).bitwise_xor_(c3).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = q, p
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return torch.stack((c0, c1.bitwise_and_(_MASK), c2, c3.bitwise_and_(_MASK)))


class Noise(NamedTuple):
    """The random numbers of a batch: sample `b` of the batch draws as sample `ids[b]`.

    Shapes: `ids` is int64 [B], the positions in the *global* batch (training) or the sample
    numbers (generation), below 2^48. `step`, below 2^32, tells apart the steps of a loop (a
    tensor: one step for each id, see `ahead`); `purpose` the uses within one; `draw`, below 2^16,
    the draws of one use.
    """

    key: tuple[int, int]
    ids: Tensor
    step: int | Tensor = 0

    @classmethod
    def of(cls, seed: int, purpose: str, ids: Tensor | Sequence[int] | range | int) -> "Noise":
        """The noise of `seed` for `purpose`; a whole number of ids means 0, 1, ... below it."""
        if isinstance(ids, int):
            ids = torch.arange(ids)
        elif not isinstance(ids, Tensor):
            ids = torch.tensor(list(ids), dtype=torch.int64)
        return cls(_key(f"{seed}/{purpose}"), ids)

    def child(self, purpose: str) -> "Noise":
        """Independent noise for another purpose of the same samples and step."""
        return self._replace(key=_key(f"{self.key[0]:08x}{self.key[1]:08x}/{purpose}"))

    def at(self, step: int) -> "Noise":
        """The noise of step `step` of a loop."""
        return self._replace(step=step)

    def ahead(self, first: int, count: int) -> "Noise":
        """The noise of `count` steps from `first` on, in one batch: all samples at the first step,
        then all at the next. What it draws is what each step would draw by itself."""
        steps = torch.arange(first, first + count, device=self.ids.device)
        return self._replace(
            ids=self.ids.repeat(count), step=steps.repeat_interleave(len(self.ids))
        )

    def of_samples(self, part: slice) -> "Noise":
        """The noise of a part of the batch."""
        return self._replace(ids=self.ids[part])

    def bits(self, draw: int, count: int) -> Tensor:
        """`count` random 32-bit words per sample, as int64 [B, count]."""
        blocks = -(-count // 4)
        device, batch = self.ids.device, len(self.ids)
        counter = torch.empty(4, batch, blocks, dtype=torch.int64, device=device)
        counter[0] = torch.arange(blocks, device=device)
        counter[1] = draw ^ ((self.ids >> 32).unsqueeze(1) << 16)  # ids may pass 32 bits
        counter[2] = self.step if isinstance(self.step, int) else self.step.unsqueeze(1)
        counter[3] = (self.ids & _MASK).unsqueeze(1)
        words = philox(counter.view(4, -1), self.key).view(4, batch, blocks)
        return words.permute(1, 2, 0).reshape(batch, 4 * blocks)[:, :count]

    def uniform(
        self, draw: int, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Uniform numbers in the open interval (0, 1), `[B, *shape]`, neither end included.

        52 bits in float64 where that is asked for, else 23 bits in float32.
        """
        count = math.prod(shape)
        if dtype == torch.float64:
            words = self.bits(draw, 2 * count)
            mantissa = ((words[:, :count] & 0xFFFFF) << 32) | words[:, count:]
            u = (mantissa.double() + 0.5) * 2.0**-52
        else:
            # float32 whatever is asked for: a narrower type would round to 1.
            u = ((self.bits(draw, count) >> 9).to(torch.float32) + 0.5) * 2.0**-23
        return u.view(len(self.ids), *shape)

    def masking(self, draw: int, shape: Sequence[int] = ()) -> Tensor:
        """Uniform numbers like `uniform`'s float32 ones, several times cheaper: `scrambled` from 64
        bits of each sample, which is mixed well enough to say which pixels are masked or white."""
        words = self.bits(draw, 2)
        key = (words - ((words >> 31) << 32)).to(torch.int32)  # the same bits, as signed numbers
        z = scrambled(key, math.prod(shape))
        z.bitwise_right_shift_(9).bitwise_and_(0x7FFFFF)
        u = z.to(torch.float32).add_(0.5).mul_(2.0**-23)
        return u.view(len(self.ids), *shape)

    def normal(
        self, draw: int, shape: Sequence[int] = (), dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Standard normal numbers, `[B, *shape]`, by the Box-Muller transform of uniforms."""
        count = math.prod(shape)
        half = -(-count // 2)
        words = self.bits(draw, 2 * half)
        precise = dtype == torch.float64
        work = torch.float64 if precise else torch.float32
        # A full 32-bit radius word reaches 6.7 standard deviations, also in single precision.
        radius = (words[:, :half].to(torch.float64) + 0.5) * 2.0**-32
        angle = words[:, half:].to(work) * (2 * math.pi * 2.0**-32)
        length = radius.log().mul_(-2).sqrt_().to(work)
        z = torch.cat((length * angle.cos(), length * angle.sin()), dim=1)[:, :count]
        return z.to(dtype).view(len(self.ids), *shape)

    def integers(self, draw: int, high: int, shape: Sequence[int] = ()) -> Tensor:
        """Whole numbers in [0, high), int64 `[B, *shape]`; the bias is below high / 2^32."""
        return ((self.bits(draw, math.prod(shape)) * high) >> 32).view(len(self.ids), *shape)


def scrambled(key: Tensor, count: int) -> Tensor:
    """32 random bits for each of `count` positions: key int32 [B, 2] -> int32 [B, count].

    An integer hash of (key, position): xor-shifts and multiplications, with constants by C. Wellons
    ("Prospecting for hash functions", 2018). The high bits are mixed best.
    """
    a, b = key[:, :1], key[:, 1:]
    z = torch.arange(count, dtype=torch.int32, device=key.device) * (0x9E3779B9 - 2**32) + a
    for mixer in (0x7FEB352D, 0x846CA68B - 2**32):  # products wrap, on purpose
        z.bitwise_xor_((z >> 16).bitwise_and_(0xFFFF)).mul_(mixer).add_(b)
    return z


def permutation(seed: int, purpose: str, step: int, count: int) -> Tensor:
    """A random order of 0 ... count-1 that depends on (seed, purpose, step) only.

    All orders are equally likely. It takes 32 bytes a number, and a sort: see `Shuffle`.
    """
    return torch.argsort(_sorted_by(seed, purpose, step, count), stable=True)


def leading(seed: int, purpose: str, step: int, count: int, size: int) -> Tensor:
    """Which of 0 ... count-1 are among the first `size` of that permutation, bool [count].

    Nothing is sorted, and 34 bytes a number suffice.
    """
    words = _sorted_by(seed, purpose, step, count)
    if size < 1:
        return torch.zeros(count, dtype=torch.bool)
    last = words.kthvalue(size).values
    first = words < last
    equal = (words == last).nonzero().squeeze(1)  # a stable sort leaves them in their order
    first[equal[: size - int(first.sum())]] = True
    return first


def _sorted_by(seed: int, purpose: str, step: int, count: int) -> Tensor:
    """63 random bits for each of 0 ... count-1, by which `permutation` sorts: int64 [count]."""
    bits = torch.empty(count, dtype=torch.int64)
    for start in range(0, count, _BLOCK):
        ids = torch.arange(start, min(start + _BLOCK, count))
        words = Noise.of(seed, purpose, ids).at(step).bits(0, 2)
        bits[start : start + _BLOCK] = ((words[:, 0] & 0x7FFFFFFF) << 32) | words[:, 1]
    return bits


ROUNDS = 8
"""How often a `Shuffle` turns its numbers round, at least; an even number."""


class Shuffle(NamedTuple):
    """A random order of 0 ... count-1 whose places can be asked for one by one.

    A number x < a b is two digits, x = a r + l with l < a and r < b. A round

        (l, r)  →  (r,  l + f(r))        modulo a and b in turn

    can be undone whatever the function f is, so that rounds with random functions make a random
    one-to-one map of the numbers below a b: a Feistel network (M. Luby, C. Rackoff, "How to
    construct pseudorandom permutations from pseudorandom functions", 1988), generalised to any a
    and b (J. Black, P. Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002, method 3).
    Numbers that it takes beyond `count` are taken further until they are below, which is
    one-to-one, too (their method 2); a is √count, rounded up to an even number, and b is as small
    as a b ≥ count allows, so that this is rare. Of two odd sides, half of all orders could not
    come about.

    Two numbers with one r keep their distance through two rounds if their new r are equal, which
    has the chance 1/b. There are 8 rounds, and more where b is below 32, so that it is kept to the
    end in less than one order of 2^20. (Not all orders come about: there are 2^64 keys only.)

    length: count. sides: (a, b). functions: int64 [rounds, max(a, b)], tables of f. They depend on
    (seed, purpose, step) only; a table takes √count numbers, and so does the work to make it.
    """

    length: int
    sides: tuple[int, int]
    functions: Tensor

    @classmethod
    def of(cls, seed: int, purpose: str, step: int, count: int) -> "Shuffle":
        """The order that these name; count is below 2^48."""
        a = math.isqrt(max(count, 1) - 1) + 1
        a += a % 2
        b = max(1, -(-count // a))
        pairs = next(n for n in itertools.count(ROUNDS // 2) if b == 1 or b**n >= 2**20)
        words = Noise.of(seed, purpose, max(a, b)).at(step).bits(0, 2 * pairs).T
        sides = torch.tensor([a, b] * pairs).unsqueeze(1)
        functions = (words * sides) >> 32  # the bias is below a / 2^32
        return cls(count, (a, b), functions.contiguous())

    def __call__(self, places: Tensor) -> Tensor:
        """What stands at some places of the order, int64 of the same shape."""
        found = self._mapped(places)
        while (beyond := found >= self.length).any():
            found[beyond] = self._mapped(found[beyond])
        return found

    def _mapped(self, x: Tensor) -> Tensor:
        a, b = self.sides
        left, right = x % a, x.div(a, rounding_mode="floor")
        for i, function in enumerate(self.functions):
            left, right = right, (left + function.take(right)) % (b if i % 2 else a)
        return right * a + left


def _key(text: str) -> tuple[int, int]:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
