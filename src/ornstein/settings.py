"""From a recipe, a file and a command line to one validated choice, and where each value is from.

    defaults of the schema  ←  recipe  ←  YAML file  ←  overrides a.b.c=VALUE

A layer is a partial tree of keys, and a later one wins key by key. A section that may hold one of
several choices is told apart by its `kind`, and `section=name` is short for `section.kind=name`;
a layer that changes the kind starts that section anew, so that no setting of the old choice
lives on in the new one. Where a section is not set yet, keys that only one kind has mean that
kind. Python, the command line and the studio all come through here.

A scalar without quotes is read by the type of its field: 1e-3 is a float (YAML 1.1 would say
text), and 007 is text where text is asked for and 7 where a number is.
"""

import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ornstein.choice import Choice, by_kind, elements, members
from ornstein.errors import fail, like, quote
from ornstein.sentences import how, sentences, unknown
from ornstein.yamltree import Bare, dotted, load, native, show, to_text

ChoiceT = TypeVar("ChoiceT", bound=Choice)


class Section(NamedTuple):
    """A part of a YAML file, as `load` has it, that stands for a file of its own."""

    path: Path
    tree: dict[str, Any]


class Resolved(NamedTuple, Generic[ChoiceT]):
    """A choice, the source of each of its leaves by dotted key, and what the user should know.

    A source is "default", "recipe", "file PATH" or "command line".
    """

    value: ChoiceT
    provenance: dict[str, str]
    notes: tuple[str, ...]


def resolve(
    schema: type[ChoiceT],
    base: Choice | Mapping[str, Any],
    file: Path | Section | None = None,
    overrides: Sequence[str] = (),
) -> Resolved[ChoiceT]:
    """Merge the layers, validate once, and say where every value came from.

    Of a `base` that is a choice, what it sets explicitly counts as the recipe's.
    Raises: ConfigError, naming the key, its source and what to write instead.
    """
    if isinstance(file, Path):
        file = Section(file, load(file))
    path, given = file or (None, {})
    sources = ["default", "recipe", f"file {path}", "command line"]
    tree: Any = {}
    if isinstance(base, schema):
        tree, base = _node(base, "recipe"), {}
    elif isinstance(base, Choice):
        fail(f"the recipe must be a {schema.__name__}, got a {type(base).__name__}")
    layers = [dict(base), given, dotted(overrides)]
    problems: list[str] = []
    notes: dict[str, str] = {}
    for source, layer in zip(sources[1:], layers, strict=True):
        draft = _Draft(schema, source, problems, notes)
        tree = _merge(draft, [schema], tree, layer, "")
    if problems:
        fail(*problems)
    try:
        value = schema.model_validate(_plain(tree))
    except ValidationError as error:
        fail(*sentences(schema, error, partial(_source, tree, sources)))
    provenance = {key: _source(tree, sources, key) or "default" for key in flatten(value)}
    return Resolved(value, provenance, tuple(notes.values()))


def flatten(choice: Choice) -> dict[str, Any]:
    """The leaves of a choice by dotted key; a list, a dict and None are leaves.

    Choices inside a list or a dict are given as plain data, as JSON has it.
    """
    flat: dict[str, Any] = {}
    for name in type(choice).model_fields:
        value = getattr(choice, name)
        items = value.values() if isinstance(value, dict) else value
        if isinstance(value, Choice):
            flat |= {f"{name}.{key}": leaf for key, leaf in flatten(value).items()} or {name: {}}
        elif isinstance(value, dict | list | tuple) and any(isinstance(i, Choice) for i in items):
            flat |= choice.model_dump(mode="json", include={name})
        else:
            flat[name] = value
    return flat


def chosen(choice: Choice) -> dict[str, Any]:
    """What a choice says beyond its defaults, as plain data; `kind` always counts.

    It stays the same when a setting with a default is added.
    """
    kept: dict[str, Any] = {}
    for name, field in type(choice).model_fields.items():
        value = getattr(choice, name)
        default = field.get_default(call_default_factory=True)
        if name == "kind" or type(value) is not type(default) or value != default:
            kept[name] = chosen(value) if isinstance(value, Choice) else _json(choice, name, value)
    return kept


