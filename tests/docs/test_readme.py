"""What the README shows runs as it is, and what it lists is complete."""

from __future__ import annotations

import re
import shlex
import time

import numpy as np
import pytest
import torch

import ornstein
from ornstein import plan, prepare
from ornstein.cli.request import request
from ornstein.data.sources import Digits, recognise
from ornstein.errors import OrnsteinError
from ornstein.recipe import names
from tests.docs.pages import blocks, chinese, prose, read, rows, spans

SECONDS = 20  # for one block, on a processor
READMES = ("README.md", chinese("README.md"))


def test_python_runs_in_order(tmp_path, monkeypatch):
    """All blocks share one namespace, start in an empty folder, and leave it to `runs`."""
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    programs = [block.text for block in blocks("README.md") if block.language == "python"]
    assert programs
    for program in programs:
        started = time.perf_counter()
        exec(compile(program, "README.md", "exec"), space)
        assert time.perf_counter() - started < SECONDS, program
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]

    # What the text says of the results.
    digits = space["digits"]
    assert isinstance(digits, np.ndarray)
    assert (digits.shape, digits.dtype) == ((16, 1, 8, 8), np.uint8)
    x = space["last"].x  # type: ignore[attr-defined]
    assert (x.mean(0) - torch.tensor([2.0, -1.0])).abs().max() < 0.1
    assert (torch.cov(x.T) - torch.tensor([[1.0, 0.6], [0.6, 0.5]])).abs().max() < 0.1


def test_yaml_is_accepted(tmp_path):
    found = [block.text for block in blocks("README.md") if block.language == "yaml"]
    assert found
    for text in found:
        file = tmp_path / "mine.yaml"
        file.write_text(text, encoding="utf-8")
        resolved = request("edm", None, file)
        assert f"file {file}" in resolved.provenance.values()


@pytest.mark.parametrize("page", READMES)
def test_public_names_are_complete(page):
    (listed,) = re.findall(r"<!-- names: begin -->(.*)<!-- names: end -->", read(page), re.DOTALL)
    assert sorted(spans(listed)) == sorted(ornstein.__all__)


@pytest.mark.parametrize("page", READMES)
def test_recipes_are_complete(page):
    (row,) = [row for row in rows(read(page)) if row[0] in ("recipes", "配方")]
    assert sorted(spans(row[1])) == sorted(names())


@pytest.mark.parametrize("page", READMES)
def test_exit_codes_are_those_of_the_errors(page):
    listed = {int(row[0]) for row in rows(read(page)) if re.fullmatch(r"\d+", row[0])}
    errors = {error.code for error in OrnsteinError.__subclasses__()}
    assert listed == {0, 1} | errors


@pytest.mark.parametrize("page", READMES)
def test_every_training_in_the_index_can_begin(page):
    """Built, on the digits or the data's stand-in, to the start of a sample and of a preview."""
    digits, moving = Digits().load().info, recognise("moving_digits").but(count=20).load().info
    found = [shlex.split(line) for line in spans(prose(page)) if line.startswith("ornstein train")]
    assert len(found) > 10
    for _, _, recipe, *words in found:
        settings = [word for word in words if "=" in word]
        if recipe in plan.names():  # a later stage needs the run of an earlier one
            asked = plan.resolved(plan.named(recipe), None, settings).plan.stages[0].recipe
        else:
            asked = request(recipe, overrides=settings).recipe
        same = lambda reference: reference  # noqa: E731
        info = moving if "moving_digits" in words else digits
        prepare.concrete(asked, info, same, same, lambda: 77.0)  # apart are two of the digits
