"""Whether each number of a code stands for one factor of what is seen: four scores.

Given are codes z [N, L] of images whose factors v [N, F] are known, independent whole numbers.

MIG  R. Chen et al., "Isolating sources of disentanglement in variational autoencoders", 2018,
     arXiv:1802.04942, §4.1: of the mutual informations of a factor with all codes, the largest
     less the second largest, as a share of the factor's entropy, on average over the factors

         MIG = mean_k ( I(z_j1; v_k) − I(z_j2; v_k) ) / H(v_k)

     Codes are sorted into 20 bins of equal width between the smallest and the largest. What is
     counted exceeds the truth by about (bins − 1) (values − 1) / 2N nats for an independent code,
     and the difference of two takes most of that away.

SAP  A. Kumar, P. Sattigeri, A. Balakrishnan, "Variational inference of disentangled latent
     concepts from unlabeled observations", 2018, arXiv:1711.00848, §3: the same difference of how
     well each code alone predicts the factor. For an ordered factor that is R² of the line through
     it. For others the paper has the accuracy of a threshold or a support vector machine; here it
     is that of the nearest class mean, a linear classifier in closed form, averaged over the
     classes and counted from chance: (accuracy − 1/K) / (1 − 1/K). Perfect codes score 1 then.

DCI  C. Eastwood, C. Williams, "A framework for the quantitative evaluation of disentangled
     representations", ICLR 2018: R_ij says how much code i matters for the prediction of factor j,

         disentanglement  Σ_i ρ_i (1 − H_F(R_i· / Σ_j R_ij)),    ρ_i = Σ_j R_ij / Σ_ij R_ij
         completeness     mean_j (1 − H_L(R_·j / Σ_i R_ij))
         informativeness  how well all codes together predict the factors, on held-out samples

     with entropies to the base of the number of factors, or codes. R are the impurities that a
     random forest takes away, one of the paper's two predictors: ten trees that look at all codes
     at each fork, and end with ten samples. (The paper finds the depth by validation.)
     Informativeness is R² for ordered factors and accuracy above chance for others, not below 0;
     the paper has errors.

β-VAE metric  I. Higgins et al., "β-VAE: learning basic visual concepts with a constrained
     variational framework", ICLR 2017, §2.2 and appendix A.4: for each vote one factor is chosen
     and L pairs of images are drawn that share its value, and nothing else; mean |z − z'| over the
     pairs is one point, and a linear classifier says which factor it was. L is 64 here. The
     classifier is the linear discriminant of R. Fisher, which no scaling of the codes changes, and
     the score is its accuracy on votes that it has not seen; chance is 1/F.

The first three ask for axes: a rotation of perfect codes takes them to near 0 (DCI by as much as
it mixes). The fourth does not, since codes that mix a factor with others still vary less when it
is fixed: enough pairs tell by how much. It is blind where several factors are mixed in equal
parts: fixing either of two at 45° looks alike.

Intervals of MIG and SAP come from their derivatives (`metrics.estimate`), where the two codes are
those that were found; informativeness and the β-VAE metric count hits of a predictor that has been
fitted. All are for this encoder and other images; another training is another encoder, and varies
more (F. Locatello et al. 2019, arXiv:1811.12359). A forest has no derivative, so that two parts of
DCI come without an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ornstein.errors import ConfigError
from ornstein.metrics.estimate import estimate, fraction, rows
from ornstein.noise import Noise, permutation
from ornstein.scores import Estimate

BINS = 20
PAIRS, VOTES = 64, 600
TREES, LEAF = 10, 10
HELD_OUT = 0.2  # of the samples, for informativeness
_BLOCK = 4096  # images that are encoded at a time
_RIDGE = 1e-6  # of the votes' variance, so that copies of a code can be inverted

Encode = Callable[[Tensor, Noise], Tensor]
"""Codes [n, L] of images made from factors int64 [n, F]. The noise, of the same n images, is for
whatever else there is to choose about them."""


class DCI(NamedTuple):
    """Each in [0, 1]. importance: R, float64 [L, F], each column adding up to 1, or to 0 where no
    code says anything of the factor."""

    disentanglement: float
    completeness: float
    informativeness: Estimate
    importance: Tensor


def mig(codes: Tensor, factors: Tensor, bins: int = BINS) -> Estimate:
    """The mutual information gap of codes [N, L] and factors int64 [N, F], in [0, 1].

    Raises: ConfigError for fewer than two codes or a factor of one value, NumericsError for codes
    that are not finite.
    """
    z, values = _checked(codes, factors)
    place = _binned(z, bins)
    offset = torch.arange(z.shape[1]) * bins
    gaps, influence = [], torch.zeros(len(z), dtype=torch.float64)
    for v in values.T:
        number, law = _numbered(v)
        count = len(law)
        cells = ((place + offset) * count + number.unsqueeze(1)).flatten()
        joint = torch.bincount(cells, minlength=z.shape[1] * bins * count).double() / len(z)
        joint = joint.view(-1, bins, count)
        # Where nothing fell, the logarithm is never asked for.
        ratio = (joint / (joint.sum(2, keepdim=True) * law)).clamp_min(1e-300).log()
        information = (joint * ratio).nan_to_num(0.0).sum((1, 2))
        (best, second), (j, other) = (t.tolist() for t in information.topk(2))
        entropy = -float((law * law.log()).sum())
        gaps.append(gap := (best - second) / entropy)
        own, others = (ratio[i, place[:, i], number] for i in (j, other))
        influence += (own - others + gap * law.log()[number]) / entropy
    return estimate(sum(gaps) / len(gaps), influence / len(gaps), least=0.0, most=1.0)


def sap(codes: Tensor, factors: Tensor, ordered: Sequence[bool]) -> Estimate:
    """The separated attribute predictability of codes [N, L] and factors int64 [N, F], in [0, 1].

    ordered: which factors are quantities, and not classes. Raises: as `mig`.
    """
    z, values = _checked(codes, factors, ordered)
    z = _standardised(z)
    total, influence = 0.0, torch.zeros(len(z), dtype=torch.float64)
    for v, is_ordered in zip(values.T, ordered, strict=True):
        found, of_each = _line(z, v) if is_ordered else _nearest(z, v)
        (best, second), (j, other) = (t.tolist() for t in found.topk(2))
        total += best - second
        influence += of_each[:, j] - of_each[:, other]
    count = len(ordered)
    return estimate(total / count, influence / count, least=0.0, most=1.0)


def dci(codes: Tensor, factors: Tensor, ordered: Sequence[bool], seed: int = 0) -> DCI:
    """Disentanglement, completeness and informativeness of codes [N, L] and factors int64 [N, F].

    ordered: which factors are quantities, and not classes. seed: of the split and the forests.
    Raises: as `mig`, and ConfigError for a single factor.
    """
    z, values = _checked(codes, factors, ordered)
    if len(ordered) < 2:
        raise ConfigError("a code of one factor cannot mix it with others; give 2 factors or more")
    order = permutation(seed, "disentanglement/split", 0, len(z))
    least = max(2, round(HELD_OUT * len(z)))
    kept, unseen = order[least:], order[:least]
    # Trees compute in float32.
    z = _standardised(z).float()
    columns, hits = [], []
    for v, is_ordered in zip(values.T, ordered, strict=True):
        column, predicted = _forest(z[kept], v[kept], z[unseen], is_ordered, seed)
        columns.append(column)
        hits.append(_success(predicted, v[unseen], is_ordered))
    importance = torch.stack(columns, 1)
    of_code, of_factor = importance.sum(1), importance.sum(0)
    weight = of_code / of_code.sum().clamp_min(1e-300)
    # A factor of which no code says anything is complete in none.
    completeness = (1 - _entropies(importance.T)) * (of_factor > 0)
    success = torch.stack(hits).mean(0)
    return DCI(
        float((weight * (1 - _entropies(importance))).sum()),
        float(completeness.mean()),
        estimate(max(0.0, float(success.mean())), success, least=0.0, most=1.0),
        importance,
    )


def beta_vae_score(
    encode: Encode, values: Sequence[int], pairs: int = PAIRS, votes: int = VOTES, seed: int = 0
) -> Estimate:
    """The accuracy of the β-VAE metric, 1/F being chance.

    values: how many each factor has; factor k is drawn from 0 ... values[k] − 1. pairs: L. votes:
    how many points there are, half of them to learn from. It encodes 2 · pairs · votes images.
    Raises: ConfigError for fewer than two factors, or too few votes to see each of them.
    """
    if len(values) < 2 or min(values) < 2 or pairs < 1 or votes < 10 * len(values):
        raise ConfigError(
            "the β-VAE metric needs 2 factors or more of 2 values or more, a pair or more, and 10 "
            f"votes a factor; got {list(values)} values, {pairs} pairs and {votes} votes"
        )
    noise = Noise.of(seed, "disentanglement/votes", votes)
    fixed = noise.integers(0, len(values))
    drawn = [noise.integers(1 + k, count, (2, pairs)) for k, count in enumerate(values)]
    factors = torch.stack(drawn, -1)  # [votes, 2, pairs, F]
    first, second = factors.unbind(1)
    shared = F.one_hot(fixed, len(values)).bool()[:, None]
    images = torch.stack((first, torch.where(shared, first, second)), 1).flatten(0, 2)
    parts = []
    for start in range(0, len(images), _BLOCK):
        part = images[start : start + _BLOCK]
        ids = torch.arange(start, start + len(part))
        parts.append(encode(part, Noise.of(seed, "disentanglement/images", ids)))
    z = rows(torch.cat(parts)).view(votes, 2, pairs, -1)
    points = (z[:, 0] - z[:, 1]).abs().mean(1)
    half = votes // 2
    guess = _discriminant(points[:half], fixed[:half], points[half:], len(values))
    return fraction(guess == fixed[half:])


# ── What is asked of codes and factors.


def _checked(
    codes: Tensor, factors: Tensor, ordered: Sequence[bool] | None = None
) -> tuple[Tensor, Tensor]:
    z = rows(codes)
    if factors.dim() != 2 or len(factors) != len(z) or factors.is_floating_point():
        raise ConfigError(
            f"{list(codes.shape)} codes need whole numbers [{len(z)}, F] for factors, not "
            f"{factors.dtype} {list(factors.shape)}"
        )
    if z.shape[1] < 2:
        raise ConfigError("a gap is between two codes, and here is one; train with more units")
    if ordered is not None and len(ordered) != factors.shape[1]:
        raise ConfigError(
            f"{len(ordered)} factors are said to be ordered or not, of {factors.shape[1]}"
        )
    if bool((factors == factors[:1]).all(0).any()):
        raise ConfigError("a factor has the same value in all samples; leave it out, or draw more")
    return z, factors


def _standardised(z: Tensor) -> Tensor:
    """Columns of mean 0 and variance 1; constant ones are 0."""
    spread = z.std(0, correction=0)
    # The mean of equal numbers is theirs to rounding only.
    varies = spread > 1e-12 * z.abs().amax(0)
    return torch.where(varies, (z - z.mean(0)) / torch.where(varies, spread, 1), 0)


def _binned(z: Tensor, bins: int) -> Tensor:
    """The bin of each number among `bins` of equal width for each column, int64 [N, L]."""
    low, high = z.amin(0), z.amax(0)
    width = torch.where(high > low, high - low, 1)
    return ((z - low) / width * bins).long().clamp_max(bins - 1)


def _numbered(v: Tensor) -> tuple[Tensor, Tensor]:
    """The values that occur by their number, int64 [N], and how frequent each is, float64 [K]."""
    _, number, counts = torch.unique(v, return_inverse=True, return_counts=True)
    return number, counts.double() / len(v)


# ── How well one code predicts a factor: the score of each, [L], and the influence of samples on
# it, [N, L]. z: [N, L], standardised.


def _line(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """R² of the line: r² of the correlation, whose influence is 2 r (z x − r (z² + x²) / 2)."""
    x = _standardised(v.double().unsqueeze(1))
    r = (z * x).mean(0)
    return r.square(), 2 * r * (z * x - r / 2 * (z.square() + x.square()))


def _nearest(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The accuracy of the nearest class mean above chance, each class counting the same."""
    number, law = _numbered(v)
    count = len(law)
    means = torch.zeros(count, z.shape[1], dtype=z.dtype).index_add_(0, number, z)
    means /= len(z) * law.unsqueeze(1)
    # One code at a time: N · L · K distances may be too many.
    guesses = [(z[:, j, None] - means[:, j]).abs().argmin(1) for j in range(z.shape[1])]
    hits = (torch.stack(guesses, 1) == number.unsqueeze(1)).double()
    share = law[number].unsqueeze(1)
    recall = torch.zeros_like(means).index_add_(0, number, hits / (len(z) * share))
    scale = 1 / (1 - 1 / count)
    score = ((recall.mean(0) - 1 / count) * scale).clamp_min(0)
    return score, (hits - recall[number]) / (count * share) * scale


