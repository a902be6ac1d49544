"""From a recipe, a file and a command line to one validated choice, and where each value is from.

    defaults of the schema  ←  recipe  ←  YAML file  ←  overrides a.b.c=VALUE

A layer is a partial tree of keys, and a later one wins key by key. A section that may hold one of
several choices is told apart by its `kind`, and `section=name` is short for `section.kind=name`;
a layer that changes the kind starts that section anew, so that no setting of the old choice
lives on in the new one. Python, the command line and the studio all come through here.

A scalar without quotes is read by the type of its field: 1e-3 is a float (YAML 1.1 would say
text), and 007 is text where text is asked for and 7 where a number is. Nothing of YAML beyond
plain trees is read: no aliases, tags or duplicate keys, and only within the limits below.
"""

import contextlib
import difflib
import itertools
import re
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ornstein.choice import Choice
from ornstein.errors import ConfigError, nearest

MAX_BYTES, MAX_DEPTH, MAX_NODES = 1_000_000, 20, 20_000
ChoiceT = TypeVar("ChoiceT", bound=Choice)


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
    file: Path | None = None,
    overrides: Sequence[str] = (),
) -> Resolved[ChoiceT]:
    """Merge the layers, validate once, and say where every value came from.

    Of a `base` that is a choice, what it sets explicitly counts as the recipe's.
    Raises: ConfigError, naming the key, its source and what to write instead.
    """
    sources = ["default", "recipe", f"file {file}", "command line"]
    tree: Any = {}
    if isinstance(base, schema):
        tree, base = _explicit(base, "recipe"), {}
    elif isinstance(base, Choice):
        _fail(f"the recipe must be a {schema.__name__}, got a {type(base).__name__}")
    layers = [dict(base), _load(file) if file is not None else {}, _layer(overrides)]
    problems: list[str] = []
    notes: dict[str, str] = {}
    for source, layer in zip(sources[1:], layers, strict=True):
        draft = _Draft(schema, source, problems, notes)
        tree = _merge(draft, [schema], tree, layer, "")
    if problems:
        _fail(*problems)
    try:
        value = schema.model_validate(_plain(tree))
    except ValidationError as error:
        _fail(*_sentences(schema, tree, error, sources))
    return Resolved(value, {k: _source(tree, k) for k in flatten(value)}, tuple(notes.values()))


def flatten(choice: Choice) -> dict[str, Any]:
    """The leaves of a choice by dotted key; a list, a dict and None are leaves."""
    flat: dict[str, Any] = {}
    for name in type(choice).model_fields:
        value = getattr(choice, name)
        if isinstance(value, Choice):
            flat |= {f"{name}.{key}": leaf for key, leaf in flatten(value).items()} or {name: {}}
        else:
            flat[name] = value
    return flat


def difference(a: Choice, b: Choice) -> dict[str, tuple[Any, Any]]:
    """The dotted keys in which two choices differ; None stands for a key that one has not."""
    x, y = flatten(a), flatten(b)
    return {k: (x.get(k), y.get(k)) for k in x | y if x.get(k) != y.get(k)}


def to_yaml(choice: Choice) -> str:
    """The whole choice as YAML that `resolve` reads back as an equal choice, `kind` first."""
    return "".join(f"{line}\n" for line in _block(choice.model_dump(mode="json"))) or "{}\n"


