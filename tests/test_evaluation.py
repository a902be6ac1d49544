"""Scores: what they say of digits, what they are measured against, and what is refused."""

import math

import numpy as np
import pytest
import torch

from ornstein.errors import ConfigError, NumericsError
from ornstein.evaluation import gaussian_samples, reference_for, score
from ornstein.features.pixels import Pixels
from ornstein.metrics.frechet import frechet_distance, moments
from ornstein.metrics.kernel import mean_kernel
from ornstein.noise import Noise
from ornstein.scores import Scores
from tests.datasets import dataset


class Eye:
    """An extractor with weights, and a count of what it has looked at."""

    accuracy = None

    def __init__(self, weights="e" * 64, published=False, classes=0):
        self.weights, self.published, self.classes = weights, published, classes
        self.looked = []

    @property
    def name(self):
        return f"eye {self.weights[:12]}"

    def features(self, x):
        self.looked.append(len(x))
        return torch.from_numpy(np.array(x, dtype=np.float64)).flatten(1)

    def probabilities(self, features):
        return features[:, : self.classes].softmax(1) if self.classes else None


def normal(count, size=3, seed=0):
    return Noise.of(seed, "x", count).normal(0, (size,)).numpy()


def points(count=300, held_out=60, size=3):
    return dataset(normal(count, size), held_out=held_out, kind="vector")


def value(scores, metric="frechet"):
    return scores.metrics[metric].value


def test_scores_of_digits_say_what_they_should(digits):
    data, classifier = digits
    train, held_out = data.x[data.train], data.x[data.held_out]
    order = np.argsort(Noise.of(0, "order", len(train)).bits(0, 1)[:, 0].numpy())
    copies = score(data, train[order[:800]], classifier)
    unseen = score(data, held_out, classifier)
    blurred = gaussian_samples(data, 500, seed=5)
    assert blurred.min() >= 0
    assert blurred.max() <= 16
    poor = score(data, blurred, classifier)
    # In the order in which they belong, and each beyond the interval of the one before.
    assert value(copies) < value(unseen) < value(poor)
    assert unseen.frechet.high < poor.frechet.low
    assert abs(value(copies, "kernel")) < abs(value(unseen, "kernel")) < value(poor, "kernel")
    for metric in ("precision", "recall", "density", "coverage", "inception"):
        assert unseen.metrics[metric].low > poor.metrics[metric].high, metric
    assert value(copies, "coverage") > 0.93
    assert value(unseen, "inception") > 8
    # One Gaussian scores what one Gaussian is said to score.
    said = poor.baselines["gaussian"]
    assert said.count == 500
    assert value(poor) == pytest.approx(said.values["frechet"], rel=0.2)
    assert value(poor, "precision") == pytest.approx(said.values["precision"], abs=0.06)
    assert said.values["frechet"] > 10 * poor.baselines["halves"].values["frechet"]
    # Held-out samples, given as generated ones, score what is said of them.
    said = unseen.baselines["held_out"]
    assert said.count == 197
    for metric in ("frechet", "kernel"):
        assert value(unseen, metric) == pytest.approx(said.values[metric])
    assert (value(copies, "memorised"), value(poor, "memorised")) == (1, 0)
    assert value(unseen, "memorised") == 2 / 197  # ⌈1.97⌉ of them, by construction
    for s in (copies, unseen, poor):
        assert sum(s.classes.counts) == s.protocol.generated
        assert 0 <= s.classes.entropy <= math.log(10) + 1e-9
        assert all(e.low <= e.value <= e.high for e in s.metrics.values())
        assert list(s.metrics) == list(s.protocol.names)
    assert poor.classes.confidence < copies.classes.confidence
    protocol = unseen.protocol
    assert protocol.accuracy == classifier.accuracy
    assert (protocol.extractor, protocol.weights) == (classifier.name, classifier.weights)
    assert (protocol.generated, protocol.reference, protocol.compared) == (197, 1600, 197)
    assert protocol.data == data.info.fingerprint
    text = unseen.model_dump_json()
    assert Scores.model_validate_json(text) == unseen
    assert "FID" not in text
    assert protocol.names["inception"] == f"Inception Score (classes of {classifier.name})"