# ── How well all codes predict.


def _forest(
    z: Tensor, v: Tensor, unseen: Tensor, is_ordered: bool, seed: int
) -> tuple[Tensor, Tensor]:
    """How much each code matters, float64 [L], and predictions for codes `unseen`."""
    # Importing it takes seconds, which only this score needs.
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    kind = RandomForestRegressor if is_ordered else RandomForestClassifier
    state = int(Noise.of(seed, "disentanglement/forest", 1).bits(0, 1))
    forest = kind(TREES, max_features=None, min_samples_leaf=LEAF, random_state=state)
    forest.fit(z.numpy(), v.numpy())
    column = torch.from_numpy(forest.feature_importances_).double()
    return column, torch.from_numpy(forest.predict(unseen.numpy()))


def _success(predicted: Tensor, v: Tensor, is_ordered: bool) -> Tensor:
    """What each sample contributes to R², or to the accuracy above chance: [N], its mean is it."""
    if is_ordered:
        x = v.double()
        spread = x.var(correction=0).clamp_min(1e-300)
        return 1 - (predicted.double() - x).square() / spread
    chance = 1 / len(_numbered(v)[1])
    return ((predicted == v).double() - chance) / (1 - chance)


def _entropies(shares: Tensor) -> Tensor:
    """The entropy of each row [A, B], scaled to add up to 1, to the base B; 0 for a row of 0."""
    p = shares / shares.sum(1, keepdim=True).clamp_min(1e-300)
    found: Tensor = torch.special.entr(p).sum(1) / math.log(shares.shape[1])
    return found


def _discriminant(points: Tensor, label: Tensor, unseen: Tensor, count: int) -> Tensor:
    """Which of `count` classes `unseen` [M, L] are by the linear discriminant of points [N, L].

    Class c has x·W⁻¹μ_c − μ_c·W⁻¹μ_c / 2, W being the covariance within classes.
    """
    centre, spread = points.mean(0), points.std(0, correction=0)
    spread = torch.where(spread > 0, spread, 1)
    x, other = (points - centre) / spread, (unseen - centre) / spread
    one_hot = F.one_hot(label, count).double()
    means = (one_hot.T @ x) / one_hot.sum(0).clamp_min(1).unsqueeze(1)
    within = x - means[label]
    covariance = within.T @ within / len(x)
    covariance.diagonal().add_(_RIDGE)
    weight = torch.linalg.solve(covariance, means.T)  # [L, count]
    values: Tensor = other @ weight - (means.T * weight).sum(0) / 2
    return values.argmax(1)
