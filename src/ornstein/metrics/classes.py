"""Inception Score: whether each sample is clearly of a class, and all classes occur.

T. Salimans et al., "Improved techniques for training GANs", 2016, arXiv:1606.03498, §4:

    IS = exp( mean_i KL(p(y | x_i) ‖ p(y)) ),    p(y) = mean_i p(y | x_i)

between 1 (every sample looks the same to the classifier) and the number of classes. All samples
are one group: the customary mean over ten groups is lower, the more so the fewer samples. It sees
nothing of the real data but through the classifier, so scores compare within one classifier only.

Since the change of p(y) adds nothing to first order, sample i has the influence IS · KL_i.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ornstein.errors import ConfigError
from ornstein.metrics.estimate import estimate, rows
from ornstein.scores import Estimate


def inception_score(probabilities: Tensor) -> Estimate:
    """IS of class probabilities [N, K], N at least 2, rows adding up to 1.

    ConfigError for anything else, NumericsError for values that are not finite.
    """
    p = rows(probabilities)
    if bool((p < 0).any()) or not torch.allclose(p.sum(1), p.new_ones(()), atol=1e-5):
        raise ConfigError("class probabilities are 0 or more and add up to 1 in each row")
    marginal = p.mean(0)
    divergence = torch.special.xlogy(p, p).sum(1) - torch.special.xlogy(p, marginal).sum(1)
    value = math.exp(float(divergence.mean()))
    return estimate(value, value * divergence, least=1.0, most=float(p.shape[1]))


def entropy(counts: Tensor) -> float:
    """The entropy of a histogram [K] in nats: log K if all classes are as frequent."""
    share = counts.double() / counts.sum()
    return float(torch.special.entr(share).sum())
