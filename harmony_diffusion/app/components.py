"""The page's own components: a drawing board, a stage for a cut-out, and a viewer with a strength slider."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harmony_diffusion.app.engine import Engine
from harmony_diffusion.errors import HarmonyError, InputError
from harmony_diffusion.json_text import parse_json

# Settings of an event that starts work: one job at a time, and no public address for it.
ONE_JOB: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "job", "concurrency_limit": 1}

_FOLDER = Path(__file__).parent


def component(name: str, elem_id: str) -> Any:
    """Return a component made of `NAME.html` and `NAME.js`; its value is a JSON text in both directions."""
    import gradio

    return gradio.HTML(
        value="",
        html_template=(_FOLDER / f"{name}.html").read_text("utf-8"),
        js_on_load=(_FOLDER / f"{name}.js").read_text("utf-8"),
        elem_id=elem_id,
        apply_default_css=False,
    )


def read_value(text: object) -> dict[str, Any]:
    """Return what a component holds.

    Raises:
        InputError: It is no JSON object.
    """
    if not text:
        return {}
    try:
        value = parse_json(str(text))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InputError("page", "sent what cannot be read", "Reload the page.")
    return value


def guarded(engine: Engine, job: Callable[..., Any]) -> Callable[..., tuple[Any, list[str]]]:
    """Return a function that runs a job in its turn, and shows errors as a sentence without paths."""

    def run(*arguments: Any) -> tuple[Any, list[str]]:
        import gradio

        try:
            return engine.run(job, *arguments)
        except HarmonyError as error:
            raise gradio.Error(engine.without_paths(str(error)), print_exception=False) from None
        except MemoryError:
            raise gradio.Error(
                "The picture is too large for the memory of this machine.", print_exception=False
            ) from None

    return run


def notes_text(notes: list[str]) -> str:
    """Return notes about files as Markdown that cannot hold markup."""
    return "\n".join(
        "- " + "".join(c if c.isalnum() or c in " .,:;()/%+'" else f"&#{ord(c)};" for c in n) for n in notes
    )