def test_a_score_is_a_function_of_its_arguments_and_a_reference_can_be_used_again(tmp_path):
    data, eye = points(), Eye()
    x = normal(40, seed=1)
    first = score(data, x, eye, 5)
    assert score(data, x, eye, 5) == first
    reference = reference_for(data, eye, 5, count=40)
    assert score(data, x, eye, 5, reference) == first
    assert score(data, x, eye, 5, cache=tmp_path) == first
    assert score(data, x, eye, 5, cache=tmp_path) == first
    assert score(data, x, eye, 6) != first
    for wrong in (
        lambda: score(data, x[:30], eye, 5, reference),
        lambda: score(data, x, eye, 6, reference),
        lambda: score(data, x, Eye("d" * 64), 5, reference),
        lambda: score(data, x, eye, 5, reference, split="held_out"),
    ):
        with pytest.raises(ConfigError, match="the reference is for 40 samples, the train split"):
            wrong()


def test_no_real_sample_is_looked_at_twice_and_what_is_kept_not_again(tmp_path):
    data, eye = points(), Eye()
    x = normal(40, seed=1)
    score(data, x, eye, cache=tmp_path)
    assert sorted(eye.looked) == [40, 40, 60, 240]
    eye.looked.clear()
    score(data, x, eye, seed=1, cache=tmp_path)
    assert eye.looked == [40, 40]  # the Gaussian's samples are others with each seed
    eye.looked.clear()
    score(data, x, eye, cache=tmp_path)
    assert eye.looked == [40]
    other = Eye("d" * 64)  # other weights, other features
    score(data, x, other, cache=tmp_path)
    assert sorted(other.looked) == [40, 40, 60, 240]
    moved = data._replace(train=data.train[1:])
    score(moved, x, eye, cache=tmp_path)
    assert 239 in eye.looked


def test_either_split_can_be_the_reference():
    data, eye = points(), Eye()
    x = normal(50, seed=1)
    train, held_out = (score(data, x, eye, split=s) for s in ("train", "held_out"))
    assert (train.protocol.reference, held_out.protocol.reference) == (240, 60)
    assert (train.protocol.split, held_out.protocol.split) == ("train", "held_out")
    assert train.protocol.sha256 != held_out.protocol.sha256
    assert set(train.baselines) == {"halves", "held_out", "gaussian"}
    assert set(held_out.baselines) == {"halves", "train", "gaussian"}
    # The distance of the two splits is the same from either side.
    there = train.baselines["held_out"].values["frechet"]
    assert held_out.baselines["train"].values["frechet"] == pytest.approx(there)
    one, other = (moments(torch.from_numpy(data.x[ids])) for ids in (data.train, data.held_out))
    assert there == pytest.approx(frechet_distance(*one, *other))
    assert value(held_out) == pytest.approx(frechet_distance(*moments(torch.from_numpy(x)), *other))
    # What counts as memorised is training data, whatever else is the reference.
    assert value(score(data, data.x[data.train[:50]], eye, split="held_out"), "memorised") == 1
    assert value(train, "memorised") == value(held_out, "memorised")


def test_only_the_published_network_gives_published_names():
    data, x = points(), normal(30, seed=1)
    names = score(data, x, Eye(published=True, classes=3)).protocol.names
    assert (names["frechet"], names["kernel"], names["inception"]) == (
        *("FID", "KID", "Inception Score"),
    )
    scores = score(data, x, Eye(classes=3))
    names = scores.protocol.names
    assert names["frechet"] == "Fréchet distance"
    assert names["kernel"] == "kernel distance"
    assert names["inception"] == "Inception Score (classes of eye eeeeeeeeeeee)"
    assert len(scores.classes.counts) == 3
    assert score(data, x, Eye(published=True, classes=3)).classes is None
    assert "inception" not in score(data, x, Eye()).metrics


