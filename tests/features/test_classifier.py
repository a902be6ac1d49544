"""The classifier as an extractor: what it learns, what it depends on, and its cache."""

import numpy as np
import pytest
import torch

from ornstein.errors import ConfigError, StorageError
from ornstein.features import classifier as module
from ornstein.features.classifier import Classifier, Net, cached, train_classifier
from tests.datasets import toy


@pytest.fixture
def brief(monkeypatch):
    """A training of a few steps, where what is learned does not matter."""
    monkeypatch.setattr(module, "_SAMPLES", (6 * module._BATCH,) * 2)


def same(a, b):
    return all(torch.equal(x, b.net.state_dict()[k]) for k, x in a.net.state_dict().items())


def test_classifier_reads_digits(digits):
    digits, classifier = digits
    assert classifier.name == f"classifier(digits, seed 0, {classifier.weights[:12]})"
    assert classifier.accuracy >= 0.98
    held_out = classifier.features(digits.x[digits.held_out])
    probabilities = classifier.probabilities(held_out)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(197, dtype=torch.float64))
    right = probabilities.argmax(1).numpy() == digits.label[digits.held_out]
    assert right.mean() == classifier.accuracy
    # Probabilities from features are those of the whole net.
    images = torch.from_numpy(digits.x[digits.held_out]).float()
    direct = classifier.net((images - digits.info.mean) / digits.info.std).double().softmax(1)
    torch.testing.assert_close(probabilities, direct, rtol=1e-4, atol=1e-6)
    seen = classifier.features(digits.x[digits.train])
    assert seen.shape == (1600, 64)
    assert seen.dtype == torch.float64
    assert torch.equal(seen.float().double(), seen)  # so the cache can keep half the bytes
    assert float(seen.var(0, correction=0).sum()) == pytest.approx(64, rel=1e-4)
    one_by_one = [classifier.features(digits.x[i : i + 1]) for i in digits.held_out[:5]]
    torch.testing.assert_close(torch.cat(one_by_one), held_out[:5], rtol=1e-4, atol=1e-4)


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
    assert found.probabilities(found.features(data.x)).shape == (24, 3)
    grid = found.net.layers(torch.zeros(1, shape[0], *found.net.size)).shape
    assert max(grid[2:]) <= 4


def test_net_is_small():
    assert sum(p.numel() for p in Net((3, 32, 32), 10).parameters()) < 120_000


def test_cache_is_used_and_rebuilt_when_damaged(brief, tmp_path, monkeypatch):
    data, cache = toy(), tmp_path / "new" / "cache"
    made = cached(data, 3, cache)
    assert isinstance(made, Classifier)
    (path,) = cache.iterdir()  # no temporary file stays behind
    assert path.name.startswith("classifier-")
    assert path.suffix == ".safetensors"
    good = path.read_bytes()

    def never(*_):
        raise AssertionError("trained although the cache has it")

    with monkeypatch.context() as patch:
        patch.setattr(module, "train_classifier", never)
        read = cached(data, 3, cache)
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
                cached(*other, cache)

    flipped = bytearray(good)
    flipped[-5] ^= 1  # safetensors alone would not notice
    for bad in (b"", b"\xff" * 100, good[:-7], good[:100], bytes(flipped)):
        path.write_bytes(bad)
        assert same(made, cached(data, 3, cache))
        assert path.read_bytes() == good


def test_other_weights_have_another_name(brief):
    first, other = train_classifier(toy()), train_classifier(toy())
    assert first.name == other.name
    with torch.no_grad():
        other.net.hidden.bias[0] += 1e-6
    changed = Classifier(other.net, other.info, other.seed, other.scale, other.accuracy)
    assert changed.name != first.name


def test_a_cache_that_cannot_be_written_is_an_error(brief, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file cannot be written \(.*ORNSTEIN_CACHE"):
        cached(toy(), 0, tmp_path / "file")


def test_data_without_classes_are_refused():
    data = toy()
    for bad in (data._replace(label=None), data._replace(train=data.train[:0])):
        with pytest.raises(ConfigError, match="toy has none: write --extractor pixels"):
            train_classifier(bad)
    one = data.info.model_copy(update={"classes": ("a",)})
    with pytest.raises(ConfigError, match="two classes or more"):
        cached(data._replace(info=one, label=np.zeros(60, np.int64)), 0, None)
