"""The tab Compose: a cut-out is dragged to its place on a background, then harmonized."""

import json
from typing import Any

from harmony_diffusion.app.components import ONE_JOB, component, guarded, notes_text, read_value
from harmony_diffusion.app.engine import Engine
from harmony_diffusion.app.results import PICTURES, ResultView


def build(engine: Engine) -> None:
    """Add the contents of the tab."""
    import gradio

    cut = gradio.State(None)  # path of the mask of a cut-out without transparency
    bases = gradio.State([])  # paths of the masks that the board was sent
    with gradio.Row():
        with gradio.Column(min_width=300):
            with gradio.Row():
                foreground = gradio.File(
                    label="Cut-out", file_types=PICTURES, type="filepath", elem_id="cut-up", min_width=200
                )
                background = gradio.File(
                    label="Background",
                    file_types=PICTURES,
                    type="filepath",
                    elem_id="ground-up",
                    min_width=200,
                )
            with gradio.Accordion("Cut out a picture without transparency", open=False, elem_id="cut-out"):
                board = component("painter", "cut-board")
                with gradio.Row():
                    find = gradio.Button("Find object in box", elem_id="cut-find", size="sm")
                    use = gradio.Button("Use this mask", elem_id="cut-use", size="sm")
            stage = component("stage", "stage")
            with gradio.Accordion("Shadow and edges", open=False):
                shadow = gradio.Radio(["off", "auto", "set"], value="off", label="Shadow", elem_id="shadow")
                direction = "Direction: 0 right, 90 down, 180 left"
                angle = gradio.Slider(-180, 180, 90, step=1, label=direction)
                length = gradio.Slider(0, 3, 0.4, step=0.01, label="Length, in heights of the object")
                softness = gradio.Slider(0, 1, 0.4, step=0.01, label="Softness")
                density = gradio.Slider(0, 1, 0.4, step=0.01, label="Density")
                clean = gradio.Checkbox(
                    False, label="Remove the old background's colour from soft edges", elem_id="clean"
                )
        with gradio.Column(min_width=300):
            view = ResultView(engine, "composed", "Compose and harmonize")

    open_cut, open_ground = guarded(engine, _open_cut), guarded(engine, _open_ground)
    find_cut, use_cut, work = guarded(engine, _find), guarded(engine, _use), guarded(engine, _compose)

    def cut_opened(path: str | None, ground: str | None) -> tuple[Any, ...]:
        if path is None:
            removed = json.dumps({"removed": True}), json.dumps({"removed": "cutout"})
            return *removed, None, [], *view.nothing(), ""
        (drawing, staged), notes = open_cut(engine, path, ground)
        return json.dumps(drawing), json.dumps(staged), None, [], *view.nothing(), notes_text(notes)

    def ground_opened(path: str | None) -> tuple[Any, ...]:
        if path is None:
            return json.dumps({"removed": "background"}), *view.nothing(), ""
        staged, notes = open_ground(engine, path)
        return json.dumps(staged), *view.nothing(), notes_text(notes)

    def found(sent: list[str], path: str | None, drawn: str) -> tuple[Any, ...]:
        (sent, drawing, staged), notes = find_cut(engine, sent, path, drawn)
        return sent[-1], sent, json.dumps(drawing), json.dumps(staged), notes_text(notes)

    def used(sent: list[str], path: str | None, drawn: str) -> tuple[Any, ...]:
        (mask, staged), notes = use_cut(engine, sent, path, drawn)
        return mask, json.dumps(staged), notes_text(notes)

    def pressed(*given: Any) -> tuple[Any, ...]:
        (result, message), notes = work(engine, *given)
        return *view.of(result, message), notes_text(notes)

    foreground.change(
        cut_opened, [foreground, background], [board, stage, cut, bases, *view.outputs, view.notes], **ONE_JOB
    )
    background.change(ground_opened, background, [stage, *view.outputs, view.notes], **ONE_JOB)
    find.click(found, [bases, foreground, board], [cut, bases, board, stage, view.notes], **ONE_JOB)
    use.click(used, [bases, foreground, board], [cut, stage, view.notes], **ONE_JOB)
    settings = [shadow, angle, length, softness, density, clean]
    view.button.click(
        pressed,
        [foreground, background, cut, stage, view.model, view.variations, view.prompt, *settings],
        [*view.outputs, view.notes],
        **ONE_JOB,
    )


