"""Lines for the terminal: never a traceback where it cannot print a character, or where nobody listens."""

import os
import re
import sys
from typing import Any

from harmony_diffusion.errors import OutputError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def show(text: str) -> None:
    """Print a result to the standard output.

    Raises:
        OutputError: It cannot be written, as on a full disk; a reader that went away is no error.
    """
    _print(sys.stdout, text)


def say(text: str) -> None:
    """Print a message to the standard error, on one line, without characters that control a terminal."""
    text = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", " ".join(text.splitlines()))
    try:
        _print(sys.stderr, text)
    except OutputError:  # nobody can be told, and the work is not to end for that
        pass


def is_watched() -> bool:
    """Return True if the standard error is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


def draw(text: str) -> None:
    """Write to the standard error as it is, such as a line of progress; what goes wrong is no error."""
    try:
        _print(sys.stderr, text, end="")
    except OutputError:
        pass


def close_quietly() -> None:
    """Flush both streams at the end, where Python would print what goes wrong."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            _discard(stream)


def _print(stream: Any, text: str, end: str = "\n") -> None:
    if stream is None or getattr(stream, "closed", False):
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, end=end, file=stream, flush=True)
    except BrokenPipeError:
        _discard(stream)
    except OSError as error:
        _discard(stream)
        raise OutputError("standard output", error.strerror or str(error), "Redirect it elsewhere.") from None


def _discard(stream: Any) -> None:
    """Send what is still in the buffer, and what follows, nowhere."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError, AttributeError):
        pass
