"""What can go wrong on the user's side: one sentence, what to do, and an exit code.

The message of each error says what was wrong, where, and what to write instead. The command
line prints it on one line and leaves with `code`; a traceback means a bug of ours (code 1).
"""

import difflib
from collections.abc import Iterable


class OrnsteinError(Exception):
    """An error that a user can act on."""

    code = 2


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


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known word most like `word`, or the list of known words."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
