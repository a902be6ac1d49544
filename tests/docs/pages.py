"""The documents as tests see them: pages in two languages, their code and their tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
ENGLISH = (
    "README.md",
    "docs/data.md",
    "docs/measuring.md",
    "docs/scores.md",
    "docs/autoencoders.md",
    "docs/plans.md",
    "docs/sequences.md",
    "docs/first_stages.md",
    "docs/samplers.md",
    "docs/restoring.md",
    "docs/reliability.md",
    "docs/scaling.md",
    "docs/notation.md",
    "docs/equations.md",
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: its language and its text."""

    language: str
    text: str


def chinese(page: str) -> str:
    """The name of a page's Chinese counterpart."""
    return page.removesuffix(".md") + ".zh-CN.md"


PAGES = tuple(p for page in ENGLISH for p in (page, chinese(page)))


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(read(page))]


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", read(page))


def spans(text: str) -> list[str]:
    """The pieces of inline code."""
    return re.findall(r"`([^`\n]+)`", text)


def rows(text: str) -> Iterator[list[str]]:
    """The cells of all table rows, without the rules below the headings."""
    for line in text.splitlines():
        if line.startswith("|") and not set(line) <= set("|- :"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def commands(page: str) -> Iterator[str]:
    """Every `ornstein ...` command in inline code and in blocks of shell."""
    lines = [line for b in blocks(page) if b.language == "sh" for line in b.text.splitlines()]
    for text in (*lines, *spans(prose(page))):
        if re.match(r"ornstein [a-z]", text):
            yield text
