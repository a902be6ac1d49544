"""What an autoencoder makes of held-out samples, and what its codes mean (`latent_pictures`).

    reconstructions   E[x|z] for the likeliest code z of a sample, or of what corruption left of it
    codes             which units are active and how many nats each costs, or how a codebook is used
    traversals        E[x|z] as one unit goes from −2 to 2 and the others stay as a sample has them
    latent map        where samples lie in two dimensions of the code; where there are no others,
                      E[x|z] all over them at z = Φ⁻¹(u), u even in the unit square

The last is fig 4 of D. Kingma, M. Welling, "Auto-encoding variational Bayes", 2013,
arXiv:1312.6114. A unit is one number of a code. Gaussian units are on the scale of their prior,
N(0, 1); what plain units have in its place is their mean and deviation over the data.

The encoder is shown a sample as it is: where pixels are chances (`bernoulli`), the chances.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ornstein import memory
from ornstein.autoencoders.codec import Codec
from ornstein.autoencoders.discrete import Codebooks, Level, joined, split
from ornstein.autoencoders.model import Autoencoder
from ornstein.errors import ConfigError, OutOfMemory
from ornstein.metrics.codes import Usage, active, unit_kl, usage
from ornstein.metrics.estimate import estimate
from ornstein.metrics.reconstruction import MOST, low_of, psnr, span_of, ssim
from ornstein.noise import Noise, permutation
from ornstein.objectives.autoencoding import Autoencoding
from ornstein.scores import Estimate

if TYPE_CHECKING:
    from ornstein.autoencoders.corruption import Corruption
    from ornstein.run import Run

BATCH = 250
KEPT = 1 << 27  # numbers of codes in memory at a time, unless more samples are asked for
POINTS = 3000  # of a map, and samples that its directions are found from
CLOUD = 2000  # samples in the picture where they are no images
REACH = 2.0  # standard deviations that a traversal goes to each side
ROWS = 10  # of a picture of traversals
Progress = Callable[[int, int], None]


class Codes(NamedTuple):
    """The likeliest codes of n held-out samples, flattened to L units each, on the CPU.

    ids: int64 [n], the samples' numbers. z: float32 [n, L]. std: the same, of q(z|x), where that
    is Gaussian; z is its mean then. indices: int64 [n, places], where codes are of codebooks, of
    all `levels`, the coarsest first.
    """

    ids: np.ndarray
    z: Tensor
    std: Tensor | None = None
    indices: Tensor | None = None
    levels: tuple[Level, ...] = ()

    @property
    def kl(self) -> Tensor | None:
        """KL(q(z_u|x) ‖ N(0, 1)) of each unit in nats, float64 [L], mean over the samples."""
        return None if self.std is None else unit_kl(self.z, self.std)


class Reconstructions(NamedTuple):
    """Of n held-out samples; x, given and back are the first of them, in native values.

    given: what the encoder was shown, None where that is the sample. psnr, ssim: of each
    reconstruction against its sample, float64 [n]; ssim is None for what is no image.
    given_psnr, given_ssim: the same of what was given.
    """

    codes: Codes
    x: np.ndarray
    given: np.ndarray | None
    back: np.ndarray
    psnr: Tensor
    ssim: Tensor | None
    given_psnr: Tensor | None = None
    given_ssim: Tensor | None = None

    def numbers(self) -> dict[str, Estimate]:
        """The means over the n samples with their intervals, by name."""
        found = {
            "PSNR as given, dB": self.given_psnr,
            "SSIM as given": self.given_ssim,
            "PSNR, dB": self.psnr,
            "SSIM": self.ssim,
        }
        return {
            name: estimate(float(values.mean()), values)
            for name, values in found.items()
            if values is not None
        }


class Traversals(NamedTuple):
    """x, back: a sample and its reconstruction [*shape], in native values. rows: of each unit its
    name, and [columns, *shape]. marks: what stands above each of the columns."""

    x: np.ndarray
    back: np.ndarray
    rows: Sequence[tuple[str, np.ndarray]]
    marks: Sequence[str]


class LatentMap(NamedTuple):
    """points: [n, 2]. label: their classes int64 [n], where there are any. axes: what the two are.
    decoded: [side, side, *shape] in native values, the first axis falling and the second rising
    as those of a picture do; None where a code has more units than two."""

    points: np.ndarray
    label: np.ndarray | None
    axes: tuple[str, str]
    decoded: np.ndarray | None


# ── From a run.


def autoencoder(run: Run) -> Autoencoder:
    """A run's choice of model. Raises: ConfigError where it is no autoencoder."""
    chosen = run.recipe.model
    if not isinstance(chosen, Autoencoder):
        raise ConfigError(
            f"the model of {run.path.name} is of the kind {chosen.kind!r}, which has no codes; "
            "give a run of an autoencoder, such as `ornstein train vae` makes"
        )
    return chosen