def load_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, as plain values.

    Raises: ConfigError if the file cannot be read, is not a mapping, breaks a limit, or uses
    an alias, a tag or a key twice.
    """
    tree: dict[str, Any] = _native(_load(path))
    return tree


# ── Merging. A section is a dict of nodes, anything else a `_Leaf`; a layer is a plain tree whose
# unquoted scalars are `_Text`. In a section of a layer, "" is the scalar given for the section.


class _Leaf(NamedTuple):
    value: Any
    source: str


class _Text(str):
    """An unquoted scalar: what it means depends on the type of its field."""


class _Draft(NamedTuple):
    schema: type[Choice]
    source: str
    problems: list[str]
    notes: dict[str, str]

    def refuse(self, what: str, instead: str = "") -> None:
        self.problems.append(f"{what} ({self.source}){instead}")


def _merge(draft: _Draft, options: list[Any], current: Any, value: Any, key: str) -> Any:
    """The node at `key`, of one of the types `options`, after a layer gave `value` for it."""
    if isinstance(value, Choice):
        return _explicit(value, draft.source)
    kinds = _kinds(options)
    others = [o for o in options if o not in kinds.values() and o is not types.NoneType]
    if types.NoneType in options and _native(value) is None:
        return _Leaf(None, draft.source)
    if kinds and "" not in kinds and isinstance(value, str) and (value in kinds or not others):
        value = {"": value}
    if not kinds or (others and not isinstance(value, dict)):
        return _leaf(draft, others, current, value, key)
    if not isinstance(value, dict) or ("" in value and "" in kinds):
        got = value[""] if isinstance(value, dict) else value
        draft.refuse(f"{key} is a section, not a value, got {_show(got)}", _how(key, kinds))
        return current
    if "" in value and "kind" in value:
        draft.refuse(f"{key}.kind is given twice", "; keep one")
        return current

    before = _kind(current, kinds)
    kind = value.get("kind", value.get("", before)) if "" not in kinds else ""
    if kind is None:
        draft.refuse(f"{key} needs a kind", _how(key, kinds))
        return current
    if not isinstance(kind, str) or kind not in kinds:
        hint = "" if draft.problems else _like(str(kind), kinds)
        hint = f"{hint or ';'} known: {', '.join(sorted(kinds))}"
        draft.refuse(f"{key or 'the recipe'} has no kind {_show(kind)}", hint)
        return current

    section: dict[str, Any] = {}
    if isinstance(current, dict) and kind == before:
        section |= current
    else:
        for old in [k for k in draft.notes if k == key or k.startswith(f"{key}.")]:
            del draft.notes[old]
        rest = set(kinds[kind].model_fields) - set(value) - {"kind"}
        if isinstance(current, dict) and rest and draft.source != "recipe":
            draft.notes[key] = f"{key} is now {str(kind)!r}: its other settings are the defaults"
    if kind and ("kind" in value or "" in value):
        section["kind"] = _Leaf(str(kind), draft.source)

    fields = kinds[kind].model_fields
    for name, item in value.items():
        if name == "" or (name == "kind" and "" not in kinds):
            continue
        if name not in fields:
            draft.refuse(*_unknown(draft, kinds, kind, key, name, item))
            continue
        node = section[name] if name in section else _default(fields[name])
        below = f"{key}.{name}" if key else name
        section[name] = _merge(draft, _options(fields[name].annotation), node, item, below)
    return section


def _leaf(draft: _Draft, options: list[Any], current: Any, value: Any, key: str) -> Any:
    if isinstance(value, dict):
        item = _items(options, Mapping, 0)
        if item is None:
            below = next((k for k in value if k), "")
            where = f"{key}.{below}" if below else key
            draft.refuse(
                f"{key} is a value, not a section, so {_quote(where)} cannot be set",
                f"; write {key}=VALUE",
            )
            return current
        value = {k: _merge(draft, item, None, v, f"{key}.{k}") for k, v in value.items()}
    elif isinstance(value, list | tuple):
        value = [
            _merge(draft, _items(options, Collection, i) or [Any], None, v, f"{key}[{i}]")
            for i, v in enumerate(value)
        ]
    elif isinstance(value, _Text):
        value = _read(value, options)
    if isinstance(value, bool) and bool not in options and {int, float} & set(options):
        # pydantic would take true for 1.
        draft.refuse(f"{key} must be a number, got {_show(value)}")
    return _Leaf(value, draft.source)


def _read(text: _Text, options: list[Any]) -> Any:
    """What unquoted text means where one of these types is asked for."""
    value = _scalar(text)
    literals = [c for option in options if get_origin(option) is Literal for c in get_args(option)]
    if str(text) in literals:
        return str(text)
    wanted = {*options, *map(type, literals)}
    if float in wanted:
        wanted.add(int)
    if str not in options and (value is None or wanted & {bool, int, float}):
        return value  # even where it does not fit, so that the error shows it as it was meant
    return value if Any in options or type(value) in wanted else str(text)


def _scalar(text: str) -> Any:
    """Unquoted text as YAML 1.2 reads it, with the exponents and underscores of Python."""
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


def _native(value: Any) -> Any:
    """A layer as plain values, whatever they are for."""
    if isinstance(value, dict):
        return {k: _native(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_native(v) for v in value]
    return _scalar(value) if isinstance(value, _Text) else value


def _plain(node: Any) -> Any:
    """A tree of nodes as what pydantic validates."""
    if isinstance(node, _Leaf):
        return _plain(node.value)
    if isinstance(node, dict):
        return {k: _plain(v) for k, v in node.items()}
    return [_plain(v) for v in node] if isinstance(node, list) else node


def _explicit(choice: Choice, source: str) -> dict[str, Any]:
    """What a choice sets itself, as a tree; `kind` always counts."""
    tree: dict[str, Any] = {}
    for name in type(choice).model_fields:
        if name in choice.model_fields_set or name == "kind":
            leaf = _Leaf(getattr(choice, name), source)
            below = isinstance(leaf.value, Choice)
            tree[name] = _explicit(leaf.value, source) if below else leaf
    return tree


def _default(field: FieldInfo) -> Any:
    """The tree of a section that a schema fills by default; others start from nothing."""
    default = None
    if not field.default_factory_takes_validated_data:
        default = field.get_default(call_default_factory=True)
    return _explicit(default, "default") if isinstance(default, Choice) else None


def _leaves(node: Any) -> Iterator[_Leaf]:
    if isinstance(node, _Leaf):
        yield node
    elif isinstance(node, dict):
        for child in node.values():
            yield from _leaves(child)


def _source(tree: Any, key: str) -> str:
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else tree
    return tree.source if isinstance(tree, _Leaf) else "default"


# ── Types: what a field may hold, from its annotation.


def _options(annotation: Any) -> list[Any]:
    """The members of a union, or the one type."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for member in get_args(annotation) for option in _options(member)]
    return [annotation]


