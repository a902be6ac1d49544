"""Plain trees from text and back: YAML within limits, and dotted lines a.b.c=VALUE.

A tree is of dicts, lists and strings. A scalar without quotes is `Bare`: what 1e-3 or 007 means
is for the reader of the tree to say, and `native` says it where nothing else is known. Nothing of
YAML beyond plain trees is read: no aliases, tags or duplicate keys, and nothing that is large.
"""

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ornstein.errors import ConfigError, clip, fail, like, quote

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1_000_000, 20, 20_000

_IN_FILES = "check brackets, quotes and indentation (by spaces, not tabs)"
_IN_WORDS = "close every bracket and quote; where there are spaces, quote the whole 'KEY=[1, 2]'"


class Bare(str):
    """A scalar without quotes."""


def load(path: Path) -> dict[str, Any]:
    """The tree in a YAML file.

    Raises: ConfigError if the file cannot be read, is not a mapping, breaks a limit, or uses
    an alias, a tag or a key twice.
    """
    name = f"file …{str(path)[-199:]}" if len(str(path)) > 200 else f"file {path}"
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        names: list[str] = []
        with contextlib.suppress(OSError):
            names += [p.name for p in itertools.islice(Path(path).parent.iterdir(), 9999)]
        fail(f"there is no {name}{like(Path(path).name, names)}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        fail(f"{name} cannot be read: {reason.lower()}")
    if len(data) > MAX_BYTES:
        fail(f"{name} is larger than {MAX_BYTES // 1_000_000} MB, too large for a recipe")
    try:
        tree = parse(data.decode("utf-8-sig"), name, _IN_FILES)
    except UnicodeDecodeError:
        fail(f"{name} is not UTF-8 text")
    if not isinstance(tree, dict):
        got = "nothing" if tree is None else show(tree)
        fail(f"{name} must hold lines of KEY: VALUE, got {got}")
    return tree


def parse(text: str, where: str, advice: str) -> Any:
    """A YAML document as dicts, lists and strings, built from events so that limits come first.

    where, advice: for a message, if it is no YAML.
    """
    root: list[Any] = []
    stack: list[Any] = [root]
    keys: list[str | None] = [None]  # of each mapping on the stack, the key that awaits a value
    nodes = 0

    def refuse(mark: Any, what: str) -> NoReturn:
        line = f", line {mark.line + 1}" if mark and "\n" in text else ""
        fail(f"{where}{line}: {what}")

    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            mark = event.start_mark
            if isinstance(event, yaml.CollectionEndEvent):
                stack.pop()
                keys.pop()
            if isinstance(event, yaml.DocumentStartEvent) and root:
                refuse(mark, "a second document begins; keep one")
            if not isinstance(event, yaml.NodeEvent):
                continue
            nodes += 1
            key, parent, tag = keys[-1], stack[-1], getattr(event, "tag", None)
            node: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
            if isinstance(event, yaml.ScalarEvent):
                node = Bare(event.value) if event.implicit[0] else event.value
            if event.anchor is not None:
                refuse(mark, "aliases and anchors (*, &) are not read; write the value out")
            if tag is not None:
                refuse(mark, f"the tag {quote(tag)} is not read; leave it out")
            if nodes > MAX_NODES:
                refuse(mark, f"a recipe holds at most {MAX_NODES} values")
            if len(stack) > MAX_DEPTH:
                refuse(mark, f"a recipe is nested at most {MAX_DEPTH} deep")
            if isinstance(parent, list):
                parent.append(node)
            elif key is not None:
                parent[key], keys[-1] = node, None
            elif not isinstance(node, str) or not node:
                refuse(mark, "a key must be a name")
            elif node in parent:
                refuse(mark, f"the key {quote(node)} is given twice; keep one")
            else:
                keys[-1] = str(node)
            if not isinstance(node, str):
                stack.append(node)
                keys.append(None)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        refuse(mark, f"{problem}; {advice}" if problem else "some characters are not text")
    return root[0] if root else None


def dotted(overrides: Sequence[str]) -> dict[str, Any]:
    """The tree that lines a.b.c=VALUE of a command say; a.b=x beside them is the key "" of a.b."""
    tree: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = (part.strip() for part in text.partition("="))
        names = key.split(".")
        if not equals:
            fail(f"{quote(text)} has no '=' (command line); write KEY=VALUE")
        if not all(names):
            fail(f"{quote(text)} has an empty key (command line); write KEY=VALUE")
        if len(names) > MAX_DEPTH:
            fail(f"{quote(key)} is nested deeper than {MAX_DEPTH} (command line)")
        # Only what opens a bracket or a quote is YAML: *.png, #1 and a: b are meant as they stand.
        yaml_like = value.startswith(("[", "{", '"', "'"))
        node = parse(value, f"the value of {quote(key)}", _IN_WORDS) if yaml_like else Bare(value)
        for name in reversed(names):
            node = {name: node}
        tree = _joined(tree, node, "")
    return tree


def _joined(a: Any, b: Any, key: str) -> Any:
    """Two trees as one; a scalar and the keys below it meet as the key "" of a section."""
    if not isinstance(a, dict) and not isinstance(b, dict):
        fail(f"{quote(key)} is given twice (command line); keep one")
    tree, more = (part if isinstance(part, dict) else {"": part} for part in (a, b))
    for name, item in more.items():
        below = ".".join(filter(None, (key, name)))
        tree[name] = _joined(tree[name], item, below) if name in tree else item
    return tree


def native(value: Any) -> Any:
    """A tree as plain values, whatever they are for."""
    if isinstance(value, dict):
        return {k: native(v) for k, v in value.items()}
    if isinstance(value, list):
        return [native(v) for v in value]
    return _scalar(value) if isinstance(value, Bare) else value


def to_text(tree: Mapping[str, Any]) -> str:
    """A tree as YAML, a line for each leaf, `kind` first."""
    return "".join(f"{line}\n" for line in _block(tree)) or "{}\n"


def show(value: Any) -> str:
    """A value as a message shows it."""
    return quote(value) if isinstance(value, str) else clip(_flow(native(value)))


def _block(tree: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key, value in _kind_first(tree):
        if isinstance(value, dict) and value:
            yield f"{indent}{_flow(key)}:"
            yield from _block(value, indent + "  ")
        else:
            yield f"{indent}{_flow(key)}: {_flow(value)}"


def _kind_first(tree: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return sorted(tree.items(), key=lambda pair: pair[0] != "kind")


def _flow(value: Any) -> str:
    """A value on one line, so that any reader of YAML 1.1 or 1.2 takes it for what it is."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text or "e" not in text else text.replace("e", ".0e")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_flow(k)}: {_flow(v)}' for k, v in _kind_first(value))}}}"
    text = str(value)
    name = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text)
    if name and _scalar(text) == text and text.lower() not in ("yes", "no", "on", "off", "y", "n"):
        return text
    escaped = (
        f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\U{ord(c):08x}" for c in text
    )
    return f'"{"".join(escaped)}"'


def _scalar(text: str) -> Any:
    """Bare text as YAML 1.2 reads it, with the exponents and underscores of Python."""
    if text in ("", "~", "null", "Null", "NULL", "none", "None"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    digits = text.replace("_", "") if text[0] != "_" else text
    if re.fullmatch(r"[-+]?[0-9]{1,1000}", digits):
        return int(digits)
    if re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", digits):
        return float(digits)
    if re.fullmatch(r"[-+]?\.?(inf|nan)", text, re.IGNORECASE):
        return float(text.replace(".", ""))
    return str(text)
