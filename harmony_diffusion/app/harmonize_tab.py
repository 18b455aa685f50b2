"""The tab Harmonize: a finished composite and its mask."""

import json
from typing import Any

from harmony_diffusion.app.components import ONE_JOB, component, guarded, notes_text, read_value
from harmony_diffusion.app.engine import Engine
from harmony_diffusion.app.results import PICTURES, ResultView


def build(engine: Engine) -> None:
    """Add the contents of the tab."""
    import gradio

    bases = gradio.State([])  # paths of the masks at full resolution that the board was sent
    with gradio.Row():
        with gradio.Column(min_width=300):
            composite = gradio.File(label="Composite", file_types=PICTURES, type="filepath", elem_id="up")
            board = component("painter", "board")
            with gradio.Row():
                find = gradio.Button("Find object in box", elem_id="find", size="sm")
                alpha = gradio.Button("Use transparency", elem_id="alpha", size="sm")
            with gradio.Accordion("Mask from a file", open=False):
                mask_file = gradio.File(
                    label="Mask: white on the object", file_types=PICTURES, type="filepath", elem_id="mask-up"
                )
        with gradio.Column(min_width=300):
            view = ResultView(engine, "viewer", "Harmonize")

    open_job = guarded(engine, _open)
    mask_job = {name: guarded(engine, job) for name, job in _mask_jobs().items()}
    harmonize_job = guarded(engine, _harmonize)

    def opened(path: str | None) -> tuple[Any, ...]:
        if path is None:
            return json.dumps({"removed": True}), [], None, *view.nothing(), ""
        message, notes = open_job(engine, path)
        return json.dumps(message), [], None, *view.nothing(), notes_text(notes)

    def masked(kind: str, *inputs: Any) -> tuple[list[str], str, str]:
        (sent, message), notes = mask_job[kind](engine, *inputs)
        return sent, json.dumps(message), notes_text(notes)

    def pressed(
        path: str | None, drawn: str, sent: list[str], model: str, variations: bool, prompt: str
    ) -> tuple[Any, ...]:
        (result, message), notes = harmonize_job(engine, path, drawn, sent, model, variations, prompt)
        return *view.of(result, message), notes_text(notes)

    composite.change(opened, composite, [board, bases, mask_file, *view.outputs, view.notes], **ONE_JOB)
    for kind, event, inputs in (
        ("file", mask_file.upload, [bases, composite, mask_file]),
        ("alpha", alpha.click, [bases, composite]),
        ("box", find.click, [bases, composite, board]),
    ):
        event(lambda *given, kind=kind: masked(kind, *given), inputs, [bases, board, view.notes], **ONE_JOB)
    view.button.click(
        pressed,
        [composite, board, bases, view.model, view.variations, view.prompt],
        [*view.outputs, view.notes],
        **ONE_JOB,
    )


def _open(engine: Engine, path: str) -> dict[str, Any]:
    from harmony_diffusion.app.painting import open_picture

    return open_picture(engine, path)


def _mask_jobs() -> dict[str, Any]:
    def of_file(engine: Engine, bases: list[str], picture: str | None, path: str) -> Any:
        from harmony_diffusion.app.painting import mask_for_board, mask_of_file

        return mask_for_board(engine, bases, mask_of_file(engine, path, picture))

    def of_alpha(engine: Engine, bases: list[str], picture: str | None) -> Any:
        from harmony_diffusion.app.painting import mask_for_board, mask_of_alpha

        return mask_for_board(engine, bases, mask_of_alpha(engine, picture))

    def of_box(engine: Engine, bases: list[str], picture: str | None, drawn: str) -> Any:
        from harmony_diffusion.app.painting import mask_for_board, mask_of_box

        return mask_for_board(engine, bases, mask_of_box(engine, picture, read_value(drawn)))

    return {"file": of_file, "alpha": of_alpha, "box": of_box}


def _harmonize(
    engine: Engine,
    picture: str | None,
    drawn: str,
    bases: list[str],
    model: str,
    variations: bool,
    prompt: str,
) -> tuple[Any, dict[str, Any]]:
    from harmony_diffusion.app.actions import harmonize
    from harmony_diffusion.app.painting import drawn_mask, drawn_reference
    from harmony_diffusion.app.sources import CompositeFiles

    value = read_value(drawn)
    mask = drawn_mask(engine, picture, bases, value)
    reference = drawn_reference(engine, picture, value)
    files = CompositeFiles(str(picture), mask, reference, engine.max_pixels)
    return harmonize(engine, files, model, variations, prompt)
