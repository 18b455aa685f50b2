"""Serve the page until it is interrupted."""

import contextlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harmony_diffusion.app.engine import Engine, check_offered, offered_models
from harmony_diffusion.errors import HarmonyError, InputError, MissingDependencyError, OutputError

_LOCAL = ("127.0.0.1", "localhost")


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    model: str | None = None,
    password: str | None = None,
    max_pixels: int = 100_000_000,
    max_upload: int = 200,
    open_browser: bool = True,
    ready: Callable[[str], object] = lambda address: None,
) -> None:
    """Serve the page until SIGINT or SIGTERM, then remove its files.

    Args:
        host: Address to listen on; any but this machine's own needs a password.
        port: Port; 0 takes a free one.
        model: Name or folder of a model to offer first.
        password: Password that visitors give, with the name "harmony".
        max_pixels: Limit of height times width.
        max_upload: Limit of an uploaded file, in MB.
        open_browser: Open the page in the browser.
        ready: Called with the address once the page is up.

    Raises:
        InputError: A host without a password, or a model that is none.
        MissingDependencyError: Gradio is not installed.
        OutputError: The port is taken.
    """
    if host not in _LOCAL and not password:
        raise InputError("--host", f"{host} lets other machines in", "Give a `--password` as well.")
    check_offered(model)
    port = _free_port(host, port)
    folder = Path(tempfile.mkdtemp(prefix="h"))
    # Gradio reads these when it is imported: no messages to its makers; files in a folder of its own.
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(folder), HF_HUB_DISABLE_TELEMETRY="1"
    )
    engine = Engine(folder, offered_models(model), max_pixels)
    try:
        page = _launch(engine, host, port, password, max_upload)
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        address = f"http://{'127.0.0.1' if host in _LOCAL else host}:{port}"
        ready(address)
        threading.Thread(target=_warm, args=(engine,), daemon=True).start()
        if open_browser:
            import webbrowser

            webbrowser.open(address)
        stopped.wait()
        page.close(verbose=False)
    finally:
        engine.close()


def _launch(engine: Engine, host: str, port: int, password: str | None, max_upload: int) -> Any:
    try:
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from harmony_diffusion.app.headers import Headers
        from harmony_diffusion.app.page import CSS, build_page, theme
    except ImportError as error:
        if error.name and error.name.startswith("harmony_diffusion"):
            raise
        raise MissingDependencyError(
            f"the page needs {error.name}: install it with `pip install 'harmony-diffusion[app]'`"
        ) from error
    page = build_page(engine)
    # A name that a foreign site makes point to this machine is not answered (DNS rebinding).
    hosts = list(_LOCAL) if host in _LOCAL else ["*"]
    page.launch(
        server_name=host,
        server_port=port,
        auth=("harmony", password) if password else None,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        allowed_paths=[],
        footer_links=[],
        state_session_capacity=16,
        max_file_size=f"{max_upload}mb",
        theme=theme(),
        css=CSS,
        app_kwargs={
            "middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(Headers)]
        },
    )
    return page


def _warm(engine: Engine) -> None:
    """Import what the first job needs, and load the first model, while the visitor looks at the page."""

    def load() -> None:
        import harmony_diffusion.app.actions  # noqa: F401

        engine.model(engine.models[0])

    # An error is shown to the visitor when the model is used.
    with contextlib.suppress(HarmonyError):
        engine.run(load)


def _free_port(host: str, port: int) -> int:
    """Return the port, or a free one for 0.

    Raises:
        OutputError: It is taken.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OutputError(
                f"{host}:{port}", error.strerror or str(error), "Choose another `--port`."
            ) from None
        return int(probe.getsockname()[1])
