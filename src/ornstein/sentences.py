"""What a recipe got wrong, each in one sentence: the key, the value, and what to write instead."""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import ValidationError

from ornstein.choice import Choice, by_kind, elements, members
from ornstein.errors import like, nearest, quote
from ornstein.yamltree import show

_MUST = {
    "greater_than": "be greater than {gt}",
    "greater_than_equal": "be at least {ge}",
    "less_than": "be less than {lt}",
    "less_than_equal": "be at most {le}",
    "multiple_of": "be a multiple of {multiple_of}",
    "finite_number": "be finite",
    "int": "be a whole number",
    "int_from_float": "be a whole number",
    "int_parsing_size": "be a smaller whole number",
    "float": "be a number",
    "bool": "be true or false",
    "string": "be text",
    "string_unicode": "be readable text",
    "string_pattern_mismatch": "match the pattern {pattern}",
    "literal_error": "be {expected}",
    "enum": "be {expected}",
    "too_short": "have a length of at least {min_length}",
    "too_long": "have a length of at most {max_length}",
    "tuple": "be a list such as {example}",
    "list": "be a list such as {example}",
    "model_attributes": "be a section",
    "dict": "be a mapping such as {{a: 1}}",
}
_MORE = r"^string_(?=too_)|_(type|parsing)$"  # what pydantic's names have besides


def sentences(
    schema: type[Choice], error: ValidationError, source: Callable[[str], str]
) -> list[str]:
    """What pydantic refused, in our words: a sentence for each key, with the value's source."""
    found: dict[str, list[str]] = {}
    ends: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        key, options, meaning = _place(schema, detail["loc"])
        kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
        given = source(key)
        end = f" ({given})" if given else ""
        if kind == "missing" and key.endswith("]"):
            phrase = f"{key} is missing from the list"
        elif kind == "missing":
            phrase, end = f"{key} has no default", how(key, options)
        elif kind in ("value_error", "assertion_error"):
            phrase = f"{key}: {context['error']}".removeprefix(": ")
        else:
            must = _MUST.get(kind) or _MUST.get(re.sub(_MORE, "", kind))
            if kind == "string_too_short" and context["min_length"] == 1:
                must = "not be empty"
            plain = {k: f"{v:.12g}" if isinstance(v, float) else v for k, v in context.items()}
            plain["example"] = _example(options)
            if kind == "string_pattern_mismatch" and meaning:
                must = f"be {meaning}"
            message = detail["msg"][:1].lower() + detail["msg"][1:]
            phrase = f"{key} must {must.format(**plain)}" if must else f"{key}: {message}"
            words = re.findall(r"'([^']*)'", str(context.get("expected", "")))
            end = f", got {show(value)}{end}{like(str(value), words) if not found else ''}"
        # The members of a union each say what they would have taken.
        phrases = found.setdefault(key, [])
        if phrase not in phrases:
            phrases.append(phrase)
        ends.setdefault(key, end)
    joined = {key: " or ".join(phrases) for key, phrases in found.items()}
    return [text.replace(f" or {k} must ", " or ") + ends[k] for k, text in joined.items()]


class _Place(NamedTuple):
    key: str
    options: list[Any]
    meaning: str | None


def _place(schema: type[Choice], loc: tuple[int | str, ...]) -> _Place:
    """A place that pydantic names: its dotted key, the types it may hold and what it means."""
    key, options = "", [schema]
    meaning: str | None = None
    for part in loc:
        kinds = by_kind(options)
        fields = next(iter(kinds.values())).model_fields if len(kinds) == 1 else {}
        if isinstance(part, int):
            key, options = f"{key}[{part}]", elements(options, Collection, part) or []
        elif part in fields:
            key, options = f"{key}.{part}".lstrip("."), members(fields[part].annotation)
            meaning = fields[part].description
        else:  # a label that pydantic adds for the member of a union
            options = [c for k, c in kinds.items() if part in (k, c.__name__)] or options
    return _Place(key, options, meaning)


def unknown(
    schema: type[Choice],
    kinds: Mapping[str, type[Choice]],
    kind: str,
    above: str,
    name: str,
    item: Any,
) -> tuple[str, str]:
    """What to say of a key that a section of this kind has not, and which one may be meant."""
    names = [name]
    while isinstance(item, dict) and len(item) == 1:
        ((below, item),) = item.items()
        names += [below] if below else []
    prefix = f"{above}." if above else ""
    key = prefix + ".".join(names)
    what = f"unknown key {quote(key)}"
    names = [part.lower() for part in names]
    for owner, other in kinds.items():
        if name in other.model_fields and above.endswith("]"):
            return what, f"; it belongs to the kind {owner!r}"
        if name in other.model_fields:
            return what, f"; it belongs to the kind {owner!r}, so set {above}={owner} too"
    known = paths(schema)
    if key in known:
        return what, "; write each part of it as a section of its own, not with dots"
    siblings = list(kinds[kind].model_fields)
    for close in difflib.get_close_matches(names[0][:99], siblings, 1):
        whole = ".".join([prefix + close, *names[1:]])
        return what, f"; did you mean {whole if whole in known else prefix + close!r}?"
    return what, like_path(key, known) or nearest(name, siblings)


def like_path(key: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known dotted key that ends most like `key`, if one does."""
    by_end: dict[str, list[str]] = {}
    for path in known:
        by_end.setdefault(path.rpartition(".")[2], []).append(path)
    last = key.lower().rpartition(".")[2]
    for end in difflib.get_close_matches(last[:99], by_end, 1, 0.75):
        return f"; did you mean {difflib.get_close_matches(key[:99], by_end[end], 1, 0)[0]!r}?"
    return ""


def how(key: str, options: Iterable[Any]) -> str:
    """What to write for a key that may hold these types."""
    options = list(options)
    kinds = by_kind(options)
    if "" in kinds:
        return f"; write {key}.{next(iter(kinds[''].model_fields), 'KEY')}=VALUE"
    if key.endswith("]"):
        return f"; write {{kind: KIND}} there, one of {', '.join(sorted(kinds))}"
    if kinds:
        return f"; write {key}=KIND, one of {', '.join(sorted(kinds))}"
    literals = [option for option in options if get_origin(option) is Literal]
    words = [str(choice) for literal in literals for choice in get_args(literal)]
    if words:
        return f"; write {key}=WORD, one of {', '.join(words)}"
    listed = any(elements([option], Collection, 0) for option in options)
    return f"; write {key}={_example(options) if listed else 'VALUE'}"


def _example(options: Iterable[Any]) -> str:
    """A list such as one of these types would be."""
    for option in options:
        held = elements([option], Collection, 0) or []
        kinds = by_kind(held)
        if kinds:
            return f"[{{kind: {min(kinds)}}}]" if min(kinds) else "[{}]"
        if str in held:
            return "[a, b]"
        if float in held:
            return "[0.9, 0.5]"
    return "[1, 2]"


def paths(schema: type[Choice]) -> list[str]:
    """Every dotted key that some choice of kinds would have."""
    return list(dict.fromkeys(_paths(schema)))


def _paths(cls: type[Choice], prefix: str = "", above: tuple[Any, ...] = ()) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        yield prefix + name
        for below in dict.fromkeys(by_kind(members(field.annotation)).values()):
            if below not in above:
                yield from _paths(below, f"{prefix}{name}.", (*above, below))