def codec(run: Run, average: str = "") -> Codec:
    """A run's trained model. Raises: as `autoencoder`."""
    autoencoder(run)
    model = run.learner(average).model
    assert isinstance(model, Codec)
    return model


def held_out(run: Run, n: int | None = None, seed: int = 0) -> np.ndarray:
    """The numbers of `n` held-out samples in an order that the seed chooses; sample i is the same
    for any n. By default all of them, or as many as their codes leave memory for.

    Raises: ConfigError where too few are held out, which is fewer than 2 at any rate.
    """
    unseen = run.dataset.held_out if n is not None else run.dataset.some().held_out
    least = 2 if n is None else n
    if least < 2:
        raise ConfigError(f"an interval needs at least 2 samples, got {n}; write --number 100")
    if len(unseen) < least:
        way = "write --number with fewer" if len(unseen) > 1 else "train with more in data.held_out"
        raise ConfigError(
            f"{least} held-out samples were asked for, and {len(unseen)} are held out of the data "
            f"of {run.path.name}; {way}"
        )
    chosen: np.ndarray = unseen[permutation(seed, "reconstruct", 0, len(unseen)).numpy()]
    return chosen[:n]


def reconstructions(
    run: Run,
    n: int | None = None,
    seed: int = 0,
    average: str = "",
    shown: int = 10,
    progress: Progress | None = None,
) -> Reconstructions:
    """What comes back of `n` held-out samples (see `held_out`), corrupted first where the run was
    trained so; the corruption of a sample depends on the seed and its number only.

    Raises: ConfigError where the run has no autoencoder, or too few samples are held out.
    """
    model, span = codec(run, average), span_of(run.info)
    image = run.info.kind == "image"
    corruption = _corruption(run)
    found: dict[str, list[Tensor]] = {}
    kept: dict[str, list[np.ndarray]] = {"x": [], "given": [], "back": []}
    ids = held_out(run, n, seed)
    if n is None:
        ids = ids[: _most(model)]
    room = shown if image else CLOUD
    encoded = []
    for part, x, given, code in _passes(run, model, ids, corruption, seed, progress):
        with _memory(len(part)):
            back = run.native(model.mean(code.z.view(-1, *model.latent).to(run.device)))
        encoded.append(code)
        sides = {"": back} if corruption is None else {"": back, "given_": run.native(given)}
        for side, values in sides.items():
            found.setdefault(f"{side}psnr", []).append(psnr(values, x, span).clamp(max=MOST))
            if image:
                found.setdefault(f"{side}ssim", []).append(ssim(values, x, span, low_of(run.info)))
        kept["x"].append(x[:room])
        kept["back"].append(back[:room])
        if corruption is not None:
            kept["given"].append(sides["given_"][:room])
        room = max(0, room - len(part))
    numbers = {name: torch.cat(parts) for name, parts in found.items()}
    return Reconstructions(
        _joined(encoded),
        np.concatenate(kept["x"]),
        np.concatenate(kept["given"]) if corruption is not None else None,
        np.concatenate(kept["back"]),
        numbers["psnr"],
        numbers.get("ssim"),
        numbers.get("given_psnr"),
        numbers.get("given_ssim"),
    )


def codes(
    run: Run,
    n: int | None = None,
    seed: int = 0,
    average: str = "",
    progress: Progress | None = None,
) -> Codes:
    """The codes of `n` held-out samples, uncorrupted; see `held_out`.

    Raises: ConfigError where the run has no autoencoder, or too few samples are held out.
    """
    model, ids = codec(run, average), held_out(run, n, seed)
    if n is None:
        ids = ids[: _most(model)]
    return _joined([code for *_, code in _passes(run, model, ids, None, seed, progress)])