def _json(choice: Choice, name: str, value: Any) -> Any:
    if isinstance(value, list | tuple) and any(isinstance(item, Choice) for item in value):
        return [chosen(item) for item in value]
    return choice.model_dump(mode="json", include={name})[name]


def difference(a: Choice, b: Choice) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two choices differ; None stands for a key that one has not."""
    x, y = flatten(a), flatten(b)
    return {k: (x.get(k), y.get(k)) for k in x | y if x.get(k) != y.get(k)}


def to_yaml(choice: Choice) -> str:
    """The whole choice as YAML that `resolve` reads back as an equal choice, `kind` first."""
    return to_text(choice.model_dump(mode="json"))


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, as plain values. Raises: ConfigError, as `yamltree.load`."""
    tree: dict[str, Any] = native(load(path))
    return tree


# ── Merging. A section is a dict of nodes, anything else a `_Leaf`; a layer is a plain tree whose
# unquoted scalars are `Bare`. In a section of a layer, "" is the scalar given for the section.


class _Leaf(NamedTuple):
    value: Any
    source: str


class _Draft(NamedTuple):
    schema: type[Choice]
    source: str
    problems: list[str]  # only the first is told, and the number of the others
    notes: dict[str, str]

    def refuse(self, what: str, instead: str = "") -> None:
        self.problems.append(f"{what} ({self.source}){instead}")

    def forget(self, key: str) -> None:
        """Drop the notes on a section that is replaced."""
        for old in [k for k in self.notes if f"{k}.".startswith(f"{key}.")]:
            del self.notes[old]


def _merge(draft: _Draft, options: list[Any], current: Any, value: Any, key: str) -> Any:
    """The node at `key`, of one of the types `options`, after a layer gave `value` for it."""
    if isinstance(value, Choice):
        return _node(value, draft.source)
    kinds = by_kind(options)
    others = [o for o in options if o not in kinds.values() and o is not types.NoneType]
    if types.NoneType in options and native(value) is None:
        draft.forget(key)
        return _Leaf(None, draft.source)
    if kinds and "" not in kinds and isinstance(value, str) and (value in kinds or not others):
        value = {"": value}
    if not kinds or (others and not isinstance(value, dict)):
        draft.forget(key)
        return _leaf(draft, others, current, value, key)
    if not isinstance(value, dict) or ("" in value and "" in kinds):
        got = value[""] if isinstance(value, dict) else value
        shown = "nothing" if got == "" else show(got)
        draft.refuse(f"{key} is a section, not a value, got {shown}", how(key, options))
        return current
    kind, before = _chosen(draft, kinds, current, value, key), _kind(current, kinds)
    if kind is None:
        return current

    section: dict[str, Any] = {}
    fields, said = kinds[kind].model_fields, "kind" in value or "" in value
    if isinstance(current, dict) and kind == before:
        section |= current
    else:
        draft.forget(key)
        rest = set(fields) - set(value) - {"kind"}
        if kind != before and not said:
            draft.notes[key] = f"{key} is {kind!r}, the kind that has {', '.join(value)}"
        elif isinstance(current, dict) and rest and draft.source != "recipe":
            draft.notes[key] = f"{key} is now {kind!r}: its other settings are the defaults"
    if kind and (said or kind != before):
        section["kind"] = _Leaf(kind, draft.source)

    for name, item in value.items():
        if name == "" or (name == "kind" and kind):
            continue
        if name in fields:
            node = section[name] if name in section else _default(fields[name])
            below = f"{key}.{name}" if key else name
            section[name] = _merge(draft, members(fields[name].annotation), node, item, below)
        elif draft.problems:
            draft.refuse("unknown key")
        else:
            draft.refuse(*unknown(draft.schema, kinds, kind, key, name, item))
    return section