def _kinds(options: list[Any]) -> dict[str, type[Choice]]:
    """The choices among some types by kind; "" stands for one that has no kind."""
    kinds: dict[str, type[Choice]] = {}
    for option in options:
        if isinstance(option, type) and issubclass(option, Choice):
            field = option.model_fields.get("kind")
            named = field is not None and get_origin(field.annotation) is Literal
            kinds |= dict.fromkeys(get_args(field.annotation) if field and named else [""], option)
    assert "" not in kinds or len(kinds) == 1, "only a `kind` tells the choices of a union apart"
    return kinds


def _kind(node: Any, kinds: Mapping[str, type[Choice]]) -> str | None:
    """The kind of a section as it stands, or the only one that it can have."""
    leaf = node.get("kind") if isinstance(node, dict) else None
    if isinstance(leaf, _Leaf) and isinstance(leaf.value, str) and leaf.value in kinds:
        return leaf.value
    return next(iter(kinds)) if len(kinds) == 1 else None


def _items(options: list[Any], container: type, index: int) -> list[Any] | None:
    """The types of what a container holds, if one of `options` is such a container."""
    for option in options:
        origin, args = get_origin(option) or option, get_args(option)
        if origin is Any:
            return [Any]
        if not isinstance(origin, type) or not issubclass(origin, container) or origin is str:
            continue
        if issubclass(origin, tuple) and args and args[-1] is not ...:
            return _options(args[min(index, len(args) - 1)])
        return _options(args[1 if issubclass(origin, Mapping) else 0]) if args else [Any]
    return None


