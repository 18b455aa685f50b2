"""The command `harmony`. Heavy imports happen inside the commands, so that `--help` answers at once."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from harmony_diffusion import __version__
from harmony_diffusion.cli import compose, convert, data, export, image, models
from harmony_diffusion.errors import HarmonyError, InputNote

EXIT_DONE, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return 0 when done, 2 on bad input, 130 when interrupted."""
    args = build_parser().parse_args(arguments)
    # Threads of PyTorch that spin while waiting take the cores from those that work (eval/bench_inference.py
    # shows it). Read when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", InputNote)
            warnings.showwarning = _show_warning
            args.run(args)
    except HarmonyError as error:
        if args.debug:
            raise
        print(f"harmony: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("harmony: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_DONE


def build_parser() -> argparse.ArgumentParser:
    """Describe every command and option."""
    parser = argparse.ArgumentParser(
        prog="harmony", description="Make a pasted foreground look photographed where it stands."
    )
    parser.add_argument("--version", action="version", version=f"harmony {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (image, compose, convert, export, models, data):
        command.add_command(commands)
    return parser


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    kind = "note" if issubclass(category, InputNote) else "warning"
    print(f"harmony: {kind}: {message}", file=sys.stderr)
