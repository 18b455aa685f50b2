"""The command `harmony`. Heavy imports happen inside the commands, so that `--help` answers at once."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from harmony_diffusion import __version__
from harmony_diffusion.cli import app, batch, compose, convert, data, export, hub, image, models, video
from harmony_diffusion.cli.number_types import join_negative
from harmony_diffusion.cli.terminal import close_quietly, say
from harmony_diffusion.errors import HarmonyError, InputNote
from harmony_diffusion.process import keep_freed_memory, wait_without_spinning

# Larger pictures than 10 megapixels would leave holes of their size in the memory that is kept.
_LARGEST_KEPT = 32 << 20
EXIT_DONE, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 when done, 2 on bad input, 130 when interrupted (`batch` has more)."""
    try:
        given = join_negative(sys.argv[1:] if arguments is None else arguments)
        return _run(build_parser().parse_args(given))
    finally:
        close_quietly()


def _run(args: argparse.Namespace) -> int:
    wait_without_spinning()
    keep_freed_memory(_LARGEST_KEPT)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", InputNote)
            warnings.showwarning = _show_warning
            return args.run(args) or EXIT_DONE
    except HarmonyError as error:
        if args.debug:
            raise
        say(f"harmony: {error}")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        say("harmony: interrupted")
        return EXIT_INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Parser of complete options, that suggests one of the given command for an unknown one."""

    _words: Sequence[str] = ()

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)  # a typing error must not become another option

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """Parse, and remember the words for the suggestion."""
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the message, with a suggestion where there is one, and exit."""
        if message.startswith(("unrecognized arguments: ", "the following arguments are required: ")):
            command = self._command()
            for word in (word.split("=")[0] for word in self._words if word.startswith("--")):
                close = get_close_matches(word, command._option_string_actions, 1, 0.8)
                if close and close[0] != word:
                    message += f" (did you mean {close[0]}?)"
                elif close and word in message:
                    message += f" (options of {command.prog} follow it, before any --)"
        super().error(message)

    def _command(self) -> argparse.ArgumentParser:
        """Return the parser of the command that was called."""
        command: argparse.ArgumentParser = self
        for word in self._words:
            commands = command._subparsers._group_actions[0].choices if command._subparsers else None
            command = commands.get(word, command) if isinstance(commands, dict) else command
        return command


def build_parser() -> argparse.ArgumentParser:
    """Describe every command and option."""
    parser = _Parser(
        prog="harmony", description="Make a pasted foreground look photographed where it stands."
    )
    parser.add_argument("--version", action="version", version=f"harmony {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (image, compose, video, batch, app, convert, export, hub, models, data):
        command.add_command(commands)
    return parser


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    kind = "note" if issubclass(category, InputNote) else "warning"
    say(f"harmony: {kind}: {message}")