def test_equal_counts_are_compared():
    """Coverage of the data's own law is 0.97 at equal counts, however large the reference."""
    data = points(4000, 100)
    found = score(data, normal(200, seed=1), Eye())
    assert found.protocol.compared == 200
    assert value(found, "coverage") > 0.9
    assert value(found, "density") == pytest.approx(1, abs=0.2)
    assert score(data, normal(5000, seed=1), Eye()).protocol.compared == 3900


def test_real_samples_are_drawn_at_random_where_some_stand_for_all():
    """Data may come in an order, by class say; parts of them must not."""
    x = normal(900)
    data = dataset(x[np.argsort(x[:, 0])], held_out=300, kind="vector")
    said = score(data, normal(60, seed=1), Eye()).baselines
    assert said["halves"].values["frechet"] < 0.1  # in order, the means are 1.6 apart
    for name in ("halves", "held_out"):
        assert min(said[name].values[m] for m in ("recall", "coverage")) > 0.75


def test_few_samples_have_distances_only():
    data = points(40, 10)
    few = score(data, normal(5, seed=1), Eye())
    assert set(few.metrics) == {"frechet", "kernel", "memorised"}
    assert set(few.baselines["held_out"].values) == {"frechet", "kernel"}
    assert "coverage" in score(data, normal(6, seed=1), Eye()).metrics


def test_vectors_are_scored_without_classes_or_held_out_data():
    x = normal(400, 2) * 3
    data = dataset(x, kind="vector")
    found = Pixels(data.info)
    scores = score(data, x + np.float32(4), found)
    assert value(scores) == pytest.approx(32, rel=1e-5)  # the shift alone: 4² + 4²
    assert set(scores.baselines) == {"halves", "gaussian"}
    assert scores.classes is scores.protocol.accuracy is scores.protocol.weights is None
    assert scores.baselines["gaussian"].values["frechet"] < 1  # the data are one Gaussian
    assert value(score(data, x, found), "memorised") == 1


def test_what_cannot_be_measured_is_refused_in_a_sentence():
    data, eye = points(), Eye()
    with pytest.raises(ConfigError, match=r"at least 2 samples .* not \[1, 3\]"):
        score(data, normal(1), eye)
    with pytest.raises(NumericsError, match="3 of 9 samples have features that are not finite"):
        score(data, np.where(np.arange(9)[:, None] < 3, np.nan, normal(9)), eye)
    with pytest.raises(ConfigError, match="at least 4 training samples; data has 3"):
        reference_for(data._replace(train=data.train[:3]), eye)
    with pytest.raises(ConfigError, match="at least 4 held-out .* has 0: write --split train"):
        reference_for(points(50, 0), eye, split="held_out")
    with pytest.raises(ConfigError, match="no split 'test'; write train or held_out"):
        reference_for(data, eye, split="test")


def test_one_gaussian_has_the_moments_of_the_data():
    """Samples fall off as 1/N from the mean and covariance of what they were fitted to."""
    mix = np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.1]])
    x = Noise.of(0, "x", 300).normal(0, (3,), torch.float64).numpy() @ mix + 7
    data = dataset(x, kind="vector")
    drawn = torch.from_numpy(gaussian_samples(data, 4000))
    assert frechet_distance(*moments(drawn), *moments(torch.from_numpy(x))) < 1e-2
    assert np.array_equal(drawn[:50], gaussian_samples(data, 50))  # keyed by sample number


def test_the_kernel_of_the_reference_is_that_of_its_features(tmp_path):
    data, eye = points(), Eye()
    expected = mean_kernel(eye.features(data.x[data.train]))
    for cache in (None, tmp_path, tmp_path):
        assert reference_for(data, eye, cache=cache).real.kernel == expected
