"""The right half of a tab: model, result, and files to take home."""

import json
from typing import Any

from harmony_diffusion.app.components import ONE_JOB, component, guarded, notes_text, read_value
from harmony_diffusion.app.engine import Engine, is_diffusion

PICTURES = [".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".gif"]


class ResultView:
    """Controls and viewer of one result.

    Args:
        engine: Models and files.
        name: Id of the viewer on the page.
        action: Text of the button that starts the work.
    """

    def __init__(self, engine: Engine, name: str, action: str) -> None:
        import gradio

        self.result = gradio.State(None)
        shown = [
            ("color_grid (default)" if model == "color_grid" else model, model) for model in engine.models
        ]
        with gradio.Row():
            self.model = gradio.Dropdown(
                shown, value=engine.models[0], label="Model", elem_id=f"{name}-model", min_width=220
            )
            self.variations = gradio.Checkbox(
                False, label="Variations", elem_id=f"{name}-variations", min_width=140
            )
        self.prompt = gradio.Textbox(
            label="Prompt: what the whole picture shows",
            visible=any(is_diffusion(model) for model in engine.models),
            elem_id=f"{name}-prompt",
        )
        self.button = gradio.Button(action, variant="primary", elem_id=f"{name}-run")
        self.viewer = component("viewer", name)
        self.download = gradio.Button("Download at full resolution", elem_id=f"{name}-download")
        self.files = gradio.File(
            label="Files", file_count="multiple", interactive=False, visible=False, elem_id=f"{name}-files"
        )
        self.notes = gradio.Markdown(elem_id=f"{name}-notes")
        self.outputs = [self.result, self.viewer, self.files]
        write = guarded(engine, _write)
        render = guarded(engine, _render)

        def written(result: Any, value: str) -> tuple[Any, str]:
            files, notes = write(engine, result, value)
            return gradio.File(files, visible=True), notes_text(notes)

        def rendered(result: Any, value: str) -> tuple[Any, str]:
            (result, message), _ = render(engine, result, value)
            return result, message

        press_first = (
            f"() => setTimeout(() => document.querySelector('#{name}-files a[download]')?.click(), 300)"
        )
        self.download.click(written, [self.result, self.viewer], [self.files, self.notes], **ONE_JOB).success(
            None, None, None, js=press_first
        )
        self.viewer.filters(
            rendered,
            [self.result, self.viewer],
            [self.result, self.viewer],
            show_progress="hidden",
            **ONE_JOB,
        )

    def nothing(self) -> tuple[Any, str, Any]:
        """Return the values of `outputs` when the input has changed: no result, an empty viewer, no files."""
        return self.of(None, {"cleared": True})

    def of(self, result: Any, message: dict[str, Any]) -> tuple[Any, str, Any]:
        """Return the values of `outputs` for a new result and what the viewer shows of it: no files yet."""
        import gradio

        return result, json.dumps(message), gradio.File(None, visible=False)


def _write(engine: Engine, result: Any, value: str) -> list[str]:
    from harmony_diffusion.app.actions import write_result
    from harmony_diffusion.errors import InputError
    from harmony_diffusion.numbers import check_integer

    if result is None:
        raise InputError("result", "there is none for this input yet", "Press the button above first.")
    chosen = read_value(value)
    change = check_integer("change", chosen.get("change", 0))
    return write_result(engine, result, change, chosen.get("strength", 1.0))


def _render(engine: Engine, result: Any, value: str) -> tuple[Any, str]:
    from harmony_diffusion.app.actions import with_arguments
    from harmony_diffusion.errors import InputError

    if result is None:
        raise InputError("result", "there is none for this input yet", "Press the button above first.")
    result, message = with_arguments(result, read_value(value).get("filters", []))
    return result, json.dumps(message)
