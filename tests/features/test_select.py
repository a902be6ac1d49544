"""Which extractor is meant."""

import numpy as np
import pytest

from ornstein.errors import ConfigError
from ornstein.features import classifier, inception
from ornstein.features.pixels import Pixels
from ornstein.features.select import extractor_for
from ornstein.noise import Noise
from tests.datasets import dataset, toy


@pytest.fixture
def called(monkeypatch):
    """What would be made, without the work."""
    calls = []
    monkeypatch.setattr(classifier, "train_classifier", lambda *a: calls.append(("train", *a[1:])))
    monkeypatch.setattr(classifier, "cached", lambda *a: calls.append(("cached", *a[1:])))
    monkeypatch.setattr(
        inception.Inception, "read", lambda *a: calls.append(("read", a[0].name, str(a[2])))
    )
    return calls


def test_by_default_the_data_decide(called, tmp_path):
    data = toy()
    extractor_for(data)
    extractor_for(data, 3, tmp_path)
    assert called == [("train", 0), ("cached", 3, tmp_path)]
    for other in (
        data._replace(label=None),
        data._replace(info=data.info.model_copy(update={"classes": ("one",)})),
        dataset(Noise.of(0, "x", 20).normal(0, (2,)).numpy(), np.arange(20) % 2, kind="vector"),
    ):
        assert isinstance(extractor_for(other), Pixels)
    assert len(called) == 2


def test_a_choice_is_obeyed(called, tmp_path):
    assert isinstance(extractor_for(toy(), choice="pixels"), Pixels)
    extractor_for(toy(), choice="classifier")
    extractor_for(toy(), choice=str(tmp_path / "w.safetensors"))
    assert called == [("train", 0), ("read", "w.safetensors", "cpu")]
    (tmp_path / "weights").write_bytes(b"")
    extractor_for(toy(), choice=str(tmp_path / "weights"))
    assert called[-1] == ("read", "weights", "cpu")


def test_other_words_are_answered_in_a_sentence():
    with pytest.raises(ConfigError, match="no extractor 'pixel'; did you mean 'pixels'"):
        extractor_for(toy(), choice="pixel")
    with pytest.raises(ConfigError, match=r"cannot be read \(No such file"):
        extractor_for(toy(), choice="nowhere.safetensors")
    with pytest.raises(ConfigError, match="labelled images of two classes"):
        extractor_for(toy()._replace(label=None), choice="classifier")