def codebooks(found: Codes) -> dict[str, Usage]:
    """How codebooks are used in these codes, by level: "top" and "bottom", or "" for the only one;
    empty where there is none."""
    if found.indices is None:
        return {}
    names = ("",) if len(found.levels) == 1 else ("top", "bottom")
    parts = split(found.indices, found.levels)
    return {
        name: usage(indices, level.codes)
        for name, indices, level in zip(names, parts, found.levels, strict=True)
    }


@torch.no_grad()
def traversals(run: Run, found: Codes, columns: int = 9, average: str = "") -> Traversals:
    """The first sample's code with one unit after the other moved by −2 to 2 in `columns` steps.

    Gaussian units: the active ones, those that cost the most first; the values are in their prior's
    standard deviations. Others: those that vary most, about their mean in their own standard
    deviations, and no further than was seen. At most ROWS of either.
    Raises: ConfigError for codes of a codebook, or for fewer than 2 columns.
    """
    check_moves(run)
    if columns < 2:
        raise ConfigError(f"a traversal has at least 2 columns, its ends; got {columns}")
    model = codec(run, average)
    steps = torch.linspace(-REACH, REACH, columns)
    middle, spread, low, high = _scale(found)
    rows = []
    for unit, cost in _units(found):
        z = found.z[:1].repeat(columns, 1)
        z[:, unit] = (middle[unit] + steps * spread[unit]).clamp(low[unit], high[unit])
        name = f"{unit_name(unit, model.latent)}: {cost}"
        rows.append((name, _decoded(run, model, z)))
    first = run.dataset.x[found.ids[:1]][0]
    marks = [f"{float(step):.2g}" for step in steps]
    return Traversals(first, _decoded(run, model, found.z[:1])[0], rows, marks)


@torch.no_grad()
def latent_map(run: Run, found: Codes, side: int = 14, average: str = "") -> LatentMap:
    """Where the first samples, at most POINTS, lie in two dimensions of the code.

    The only two; of more Gaussian units, the two that cost the most nats; of other codes, the first
    two principal components. Raises: ConfigError for codes of a codebook, or of one number.
    """
    check_moves(run)
    model, z = codec(run, average), found.z[:POINTS]
    count = z.shape[1]
    if count < 2:
        raise ConfigError(f"codes of one number, as {run.path.name} has, make no map")
    label = run.dataset.label
    of_points = None if label is None else label[found.ids[:POINTS]]
    if count == 2:
        middle, spread, low, high = _scale(found)
        even = torch.special.ndtri((torch.arange(side, dtype=torch.float64) + 0.5) / side).float()
        across, up = torch.meshgrid(even, even.flip(0), indexing="xy")
        at = torch.stack((across, up), dim=-1).view(-1, 2)
        decoded = _decoded(run, model, (middle + at * spread).clamp(low, high))
        decoded = decoded.reshape(side, side, *decoded.shape[1:])
        axes = (unit_name(0, model.latent), unit_name(1, model.latent))
        return LatentMap(z.numpy(), of_points, axes, decoded)
    if (kl := found.kl) is not None:
        first, second = kl.argsort(descending=True, stable=True)[:2].tolist()
        names = [f"{unit_name(u, model.latent)}: {kl[u]:.2f} nats" for u in (first, second)]
        return LatentMap(z[:, [first, second]].numpy(), of_points, (names[0], names[1]), None)
    points, shares = principal(z)
    names = [
        f"{which} principal component: {share:.0%} of the variance"
        for which, share in zip(("first", "second"), shares, strict=True)
    ]
    return LatentMap(points.numpy(), of_points, (names[0], names[1]), None)


