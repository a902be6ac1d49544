"""The words of a command become the values of its options, as settings would read them."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from ornstein.cli import run


@pytest.fixture
def given(monkeypatch):
    """What `sample` was called with, instead of sampling."""
    import ornstein.cli.sample as module

    found = {}

    @functools.wraps(module.sample)
    def record(*words, **options):
        found.update(options, words=words)

    monkeypatch.setattr(module, "sample", record)
    return found


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("7", 7),
        ("1e3", 1000),
        ("50_000", 50_000),
        ("8.0", 8),
        (" 3 ", 3),
        (str(2**63 - 1), 2**63 - 1),
    ],
)
def test_whole_numbers(word, number, given):
    assert run(["sample", "small", "-n", word, "--steps", word]) == 0
    assert (given["n"], given["steps"]) == (number, number)
    assert type(given["n"]) is type(given["steps"]) is int


def test_numbers(monkeypatch):
    import ornstein.cli.train as module

    found = {}
    monkeypatch.setattr(
        module, "train", functools.wraps(module.train)(lambda *_, **options: found.update(options))
    )
    for word, number in (("1", 1.0), ("2.5", 2.5), ("1e-3", 1e-3), ("inf", float("inf"))):
        assert run(["train", "ddpm", "--save-every", word]) == 0
        assert found["save_every"] == number
        assert type(found["save_every"]) is float


def test_other_words_are_kept_as_they_stand(given):
    words = ["sample", "1e3", "[1,2]", "a.b=007", "--average", "none", "--out", "x/1.5"]
    assert run([*words, "--save", "npz"]) == 0
    assert given["words"] == ("1e3", "[1,2]", "a.b=007")
    assert given["average"] == "none"
    assert given["out"] == Path("x/1.5")
    assert given["save"] == "npz"
