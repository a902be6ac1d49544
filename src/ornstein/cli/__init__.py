"""The command line: it parses, calls and shows. Commands are imported when they are used."""

import contextlib
import errno
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, CycloptsError, Parameter

from ornstein import memory
from ornstein.cli.together import ARGUMENTS, JOINED, speaks
from ornstein.cli.words import complaint, read
from ornstein.errors import (
    ConfigError,
    OrnsteinError,
    OutOfMemory,
    StorageError,
    clip,
    printable,
    quote,
)

COMMANDS = {
    "demo": "Train a diffusion model on real handwritten digits, in about a minute.",
    "inspect": "Say what is in your data, what is wrong with it, and how to train on it.",
    "train": "Train a recipe on your data; the same command goes on where it stopped.",
    "sample": "Draw samples from a run: images, a grid, an array, or an animation.",
    "evaluate": "Score a run's samples, with references and an interval.",
    "compare": "Compare runs, or samplers and step counts of one: a table and a picture.",
    "tune": "Fit a sampler of few evaluations to a run's model; `sample --nfe` uses it.",
    "recipes": "List the recipes.",
    "interpolate": "Draw the way from one image to another through the latents of a run.",
    "reconstruct": "Show held-out samples beside an autoencoder's reconstructions, and measure.",
    "predict": "Predict the frames of held-out sequences, beside what they are, and measure.",
    "latents": "Draw what the numbers of an autoencoder's code mean, and where samples lie.",
    "encode": "Write the codes of images by a trained autoencoder: safetensors and a manifest.",
    "decode": "Write the images that a trained autoencoder makes of a folder of codes.",
    "restore": "Restore images with a run's model: fill in, enlarge, sharpen, colour, denoise.",
    "paths": "Draw paths of a diffusion, from data to noise and back by SDE and by flow.",
    "schedules": "Draw noise schedules side by side, and what they do to an image.",
    "show": "Show a recipe or a run as YAML, or how two of them differ.",
    "runs": "List the runs and how far they are.",
    "doctor": "Say what this machine has, and how to install what is missing.",
}


def build() -> App:
    """The command-line application."""
    app = App(
        name="ornstein",
        help="From autoencoders to diffusion: train, sample and measure on your own data.",
        help_format="plaintext",
        version_flags=["--version"],
        version=_version,
        default_parameter=Parameter(converter=read, negative_iterable=()),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for name, text in COMMANDS.items():
        app.command(f"ornstein.cli.{name}:{name}", name=name, help=text)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and leave with its exit code (see `ornstein.errors`)."""
    code = run(sys.argv[1:] if arguments is None else arguments)
    with contextlib.suppress(ValueError):  # not the main thread
        for number in (signal.SIGINT, signal.SIGTERM):  # nothing is left to stop but the exit
            signal.signal(number, signal.SIG_IGN)
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run a command; a user's mistake is one sentence on standard error, never a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows ?
    received: list[int] = []

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        raise KeyboardInterrupt

    with contextlib.suppress(ValueError):  # not the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
    before = sys.unraisablehook

    def lost(unraisable: "sys.UnraisableHookArgs") -> None:
        """An interrupt within a finalizer, which lets no exception out, must not be for nothing."""
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            os._exit(_stopped([*received, *unraisable.exc_value.args]))
        before(unraisable)

    sys.unraisablehook = lost
    words = ARGUMENTS.set(arguments)
    try:
        _check_place()
        code = build()(overrides(arguments), exit_on_error=False, print_error=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that has gone can still be told apart
    except OrnsteinError as error:
        # What is wrong with the words of a command, the lead finds as well.
        told = error.shared or (not JOINED.get() and not speaks())
        return error.code if told else _fail(str(error), error.code)
    except CycloptsError as error:
        return _fail(complaint(error, list(COMMANDS)), ConfigError.code)
    except KeyboardInterrupt as stopped:  # a handler of a command's own tells which signal it was
        return _stopped([*received, *stopped.args])
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # An interrupt while libraries are imported can surface as any error of theirs.
        return _stopped(received) if received else _fail(*_cause(error))
    finally:
        ARGUMENTS.reset(words)
        sys.unraisablehook = before
    return code if isinstance(code, int) else 0


def overrides(arguments: Sequence[str]) -> list[str]:
    """Dotted options as overrides: `--a.b c` and `--a.b=c` become `a.b=c`.

    Raises: ConfigError for a word that no path and no setting can hold.
    """
    for word in arguments:
        if "\0" in word:
            raise ConfigError(f"{quote(word)} holds a character NUL; leave it out")
    result: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and "." in key and "/" not in key:
            if not equals and not rest:
                raise ConfigError(f"{quote(word)} needs a value; write {clip(word, 60)}=VALUE")
            if not equals:
                value = rest.pop(0)
            word = f"{key}={value}"
        result.append(word)
    return result


def _check_place() -> None:
    """Refuse a working folder that has been removed: torch's libraries would end the process."""
    try:
        Path.cwd()
    except OSError as error:
        raise StorageError("the folder that you are in is gone; change to another one") from error


def _stopped(received: list[int]) -> int:
    number = received[0] if received else signal.SIGINT
    return _fail("interrupted" if number == signal.SIGINT else "stopped", 128 + number)


def _fail(message: str, code: int) -> int:
    if sys.stderr is not None:  # closed by who started us; print would take standard output
        with contextlib.suppress(OSError):
            print(f"ornstein: {clip(printable(message), 400)}", file=sys.stderr)
    return code


def _cause(error: Exception) -> tuple[str, int]:
    """What to say of an error that is not of our own making, and the exit code."""
    if isinstance(error, OSError):
        if error.errno == errno.ENAMETOOLONG:
            return f"{quote(str(error.filename))} is too long for a path", ConfigError.code
        where = f" ({clip(str(error.filename), 200)})" if error.filename else ""
        return f"the system refused: {error.strerror or error}{where}", StorageError.code
    if memory.ran_out(error):
        return (
            "out of memory; use a smaller optim.micro_batch, a smaller network or smaller images",
            OutOfMemory.code,
        )
    if isinstance(error, OverflowError):
        what = error.args[-1] if error.args else "overflow"
        return (
            f"a number is too large or too small to compute with ({what}); look for an extreme "
            "value among the settings",
            ConfigError.code,
        )
    return _bug(), 1


def _bug() -> str:
    if os.environ.get("ORNSTEIN_DEBUG"):
        traceback.print_exc()
    handle, name = tempfile.mkstemp(prefix="ornstein-error-", suffix=".log", text=True)
    with os.fdopen(handle, "w") as log:
        traceback.print_exc(file=log)
    last = clip(traceback.format_exc().strip().splitlines()[-1], 200)
    return f"this is a bug ({last}); please report it with {Path(name)}"


def _version() -> str:
    from importlib.metadata import version

    return version("ornstein")
