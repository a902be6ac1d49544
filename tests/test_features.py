"""The extractors and the scores that are taken with them."""

import hashlib
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ornstein import features
from ornstein.data.info import DataInfo, Dataset
from ornstein.errors import ConfigError, StorageError
from ornstein.evaluation import Scores, gaussian_samples, reference_for, score
from ornstein.features import Classifier, Net, Pixels, extractor_for, train_classifier
from ornstein.metrics import frechet_distance, moments
from ornstein.noise import Noise, permutation


def dataset(x, label=None, held_out=0, name="data", span=None, kind="image"):
    order = permutation(0, "split", 0, len(x)).numpy()
    train, apart = np.sort(order[held_out:]), np.sort(order[:held_out])
    info = DataInfo(
        name=name,
        kind=kind,
        shape=x.shape[1:],
        range=span,
        classes=() if label is None else tuple(str(c) for c in range(int(label.max()) + 1)),
        count=len(x),
        held_out=held_out,
        mean=float(x[train].mean(dtype=np.float64)),
        std=float(x[train].std(dtype=np.float64)),
        fingerprint=hashlib.sha256(x.tobytes()).hexdigest(),
    )
    return Dataset(info, x, label, train, apart)


def toy(shape=(1, 6, 6), count=60, classes=3):
    """Images whose brightness says the class."""
    label = np.arange(count) % classes
    x = Noise.of(0, "toy", count).uniform(0, shape).numpy() + label.reshape(-1, 1, 1, 1)
    return dataset(x, label, held_out=10, name="toy", span=(0.0, float(classes)))


@pytest.fixture
def brief(monkeypatch):
    """A training of a few steps, where what is learned does not matter."""
    monkeypatch.setattr(features, "_SAMPLES", (6 * features._BATCH,) * 2)


@pytest.fixture(scope="module")
def digits():
    found = load_digits()
    x = found.images[:, None].astype(np.uint8)
    return dataset(x, found.target.astype(np.int64), 197, "digits", (0.0, 16.0))


@pytest.fixture(scope="module")
def classifier(digits):
    return train_classifier(digits)


def same(a, b):
    return all(torch.equal(x, b.net.state_dict()[k]) for k, x in a.net.state_dict().items())


