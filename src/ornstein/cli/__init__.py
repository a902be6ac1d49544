"""The command line: it parses, calls and shows. Commands are imported when they are used."""

import contextlib
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from cyclopts import App, CycloptsError

from ornstein.errors import OrnsteinError, OutOfMemory

COMMANDS = {
    "demo": "Train a diffusion model on real handwritten digits, in about a minute.",
    "train": "Train a recipe on your data; the same command goes on where it stopped.",
    "sample": "Draw samples from a run: images, a grid, an array, or an animation.",
    "evaluate": "Score a run's samples, with references and an interval.",
    "recipes": "List the recipes.",
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
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to interrupt but the exit
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
    try:
        code = build()(overrides(arguments), exit_on_error=False, print_error=False)
    except OrnsteinError as error:
        return _fail(str(error), error.code)
    except CycloptsError as error:
        return _fail(_sentence(str(error)), 2)
    except KeyboardInterrupt:
        return _stopped(received)
    except BrokenPipeError:
        # Whoever read our output has gone; the interpreter must not complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if received:
            return _stopped(received)
        where = f" ({error.filename})" if error.filename else ""
        return _fail(f"the system refused: {error.strerror or error}{where}", 5)
    except (MemoryError, RuntimeError) as error:
        if received:
            return _stopped(received)
        if _out_of_memory(error):
            return _fail(
                "out of memory; use a smaller optim.micro_batch, a smaller network or smaller "
                "images",
                OutOfMemory.code,
            )
        return _bug()
    except Exception:
        # An interrupt while libraries are imported can surface as any error of theirs.
        return _stopped(received) if received else _bug()
    return code if isinstance(code, int) else 0


def overrides(arguments: Sequence[str]) -> list[str]:
    """Dotted options as overrides: `--a.b c` and `--a.b=c` become `a.b=c`."""
    result: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        key, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and "." in key and "/" not in key:
            if not equals:
                value = rest.pop(0) if rest else ""
            word = f"{key}={value}"
        result.append(word)
    return result


def _stopped(received: list[int]) -> int:
    number = received[0] if received else signal.SIGINT
    return _fail("interrupted" if number == signal.SIGINT else "stopped", 128 + number)


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"ornstein: {message}", file=sys.stderr)
    return code


def _sentence(message: str) -> str:
    """A parser's message on one line."""
    text = " ".join(message.split())
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return (
        isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
    )


def _bug() -> int:
    if os.environ.get("ORNSTEIN_DEBUG"):
        traceback.print_exc()
        return 1
    handle, name = tempfile.mkstemp(prefix="ornstein-error-", suffix=".log", text=True)
    with os.fdopen(handle, "w") as log:
        traceback.print_exc(file=log)
    last = traceback.format_exc().strip().splitlines()[-1]
    return _fail(f"this is a bug ({last}); please report it with {Path(name)}", 1)


def _version() -> str:
    from importlib.metadata import version

    return version("ornstein")