def principal(z: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """The first two principal components [n, 2] of z [n, L], and their shares of the variance.

    Signs are such that the largest weight of each is above 0.
    """
    centred = z.double() - z.double().mean(0)
    left, sizes, right = torch.linalg.svd(centred, full_matrices=False)
    sign = right[:2].gather(1, right[:2].abs().argmax(1, keepdim=True)).sign().squeeze(1)
    shares = (sizes.square() / sizes.square().sum().clamp(min=1e-300))[:2].tolist()
    return left[:, :2] * sizes[:2] * sign, (shares[0], shares[1])


def unit_name(unit: int, latent: tuple[int, ...]) -> str:
    """What a unit is called, by its place in the flattened code."""
    first, *place = (int(i) for i in np.unravel_index(unit, latent))
    return f"unit {first}" + (f" at ({', '.join(map(str, place))})" if place else "")


# ── Parts.


class _Pass(NamedTuple):
    """Of a batch: numbers, native samples, what was given at the model's scale, and its codes."""

    ids: np.ndarray
    x: np.ndarray
    given: Tensor
    codes: Codes


@torch.no_grad()
def _passes(
    run: Run,
    model: Codec,
    ids: np.ndarray,
    corruption: Corruption | None,
    seed: int,
    progress: Progress | None,
) -> Iterator[_Pass]:
    """Samples with their codes, batch by batch."""
    a, b = run.info.affine(run.recipe.objective.range)
    info = run.recipe.at_model_scale(run.info)
    for start in range(0, len(ids), BATCH):
        part = ids[start : start + BATCH]
        x = run.dataset.x[part]
        given = torch.from_numpy(x).to(run.device, torch.float32) * a + b
        if corruption is not None:
            numbers = torch.from_numpy(part).to(run.device)
            given = corruption(given, Noise.of(seed, "reconstruct/corruption", numbers), info)
        with _memory(len(part)):
            code = model.encode(given)
        z, std = (None if t is None else t.flatten(1).cpu() for t in (code.z, code.std))
        assert z is not None
        found = Codes(part, z.float(), std)
        if code.indices is not None:
            assert isinstance(model.bottleneck, Codebooks)
            indices = joined((code.indices,)).cpu()
            found = found._replace(indices=indices, levels=model.bottleneck.levels)
        yield _Pass(part, x, given, found)
        if progress is not None:
            progress(start + len(part), len(ids))


@contextlib.contextmanager
def _memory(count: int) -> Iterator[None]:
    """Within, a sentence says that memory ran out."""
    try:
        yield
    except RuntimeError as error:
        if not memory.ran_out(error):
            raise
        raise OutOfMemory(
            f"out of memory with {count} samples at a time; take a smaller network"
        ) from error


def _joined(parts: Sequence[Codes]) -> Codes:
    def whole(values: Sequence[Tensor | None]) -> Tensor | None:
        known = [value for value in values if value is not None]
        return torch.cat(known) if known else None

    z = whole([part.z for part in parts])
    assert z is not None
    return Codes(
        np.concatenate([part.ids for part in parts]),
        z,
        whole([part.std for part in parts]),
        whole([part.indices for part in parts]),
        parts[0].levels,
    )


def _most(model: Codec) -> int:
    """How many samples' codes are kept at most."""
    return max(2, KEPT // math.prod(model.latent))


def _corruption(run: Run) -> Corruption | None:
    objective = run.recipe.objective
    return objective.corruption if isinstance(objective, Autoencoding) else None


def check_moves(run: Run) -> None:
    """Raises: ConfigError for codes whose numbers cannot be moved by themselves."""
    kind = autoencoder(run).bottleneck.kind
    if kind in ("vq", "fsq", "hierarchy"):
        raise ConfigError(
            f"codes of {run.path.name} are entries of a codebook ({kind}), of which no number "
            f"moves by itself; `ornstein reconstruct {run.path.name}` says how the codebook is used"
        )


def _scale(found: Codes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each unit: the middle, the deviation, and the ends that it should not leave, all [L]."""
    z = found.z
    if found.std is not None:
        zero, one = torch.zeros(z.shape[1]), torch.ones(z.shape[1])
        return zero, one, -math.inf * one, math.inf * one
    return z.mean(0), z.std(0), z.amin(0), z.amax(0)


def _units(found: Codes) -> list[tuple[int, str]]:
    """The units to move, the foremost first, and what each is worth."""
    kl = found.kl
    if kl is not None:
        order = kl.argsort(descending=True, stable=True)
        live = order[active(found.z)[order]][:ROWS]
        chosen = live if len(live) else order[:1]  # none is active: see that nothing changes
        return [(int(u), f"{kl[u]:.2f} nats") for u in chosen]
    spread = found.z.std(0)
    order = spread.argsort(descending=True, stable=True)[:ROWS]
    live = order[spread[order] > 0]
    chosen = live if len(live) else order[:1]
    return [(int(u), f"standard deviation {spread[u]:.2g}") for u in chosen]


def _decoded(run: Run, model: Codec, z: Tensor) -> np.ndarray:
    """E[x|z] of codes [n, L], in native values."""
    parts = []
    for start in range(0, len(z), BATCH):
        part = z[start : start + BATCH]
        with _memory(len(part)):
            parts.append(run.native(model.mean(part.view(-1, *model.latent).to(run.device))))
    return np.concatenate(parts)
