"""Between the words of a command line and its options: numbers as settings read them, and what
cannot be read in our words.

The parser alone would round 1.7 to 2 where a whole number is asked for, and take `none` for an
option that was not given. `read` refuses both; `complaint` turns what the parser refuses into one
sentence with the option, the word that was given and what to write instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    RepeatArgumentError,
    Token,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
    convert,
)

from ornstein.errors import like, nearest, quote

_COUNTED = 2**63
"""A whole number from here on fits no counter."""


def read(kind: Any, tokens: Sequence[Token]) -> Any:
    """The value of an option of type `kind`, from its words.

    A number is what a setting would take for one: 1e3 and 50_000 are whole, 1.7 is not.
    Raises: ValueError with what the word must be.
    """
    if kind is Path and not tokens[0].value:
        raise ValueError("a path")  # the parser would take it for the folder that we are in
    if kind is not int and kind is not float:
        return convert(kind, tokens)
    from ornstein.yamltree import Bare, native

    number = native(Bare(tokens[0].value.strip()))
    if kind is float and type(number) in (int, float):
        try:
            return float(number)
        except OverflowError:
            raise ValueError("a smaller number") from None
    if type(number) is float and number.is_integer():
        number = int(number)
    if type(number) is not int:
        raise ValueError("a number" if kind is float else "a whole number")
    if abs(number) >= _COUNTED:
        raise ValueError("a whole number below 2^63")
    return number


def complaint(error: CycloptsError, commands: Sequence[str]) -> str:
    """What the parser refuses, in one sentence of ours. commands: the names of all."""
    command = " ".join(error.command_chain or ())
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        word = error.unused_tokens[0]
        flags = ["--help", "--version"] if word.startswith("-") else []
        return f"there is no command {quote(word)}{nearest(word, [*commands, *flags])}"
    if isinstance(error, UnknownOptionError):
        word = error.token.keyword or error.token.value
        known = [name for argument in error.argument_collection for name in argument.names]
        options = [name for name in known if name.startswith("-")]
        hint = like(word, options) or f"; `ornstein {command} --help` lists those that it has"
        return f"{command or 'ornstein'} has no option {quote(word)}{hint}"
    if isinstance(error, UnusedCliTokensError) and error.unused_tokens:
        return f"{command} takes no further word, got {quote(error.unused_tokens[0])}"
    if isinstance(error, RepeatArgumentError):
        return f"{error.token.keyword} is given twice; keep one"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return _missing(command, error)
    if isinstance(error, CoercionError) and error.argument is not None:
        return _unreadable(error)
    text = " ".join(str(error).split())
    return (text[:1].lower() + text[1:] if text[1:2].islower() else text).rstrip(".")


def _missing(command: str, error: MissingArgumentError) -> str:
    assert error.argument is not None
    given = error.keyword or next((t.keyword for t in error.argument.tokens if t.keyword), None)
    if given:
        return f"{given} needs a value; write {given} VALUE"
    name = error.argument.name.lstrip("-").upper()
    return f"{command} needs a {name}; write ornstein {command} {name}"


def _unreadable(error: CoercionError) -> str:
    argument = error.argument
    assert argument is not None
    token = error.token or (argument.tokens[0] if argument.tokens else None)
    name = (token and token.keyword) or argument.name.lstrip("-").upper()
    word = token.value if token else ""
    for kind in (error.target_type, *get_args(error.target_type)):  # the one, or those of a union
        if get_origin(kind) is Literal:
            known = [str(choice) for choice in get_args(kind)]
            listed = ", ".join(map(repr, known[:-1])) + f" or {known[-1]!r}"
            return f"{name} must be {listed}, got {quote(word)}{like(word, known)}"
    must = "true or false" if error.target_type is bool else error.msg or "something else"
    return f"{name} must be {must}, got {quote(word)}"
