"""Records of scores: what they keep, and how older ones are read."""

import json

import pytest
from pydantic import ValidationError

from ornstein.errors import CheckpointError
from ornstein.scores import (
    METRICS,
    Bound,
    Classes,
    Comparison,
    Estimate,
    Made,
    Older,
    Protocol,
    Scores,
    add,
    read,
)


def protocol(**changes):
    values = {
        "extractor": "pixels 8x8",
        "weights": None,
        "accuracy": None,
        "names": {metric: metric for metric in METRICS},
        "generated": 10,
        "reference": 100,
        "split": "train",
        "data": "f" * 64,
        "sha256": "0" * 64,
        "neighbours": 5,
        "compared": 10,
        "threshold": 0.1,
        "seed": 3,
    }
    return Protocol(**{**values, **changes})


def scores():
    """Every field filled."""
    third = Estimate(value=1 / 3, low=0.1 + 0.2, high=1e-300)
    made = Made(
        weights="a" * 64,
        average="model",
        samples_trained=5,
        generation={"kind": "sampling", "step": {"kind": "jump", "eta": 0.0}, "list": [1, None]},
        evaluations=18,
    )
    parts = {"L_T": 0.1, "L_0": 3.0}
    return Scores(
        protocol=protocol(weights="b" * 64, accuracy=0.98),
        made=made,
        metrics=dict.fromkeys(METRICS, third),
        baselines={"halves": Comparison(count=50, values={"frechet": -0.0, "kernel": -1e-9})},
        classes=Classes(counts=(4, 6), entropy=0.67, confidence=0.9),
        likelihood=Bound(
            nats=third,
            bits_per_dim=third,
            parts=parts,
            count=7,
            split="held_out",
            exact=False,
        ),
    )


OLD = {"name": "Fréchet distance", "value": 1.25, "low": 1.0, "high": 1.5, "extractor": "x"}


def test_a_record_comes_back_as_it_was(tmp_path):
    path = tmp_path / "scores.json"
    assert read(path) == []
    whole = scores()
    bare = Scores(
        protocol=protocol(), metrics={"frechet": Estimate(value=1, low=0, high=2)}, baselines={}
    )
    add(path, whole)
    add(path, bare)
    assert read(path) == [whole, bare]
    assert Scores.model_validate_json(whole.model_dump_json()) == whole
    assert whole.frechet == whole.metrics["frechet"]


def test_older_records_are_shown_as_such_and_kept(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text(json.dumps([OLD]))
    assert read(path) == [Older("Fréchet distance", 1.25)]
    add(path, scores())
    assert read(path) == [Older("Fréchet distance", 1.25), scores()]
    assert json.loads(path.read_bytes())[0] == OLD


@pytest.mark.parametrize(
    "content",
    [
        b"[",
        b"{}",
        b"[1]",
        b"[[]]",
        b'[{"layout": 2}]',
        b'[{"layout": 3, "x": 1}]',
        b'[{"name": 1}]',
    ],
)
def test_what_is_no_score_is_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "scores.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"scores\.json") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_distance_without_a_network_is_never_called_fid():
    names = {"frechet": "FID"}
    with pytest.raises(ValidationError, match="FID only with the SHA-256"):
        protocol(names=names)
    assert protocol(names=names, weights="c" * 64).names == names


def test_numbers_must_be_finite():
    with pytest.raises(ValidationError):
        Estimate(value=float("nan"), low=0, high=1)