def _chosen(
    draft: _Draft, kinds: dict[str, type[Choice]], current: Any, value: dict[str, Any], key: str
) -> str | None:
    """The kind that a layer means for a section; None if that cannot be told, which is refused."""
    if "" in kinds:
        return ""
    if "" in value and "kind" in value:
        draft.refuse(f"{key}.kind is given twice", "; keep one")
        return None
    kind = value.get("kind", value.get("", _kind(current, kinds)))
    if isinstance(kind, str) and kind in kinds:
        return str(kind)
    if kind is not None:
        hint = "" if draft.problems else like(str(kind), kinds)
        hint = f"{hint or ';'} known: {', '.join(sorted(kinds))}"
        what = f"{key} has no kind" if key else "there is no kind"
        draft.refuse(f"{what} {show(kind)}", hint)
        return None
    # An element of a list is no section: it is written out, with its kind.
    unset = current is None or (isinstance(current, _Leaf) and current.value is None)
    if unset and "kind" not in value and not key.endswith("]"):
        fitting = [k for k, choice in kinds.items() if value.keys() <= choice.model_fields.keys()]
        if len(fitting) == 1:
            return fitting[0]
    draft.refuse(f"{key} needs a kind", how(key, kinds.values()))
    return None


def _leaf(draft: _Draft, options: list[Any], current: Any, value: Any, key: str) -> Any:
    if isinstance(value, dict):
        item = elements(options, Mapping, 0)
        if item is None:
            where = ".".join([key, *filter(None, value)][:2])
            draft.refuse(
                f"{key} is a value, not a section, so {quote(where)} cannot be set",
                how(key, options),
            )
            return current
        value = {k: _merge(draft, item, None, v, f"{key}.{k}") for k, v in value.items()}
    elif isinstance(value, list | tuple):
        value = [
            _merge(draft, elements(options, Collection, i) or [Any], None, v, f"{key}[{i}]")
            for i, v in enumerate(value)
        ]
    elif isinstance(value, Bare):
        value = _read(value, options)
    if isinstance(value, bool) and bool not in options and {int, float} & set(options):
        # pydantic would take true for 1.
        kind = "a number" if float in options else "a whole number"
        draft.refuse(f"{key} must be {kind}, got {show(value)}")
    return _Leaf(value, draft.source)


def _read(text: Bare, options: list[Any]) -> Any:
    """What unquoted text means where one of these types is asked for."""
    value = native(text)
    literals = [c for option in options if get_origin(option) is Literal for c in get_args(option)]
    if str(text) in literals:
        return str(text)
    wanted = {*options, *map(type, literals)}
    if float in wanted:
        wanted.add(int)
    if str not in options and (value is None or wanted & {bool, int, float}):
        return value  # even where it does not fit, so that the error shows it as it was meant
    return value if Any in options or type(value) in wanted else str(text)


# ── Trees of nodes.


def _node(value: Any, source: str) -> Any:
    """A value as a node; of a choice, what it sets itself, and `kind` always counts."""
    if not isinstance(value, Choice):
        return _Leaf(value, source)
    said = value.model_fields_set | {"kind"}
    names = [name for name in type(value).model_fields if name in said]
    return {name: _node(getattr(value, name), source) for name in names}


def _default(field: FieldInfo) -> Any:
    """The node that a schema fills in by default; None where it fills in nothing it can tell."""
    if field.is_required() or field.default_factory_takes_validated_data:
        return None
    return _node(field.get_default(call_default_factory=True), "default")


def _kind(node: Any, kinds: Mapping[str, type[Choice]]) -> str | None:
    """The kind of a section as it stands, or the only one that it can have."""
    leaf = node.get("kind") if isinstance(node, dict) else None
    if isinstance(leaf, _Leaf) and isinstance(leaf.value, str) and leaf.value in kinds:
        return leaf.value
    return next(iter(kinds)) if len(kinds) == 1 else None


def _plain(node: Any) -> Any:
    """A tree of nodes as what pydantic validates."""
    if isinstance(node, _Leaf):
        return _plain(node.value)
    if isinstance(node, dict):
        return {k: _plain(v) for k, v in node.items()}
    return [_plain(v) for v in node] if isinstance(node, list) else node


def _leaves(node: Any) -> Iterator[_Leaf]:
    if isinstance(node, _Leaf):
        yield node
    elif isinstance(node, dict):
        for child in node.values():
            yield from _leaves(child)


def _source(tree: Any, sources: list[str], key: str) -> str:
    """The last source of what stands at a key; an element of a list is from where the list is."""
    for name in key.split("."):
        tree = tree.get(name.partition("[")[0]) if isinstance(tree, dict) else tree
    return max((leaf.source for leaf in _leaves(tree)), key=sources.index, default="")
