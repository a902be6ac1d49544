"""What the documents name exists, and both languages say the same."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from cyclopts import Parameter

from ornstein import plan
from ornstein.autoencoders.decoding import Decoding
from ornstein.cli import COMMANDS, overrides
from ornstein.cli.request import generation, request
from ornstein.diffusion.sampling import Sampling
from ornstein.errors import ConfigError
from ornstein.recipe import names
from tests.docs.pages import (
    ENGLISH,
    PAGES,
    ROOT,
    blocks,
    chinese,
    commands,
    prose,
    read,
    rows,
    spans,
)

TEST_NAME = re.compile(r"(tests/[\w/]+\.py)((?:::\w+)+)")


# --- names -----------------------------------------------------------------------------------


def lookup(dotted: str) -> Any:
    """The object with this dotted name: a module, or an attribute of the longest module in it."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or " "):
                raise
            continue
        for attribute in parts[end:]:
            found = getattr(found, attribute)
        return found
    raise AttributeError(dotted)


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_exist(page):
    for name in sorted(set(re.findall(r"\bornstein(?:\.\w+)+", read(page)))):
        lookup(name)


@cache
def defined_in(file: Path) -> set[str]:
    """`name` and `Class::name` of all tests of a file, without importing it."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            functions = [inner for inner in node.body if isinstance(inner, ast.FunctionDef)]
            found |= {f"{node.name}::{function.name}" for function in functions}
    return found


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_named_tests_exist(page):
    text = read(page)
    for file, name in TEST_NAME.findall(text):
        assert name.removeprefix("::") in defined_in(ROOT / file), f"{file}{name}"
    for file in re.findall(r"(?<![\w-])(?:tests|docs|src)/[\w/.-]+\.(?:py|md)\b", text):
        assert (ROOT / file).is_file() or "NAME" in file, file


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", read(page)):
        if not target.endswith(".png"):
            assert ((ROOT / page).parent / target).is_file(), target


# --- commands --------------------------------------------------------------------------------


@cache
def options_of(verb: str) -> set[str]:
    """The long and short options of a command, from its signature."""
    function = getattr(importlib.import_module(f"ornstein.cli.{verb}"), verb)
    hints = get_type_hints(function, include_extras=True)
    found = set()
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        hint = hints[parameter.name]
        given = [a for a in getattr(hint, "__metadata__", ()) if isinstance(a, Parameter)]
        own = [name for a in given for name in a.name or ()]
        found |= set(own) or {"--" + parameter.name.replace("_", "-")}
        if hint is bool or bool in get_args(hint):
            found.add("--no-" + parameter.name.replace("_", "-"))
    return found


def words(command: str) -> list[str]:
    """The arguments of a command after its verb, dotted options written as overrides."""
    return overrides(shlex.split(command, comments=True)[2:])


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md", "CONTRIBUTING.md"])
def test_commands_and_their_options_are_known(page):
    for command in commands(page):
        verb = command.split()[1]
        assert verb in COMMANDS, command
        for word in words(command):
            if word.startswith("-"):
                assert word.partition("=")[0] in options_of(verb), command


def accepts(how, settings):
    with contextlib.suppress(ConfigError):
        return bool(generation(how, None, settings))
    return False


@pytest.mark.parametrize("page", PAGES)
def test_overrides_resolve(page):
    """A command's dotted settings are accepted by the recipe that they change, or by the way in
    which one of the families generates."""
    for command in commands(page):
        verb, rest = command.split()[1], words(command)
        settings = [w for w in rest if re.match(r"[a-z_.]+=", w)]
        if verb == "train":
            if rest[0] in plan.names():
                plan.resolved(plan.named(rest[0]), None, settings)
                continue
            assert rest[0] in names(), command
            request(rest[0], None, None, None, settings)
        elif verb in ("sample", "evaluate"):
            assert any(accepts(family, settings) for family in (Sampling(), Decoding())), command


@pytest.mark.parametrize("page", PAGES)
def test_options_in_prose_are_known(page):
    known = set().union(*(options_of(verb) for verb in COMMANDS)) | {"--help", "--version", "--"}
    for text in spans(prose(page)):
        if text.startswith("--"):
            assert text.split()[0] in known, text


# --- two languages ---------------------------------------------------------------------------


@pytest.mark.parametrize("page", ENGLISH)
def test_both_languages_have_the_same_code(page):
    assert blocks(chinese(page)) == blocks(page)
    # In prose the order may follow the language; what is named may not.
    assert sorted(spans(prose(chinese(page)))) == sorted(spans(prose(page)))


@pytest.mark.parametrize("page", ENGLISH)
def test_both_languages_have_the_same_structure(page):
    def outline(text: str) -> list[int]:
        return [len(mark) for mark in re.findall(r"^(#+) ", text, re.MULTILINE)]

    assert outline(prose(page)) == outline(prose(chinese(page)))
    ours, theirs = list(rows(read(page))), list(rows(read(chinese(page))))
    assert len(ours) == len(theirs)
    for row, other in zip(ours, theirs, strict=True):
        assert len(row) == len(other), row
        for cell, counterpart in zip(row, other, strict=True):
            assert sorted(spans(cell)) == sorted(spans(counterpart)), row


# --- the index of equations ------------------------------------------------------------------

FIGURES = {
    *(f"fig 1-{i}" for i in range(1, 13)),
    *(f"fig 2-{i}" for i in range(1, 17)),
    *(f"fig 1.{i}" for i in range(1, 5)),
}
ALGORITHMS = {f"alg {i} (fig {figure})" for figure in ("2-4", "2-7") for i in (1, 2)}
EQUATIONS = {*map(str, range(1, 51)), *(f"1.{i}" for i in range(1, 24))}
PLANNED = {"docs/equations.md": "planned", "docs/equations.zh-CN.md": "计划中"}
DRAWING = {"docs/equations.md": "drawing", "docs/equations.zh-CN.md": "示意图"}


def index(page: str) -> list[list[str]]:
    """The rows of the index, without headings."""
    return [row for row in rows(read(page)) if row[0] not in ("number", "编号")]


@pytest.mark.parametrize("page", PLANNED)
def test_every_number_stands_there_once(page):
    keys = [row[0] for row in index(page)]
    assert len(set(keys)) == len(keys)
    unnumbered = {key for key in keys if key.startswith(("000 ", "002 "))}
    assert set(keys) - unnumbered == EQUATIONS | FIGURES | ALGORITHMS


def test_both_languages_list_the_same_in_the_same_order():
    first, second = (index(page) for page in PLANNED)
    assert [row[0] for row in first] == [row[0] for row in second]
    for row, other in zip(first, second, strict=True):
        for kind in (PLANNED, DRAWING):
            english, other_word = kind.values()
            assert (row[2] == english) == (other[2] == other_word), row[0]


@pytest.mark.parametrize("page", PLANNED)
def test_a_row_has_names_and_checks_or_says_that_it_is_planned(page):
    for key, text, code, checks in index(page):
        assert text
        if code == PLANNED[page]:
            assert checks == PLANNED[page], key
        elif code == DRAWING[page]:
            assert checks == "—", key
        else:
            assert spans(code), key
            assert all(span.startswith("ornstein.") for span in spans(code)), key
            assert spans(checks), key
            assert all(s.startswith(("tests/", "ornstein ")) for s in spans(checks)), key
