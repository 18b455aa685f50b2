"""`harmony app`: the page in the browser."""

import argparse
from typing import Any

from harmony_diffusion.cli.number_types import integer
from harmony_diffusion.cli.terminal import show


def add_command(commands: Any) -> None:
    """Describe `harmony app`."""
    app = commands.add_parser(
        "app",
        help="open the page in the browser",
        description="Serve a page on this machine: paint a mask or place a cut-out, harmonize, download.",
    )
    app.add_argument(
        "--port", type=integer(0, 65535), default=7860, help="0 takes a free one (default: 7860)"
    )
    app.add_argument("--no-browser", action="store_true", help="do not open a browser")
    app.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; other machines' need --password"
    )
    app.add_argument("--password", help='password that visitors give, with the name "harmony"')
    app.add_argument(
        "--model", help="a name of `harmony models` with weights, or a saved folder, to offer first"
    )
    app.add_argument("--max-pixels", type=integer(1), default=100_000_000, help="refuse larger pictures")
    app.add_argument(
        "--max-upload", type=integer(1), default=200, metavar="MB", help="refuse larger files (default: 200)"
    )
    app.add_argument("--debug", action="store_true", help="show the traceback of an error")
    app.set_defaults(run=run_app)


def run_app(args: argparse.Namespace) -> None:
    """Serve the page until it is interrupted."""
    from harmony_diffusion.app.server import serve

    serve(
        host=args.host,
        port=args.port,
        model=args.model,
        password=args.password,
        max_pixels=args.max_pixels,
        max_upload=args.max_upload,
        open_browser=not args.no_browser,
        ready=lambda address: show(f"Harmony Diffusion: {address} (Ctrl-C ends it)"),
    )