def _cut_out(engine: Engine, path: str, mask: str | None) -> dict[str, Any]:
    """Return what the stage shows of a cut-out; without transparency or mask the whole picture."""
    import numpy as np

    from harmony_diffusion.app.previews import PAINT_SIDE, png_url, small_alpha, small_mask, small_pixels
    from harmony_diffusion.images.masks import load_mask
    from harmony_diffusion.images.picture import load_picture

    picture = load_picture(path, max_pixels=engine.max_pixels)
    pixels, alpha = small_pixels(picture, PAINT_SIDE), small_alpha(picture, PAINT_SIDE)
    if mask is not None:
        drawn = small_mask(load_mask(mask, max_pixels=engine.max_pixels), PAINT_SIDE)
        alpha = drawn if alpha is None else alpha * drawn
    if alpha is None:
        alpha = np.ones(pixels.shape[:2], np.float32)
    return {"url": png_url(pixels, alpha), "size": list(picture.size[::-1])}


def _open_cut(engine: Engine, path: str, ground: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    from harmony_diffusion.app.painting import open_picture

    return open_picture(engine, path), {"cutout": _cut_out(engine, path, None), "center": ground is not None}


def _open_ground(engine: Engine, path: str) -> dict[str, Any]:
    from harmony_diffusion.app.previews import VIEW_SIDE, jpeg_url, small_alpha, small_pixels
    from harmony_diffusion.images.picture import load_picture

    picture = load_picture(path, max_pixels=engine.max_pixels)
    url = jpeg_url(small_pixels(picture, VIEW_SIDE), small_alpha(picture, VIEW_SIDE))
    return {"background": {"url": url, "size": list(picture.size[::-1])}, "center": True}


def _find(
    engine: Engine, bases: list[str], path: str | None, drawn: str
) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    from harmony_diffusion.app.painting import mask_for_board, mask_of_box

    mask = mask_of_box(engine, path, read_value(drawn))
    return *mask_for_board(engine, bases, mask), {"cutout": _cut_out(engine, str(path), mask)}


def _use(engine: Engine, bases: list[str], path: str | None, drawn: str) -> tuple[str, dict[str, Any]]:
    from harmony_diffusion.app.painting import drawn_mask

    mask = drawn_mask(engine, path, bases, read_value(drawn))
    return mask, {"cutout": _cut_out(engine, str(path), mask)}


def _compose(
    engine: Engine,
    foreground: str | None,
    background: str | None,
    mask: str | None,
    place: str,
    model: str,
    variations: bool,
    prompt: str,
    shadow: str,
    angle: float,
    length: float,
    softness: float,
    density: float,
    clean: bool,
) -> tuple[Any, dict[str, Any]]:
    from harmony_diffusion.app.actions import harmonize
    from harmony_diffusion.app.sources import PastedFiles
    from harmony_diffusion.errors import InputError
    from harmony_diffusion.images.shadow import Shadow

    if not foreground or not background:
        raise InputError("page", "a cut-out and a background are needed", "Upload both.")
    where = read_value(place)
    try:
        at, scale = (int(where["x"]), int(where["y"])), float(where["scale"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError("stage", "the cut-out has no place yet", "Drag it on the background.") from None
    chosen: Shadow | str | None = {"off": None, "auto": "auto"}.get(shadow)
    if shadow == "set":
        chosen = Shadow(angle, length, softness, density)
    files = PastedFiles(foreground, background, mask, at, scale, chosen, clean, engine.max_pixels)
    return harmonize(engine, files, model, variations, prompt)
