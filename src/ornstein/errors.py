"""What can go wrong on the user's side: one sentence, what to do, and an exit code.

The message of each error says what was wrong, where, and what to write instead. The command
line prints it on one line and leaves with `code`; a traceback means a bug of ours (code 1).
"""

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import NoReturn


class OrnsteinError(Exception):
    """An error that a user can act on. shared: another process of the same work tells it."""

    code = 2
    shared = False


class ConfigError(OrnsteinError, ValueError):
    """A recipe, an option or an argument that cannot work."""

    code = 2


class DataError(OrnsteinError):
    """Data that cannot be read or used."""

    code = 3


class CheckpointError(OrnsteinError):
    """No valid checkpoint, or one that does not belong to this run."""

    code = 4


class StorageError(OrnsteinError):
    """The run folder cannot be written, or is in use."""

    code = 5


class NumericsError(OrnsteinError):
    """A loss or a gradient that is not finite."""

    code = 6


class OutOfMemory(OrnsteinError):
    """The device has too little memory for this micro-batch."""

    code = 7


class ProcessLost(OrnsteinError):
    """Another process of the same training cannot be reached any more."""

    code = 8


@contextlib.contextmanager
def of_section(key: str) -> Iterator[None]:
    """Within, a ConfigError says which section of the recipe it is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def like(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known word most like `word`, if one is."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word[:99].lower(), names, n=1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known word most like `word`, or the list of known words."""
    names = sorted(known)
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return like(word, names) or (f"; known: {listed}" if names else "")


def clip(text: str, size: int = 60) -> str:
    """Text of at most `size` characters."""
    return text if len(text) <= size else text[: size - 1] + "…"


def quote(text: str) -> str:
    """What a user wrote, as a message shows it: on one line, in quotes, at most 60 characters."""
    shown = repr(str(text))
    return shown if len(shown) <= 60 else f"{shown[:58]}…{shown[0]}"


def printable(text: str) -> str:
    """Text without characters that a terminal or a table would obey, such as a stranger's name."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def fail(problem: str, *more: str) -> NoReturn:
    """Raise ConfigError with the first problem on one line, and how many more there are."""
    line = clip(printable(problem), 360)
    raise ConfigError(f"{line} (and {len(more)} more)" if more else line) from None