def _paths(cls: type[Choice], prefix: str = "", above: tuple[Any, ...] = ()) -> Iterator[str]:
    """Every dotted key that some choice of kinds would have."""
    for name, field in cls.model_fields.items():
        yield prefix + name
        for below in dict.fromkeys(_kinds(_options(field.annotation)).values()):
            if below not in above:
                yield from _paths(below, f"{prefix}{name}.", (*above, below))


# ── Reading: overrides and files become layers.


def _layer(overrides: Sequence[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for text in overrides:
        key, equals, value = (part.strip() for part in text.partition("="))
        names = key.split(".")
        if not equals:
            _fail(f"{_quote(text)} has no '=' (command line); write KEY=VALUE")
        if not all(names):
            _fail(f"{_quote(text)} has an empty key (command line); write KEY=VALUE")
        if len(names) > MAX_DEPTH:
            _fail(f"{_quote(key)} is nested deeper than {MAX_DEPTH} (command line)")
        # Only what opens a bracket or a quote is YAML: *.png, #1 and a: b are meant as they stand.
        yaml_like = value.startswith(("[", "{", '"', "'"))
        what = f"the value of {_quote(key)}"
        _insert(tree, names, _parse(value, what) if yaml_like else _Text(value), key)
    return tree


def _insert(tree: dict[str, Any], names: list[str], value: Any, key: str) -> None:
    """Put a value at its place; a scalar and keys below it meet as the key "" of a section."""
    *above, last = names
    for name in above:
        below = tree.setdefault(name, {})
        if not isinstance(below, dict):
            below = tree[name] = {"": below}
        tree = below
    if last not in tree:
        tree[last] = value
        return
    old = tree[last]
    if not isinstance(old, dict) and isinstance(value, dict):
        tree[last] = {"": old} | value
    elif isinstance(old, dict):
        for name, item in (value if isinstance(value, dict) else {"": value}).items():
            _insert(old, [name], item, f"{key}.{name}" if name else key)
    else:
        _fail(f"{_quote(key)} is given twice (command line); keep one")


def _load(path: Path) -> dict[str, Any]:
    try:
        with Path(path).open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        names: list[str] = []
        with contextlib.suppress(OSError):
            names += [p.name for p in itertools.islice(Path(path).parent.iterdir(), 9999)]
        _fail(f"there is no file {path}{_like(Path(path).name, names)}")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        _fail(f"file {path} cannot be read: {reason.lower()}")
    if len(data) > MAX_BYTES:
        _fail(f"file {path} is larger than {MAX_BYTES // 1_000_000} MB, too large for a recipe")
    try:
        tree = _parse(data.decode("utf-8-sig"), f"file {path}")
    except UnicodeDecodeError:
        _fail(f"file {path} is not UTF-8 text")
    if not isinstance(tree, dict):
        _fail(f"file {path} must hold lines of KEY: VALUE, got {_show(tree)}")
    return tree


def _parse(text: str, where: str) -> Any:
    """A YAML document as dicts, lists and strings, built from events so that limits come first."""
    root: list[Any] = []
    stack: list[Any] = [root]
    keys: list[str | None] = [None]  # of each mapping on the stack, the key that awaits a value
    nodes = 0
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            mark = event.start_mark
            at = f"{where}, line {mark.line + 1}" if mark and "\n" in text else where
            if isinstance(event, yaml.CollectionEndEvent):
                stack.pop()
                keys.pop()
            if isinstance(event, yaml.DocumentStartEvent) and root:
                _fail(f"{at}: a second document begins; keep one")
            if not isinstance(event, yaml.NodeEvent):
                continue
            nodes += 1
            key, parent, tag = keys[-1], stack[-1], getattr(event, "tag", None)
            node: Any = [] if isinstance(event, yaml.SequenceStartEvent) else {}
            if isinstance(event, yaml.ScalarEvent):
                node = _Text(event.value) if event.implicit[0] else event.value
            if event.anchor is not None:
                _fail(f"{at}: aliases and anchors (*, &) are not read; write the value out")
            if tag is not None:
                _fail(f"{at}: the tag {_quote(tag)} is not read; leave it out")
            if nodes > MAX_NODES:
                _fail(f"{at}: a recipe holds at most {MAX_NODES} values")
            if len(stack) > MAX_DEPTH:
                _fail(f"{at}: a recipe is nested at most {MAX_DEPTH} deep")
            if isinstance(parent, list):
                parent.append(node)
            elif key is not None:
                parent[key], keys[-1] = node, None
            elif not isinstance(node, str) or not node:
                _fail(f"{at}: a key must be a name")
            elif node in parent:
                _fail(f"{at}: the key {_quote(node)} is given twice; keep one")
            else:
                keys[-1] = str(node)
            if not isinstance(node, str):
                stack.append(node)
                keys.append(None)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{where}, line {mark.line + 1}" if mark and "\n" in text else where
        _fail(f"{at}: {getattr(error, 'problem', None) or 'some characters are not text'}")
    return root[0] if root else None


# ── Writing.


def _block(tree: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for key in sorted(tree, key=lambda name: name != "kind"):
        value = tree[key]
        if isinstance(value, dict) and value:
            yield f"{indent}{_flow(key)}:"
            yield from _block(value, indent + "  ")
        else:
            yield f"{indent}{_flow(key)}: {_flow(value)}"


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
        pairs = sorted(value.items(), key=lambda pair: pair[0] != "kind")
        return f"{{{', '.join(f'{_flow(k)}: {_flow(v)}' for k, v in pairs)}}}"
    text = str(value)
    name = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text)
    if name and _scalar(text) == text and text.lower() not in ("yes", "no", "on", "off", "y", "n"):
        return text
    escaped = (
        f"\\{c}" if c in '"\\' else c if c.isprintable() else f"\\U{ord(c):08x}" for c in text
    )
    return f'"{"".join(escaped)}"'


# ── Sentences.

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
    "string_too_short": "have a length of at least {min_length}",
    "string_too_long": "have a length of at most {max_length}",
    "string_pattern_mismatch": "match the pattern {pattern}",
    "literal_error": "be {expected}",
    "enum": "be {expected}",
    "too_short": "have a length of at least {min_length}",
    "too_long": "have a length of at most {max_length}",
    "tuple": "be a list such as [1, 2]",
    "list": "be a list such as [1, 2]",
    "model_attributes": "be a section",
    "dict": "be a mapping such as {{a: 1}}",
}


def _sentences(
    schema: type[Choice], tree: Any, error: ValidationError, sources: list[str]
) -> list[str]:
    """What pydantic refused, in our words: a sentence for each key."""
    found: dict[str, list[str]] = {}
    ends: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        key, kinds, node = _locate(schema, tree, detail["loc"])
        kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
        source = max((leaf.source for leaf in _leaves(node)), key=sources.index, default="")
        end = f" ({source})" if source else ""
        if kind == "missing" and key.endswith("]"):
            phrase = f"{key} is missing from the list"
        elif kind == "missing":
            phrase, end = f"{key} has no default", _how(key, kinds)
        elif kind in ("value_error", "assertion_error"):
            phrase = f"{key}: {context['error']}".removeprefix(": ")
        else:
            must = _MUST.get(kind) or _MUST.get(re.sub("_(type|parsing)$", "", kind))
            plain = {k: f"{v:.12g}" if isinstance(v, float) else v for k, v in context.items()}
            message = detail["msg"][:1].lower() + detail["msg"][1:]
            phrase = f"{key} must {must.format(**plain)}" if must else f"{key}: {message}"
            words = re.findall(r"'([^']*)'", str(context.get("expected", "")))
            end = f", got {_show(value)}{end}{_like(str(value), words) if not found else ''}"
        # The members of a union each say what they would have taken.
        phrases = found.setdefault(key, [])
        if phrase not in phrases:
            phrases.append(phrase)
        ends.setdefault(key, end)
    joined = {key: " or ".join(phrases) for key, phrases in found.items()}
    return [text.replace(f" or {k} must ", " or ") + ends[k] for k, text in joined.items()]


def _locate(
    schema: type[Choice], tree: Any, loc: tuple[int | str, ...]
) -> tuple[str, dict[str, type[Choice]], Any]:
    """The dotted key of a place that pydantic names, its kinds, and what the layers gave for it."""
    key, options, node = "", [schema], tree
    for part in loc:
        kinds = _kinds(options)
        cls = kinds.get(_kind(node, kinds) or "")
        if isinstance(part, int):
            key, options = f"{key}[{part}]", _items(options, Collection, part) or []
            items = node.value if isinstance(node, _Leaf) else None
            node = items[part] if isinstance(items, list) and part < len(items) else node
        elif cls and part in cls.model_fields:
            key, options = f"{key}.{part}".lstrip("."), _options(cls.model_fields[part].annotation)
            node = node.get(part) if isinstance(node, dict) else node
        # Anything else is a label that pydantic adds for the member of a union.
    return key, _kinds(options), node


def _unknown(
    draft: _Draft, kinds: Mapping[str, type[Choice]], kind: str, above: str, name: str, item: Any
) -> tuple[str, str]:
    """What to say of a key that the section `above` has not, and which key may be meant."""
    names = [name]
    while isinstance(item, dict) and len(item) == 1:
        ((below, item),) = item.items()
        names += [below] if below else []
    prefix = f"{above}." if above else ""
    key = prefix + ".".join(names)
    what = f"unknown key {_quote(key)}"
    if draft.problems:
        return what, ""  # only the first one is shown
    paths = list(dict.fromkeys(_paths(draft.schema)))
    owners = [k for k, other in kinds.items() if name in other.model_fields]
    if owners:
        return what, f"; it belongs to the kind {owners[0]!r}, so set {above}={owners[0]} too"
    if key in paths:
        return what, "; write each part of it as a section of its own, not with dots"
    siblings = list(kinds[kind].model_fields)
    close = difflib.get_close_matches(name[:99], siblings, 1)
    if close:
        whole = ".".join([prefix + close[0], *names[1:]])
        return what, f"; did you mean {whole if whole in paths else prefix + close[0]!r}?"
    ends = sorted({path.rpartition(".")[2] for path in paths})
    for end in difflib.get_close_matches(names[-1][:99], ends, 1):
        same = [path for path in paths if path.rpartition(".")[2] == end]
        return what, f"; did you mean {difflib.get_close_matches(key[:99], same, 1, 0)[0]!r}?"
    return what, nearest(name[:99], siblings)


def _how(key: str, kinds: Mapping[str, type[Choice]]) -> str:
    if "" in kinds:
        return f"; write {key}.{next(iter(kinds[''].model_fields), 'KEY')}=VALUE"
    if key.endswith("]"):
        return f"; write {{kind: KIND}} there, one of {', '.join(sorted(kinds))}"
    if kinds:
        return f"; write {key}=KIND, one of {', '.join(sorted(kinds))}"
    return f"; write {key}=VALUE"


def _like(word: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(word[:99], list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _show(value: Any) -> str:
    return _quote(value) if isinstance(value, str) else _clip(_flow(_native(value)), 60)


def _quote(text: str) -> str:
    return _clip(repr(str(text)), 60)


def _clip(text: str, size: int) -> str:
    return text if len(text) <= size else text[: size - 1] + "…"


def _fail(problem: str, *more: str) -> NoReturn:
    """Raise ConfigError with the first problem on one line, and how many more there are."""
    line = _clip("".join(c if c.isprintable() else " " for c in problem), 360)
    raise ConfigError(f"{line} (and {len(more)} more)" if more else line) from None