def test_classifier_reads_digits(digits, classifier):
    assert classifier.name == "classifier(digits, seed 0)"
    assert classifier.accuracy >= 0.98
    held_out = digits.x[digits.held_out]
    probabilities = classifier.probabilities(held_out)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(197, dtype=torch.float64))
    right = probabilities.argmax(1).numpy() == digits.label[digits.held_out]
    assert right.mean() == classifier.accuracy
    seen = classifier.features(digits.x[digits.train])
    assert seen.shape == (1600, 64)
    assert seen.dtype == torch.float64
    assert float(seen.var(0, correction=0).sum()) == pytest.approx(64, rel=1e-4)
    one_by_one = torch.cat([classifier.features(held_out[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(one_by_one, classifier.features(held_out)[:5], rtol=1e-4, atol=1e-4)


def test_scores_of_digits_say_what_they_should(digits, classifier):
    reference = reference_for(digits, classifier)
    train = digits.x[digits.train]
    copies = score(digits, train[::2], classifier, reference=reference)
    unseen = score(digits, digits.x[digits.held_out], classifier, reference=reference)
    blurred = gaussian_samples(digits, 500, seed=5)
    assert blurred.min() >= 0
    assert blurred.max() <= 16
    poor = score(digits, blurred, classifier, reference=reference)
    # In the order in which they belong, and each beyond the interval of the one before.
    assert copies.value < unseen.value < poor.value
    assert unseen.high < poor.low
    assert poor.value == pytest.approx(poor.gaussian, rel=0.2)
    assert poor.gaussian > 10 * poor.halves
    assert unseen.value == pytest.approx(unseen.held_out)
    assert (copies.memorised, poor.memorised) == (1.0, 0.0)
    assert unseen.memorised == 2 / 197  # ⌈1.97⌉ of them, by construction
    for s in (copies, unseen, poor):
        assert s.low <= s.value <= s.high
        assert sum(s.classes) == s.generated
        assert 0 <= s.entropy <= math.log(10) + 1e-9
        assert s.accuracy == classifier.accuracy
    assert poor.confidence < copies.confidence
    assert (unseen.generated, unseen.reference, unseen.seed) == (197, 1600, 0)
    assert unseen.fingerprint == digits.info.fingerprint
    assert Scores.model_validate_json(unseen.model_dump_json()) == unseen
    assert "FID" not in unseen.model_dump_json()
    assert score(digits, digits.x[digits.held_out], classifier) == unseen
    with pytest.raises(ConfigError, match="seed 0"):
        score(digits, train, classifier, seed=1, reference=reference)


def test_classifier_is_a_function_of_its_seed_and_leaves_the_global_generator_alone(brief):
    data = toy()
    before = torch.random.get_rng_state()
    first, again, other = (train_classifier(data, seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert same(first, again)
    assert first.scale == again.scale
    assert not same(first, other)


def test_classifier_sees_the_training_split_only(brief):
    data = toy()
    x = data.x.copy()
    x[data.held_out] = 1e6
    assert same(train_classifier(data), train_classifier(data._replace(x=x)))


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (5, 1, 9), (3, 4, 4), (4, 17, 6), (1, 28, 28), (3, 70, 33)]
)
def test_any_image_shape(shape, brief):
    data = toy(shape, count=24)
    found = train_classifier(data)
    assert found.features(data.x).shape == (24, 64)
    assert found.probabilities(data.x).shape == (24, 3)
    grid = found.net.layers(torch.zeros(1, shape[0], *found.net.size)).shape
    assert max(grid[2:]) <= 4


def test_net_is_small():
    assert sum(p.numel() for p in Net((3, 32, 32), 10).parameters()) < 120_000


def test_cache_is_used_and_rebuilt_when_damaged(brief, tmp_path, monkeypatch):
    data, cache = toy(), tmp_path / "new" / "cache"
    made = extractor_for(data, 3, cache)
    assert isinstance(made, Classifier)
    (path,) = cache.iterdir()  # no temporary file stays behind
    assert path.name.startswith("features-")
    assert path.suffix == ".safetensors"
    good = path.read_bytes()

    def never(*_):
        raise AssertionError("trained although the cache has it")

    with monkeypatch.context() as patch:
        patch.setattr(features, "train_classifier", never)
        read = extractor_for(data, 3, cache)
        assert same(made, read)
        assert (read.scale, read.accuracy, read.name) == (made.scale, made.accuracy, made.name)
        assert torch.equal(read.features(data.x), made.features(data.x))
        # Another seed, split or content is another file.
        for other in (
            (data, 4),
            (data._replace(held_out=data.held_out[1:]), 3),
            (data._replace(info=data.info.model_copy(update={"fingerprint": "0"})), 3),
        ):
            with pytest.raises(AssertionError, match="trained although"):
                extractor_for(*other, cache)

    flipped = bytearray(good)
    flipped[-5] ^= 1  # safetensors alone would not notice
    for bad in (b"", b"\xff" * 100, good[:-7], good[:100], bytes(flipped)):
        path.write_bytes(bad)
        assert same(made, extractor_for(data, 3, cache))
        assert path.read_bytes() == good


def test_a_cache_that_cannot_be_written_is_an_error(brief, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        extractor_for(toy(), 0, tmp_path / "file")


def test_data_without_classes_are_looked_at_as_pixels():
    x = Noise.of(0, "x", 9).uniform(0, (3, 16, 5), torch.float64).numpy()
    found = extractor_for(dataset(x))
    assert isinstance(found, Pixels)
    assert found.name == "pixels 8x5"
    scaled = (x - found.info.mean) / found.info.std
    pooled = scaled.reshape(9, 3, 8, 2, 5).mean(3)
    np.testing.assert_allclose(found.features(x), pooled.reshape(9, -1), atol=1e-12)
    small = dataset(x[:, :, :4])  # nothing is averaged
    expected = (small.x - small.info.mean) / small.info.std
    np.testing.assert_allclose(extractor_for(small).features(small.x), expected.reshape(9, -1))
    assert isinstance(extractor_for(dataset(x, np.zeros(9, np.int64))), Pixels)  # one class
    with pytest.raises(ConfigError, match=r"\[3, 16, 5\]"):
        found.features(x[:, :1])


def test_vectors_are_taken_as_they_are_and_scored_without_held_out_data():
    x = Noise.of(0, "x", 400).normal(0, (2,)).numpy() * 3
    data = dataset(x, (x[:, 0] > 0).astype(np.int64), kind="vector")
    found = extractor_for(data)
    assert found.name == "values 2"
    assert np.array_equal(found.features(x).numpy(), x.astype(np.float64))
    scores = score(data, x + np.float32(4), found)
    assert scores.value == pytest.approx(32, rel=1e-5)  # the shift alone: 4² + 4²
    assert scores.held_out is scores.classes is scores.accuracy is None
    assert scores.gaussian < 1  # the data are one Gaussian
    assert score(data, x, found).memorised == 1
    with pytest.raises(ConfigError, match="at least 2 samples"):
        score(data, x[:1], found)
    with pytest.raises(ConfigError, match="at least 4 training"):
        reference_for(data._replace(train=data.train[:3]), found)


def test_one_gaussian_has_the_moments_of_the_data():
    """Samples fall off as 1/N from the mean and covariance of what they were fitted to."""
    mix = np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.1]])
    x = Noise.of(0, "x", 300).normal(0, (3,), torch.float64).numpy() @ mix + 7
    data = dataset(x, kind="vector")
    drawn = torch.from_numpy(gaussian_samples(data, 4000))
    assert frechet_distance(*moments(drawn), *moments(torch.from_numpy(x))) < 1e-2
    assert np.array_equal(drawn[:50], gaussian_samples(data, 50))  # keyed by sample number
