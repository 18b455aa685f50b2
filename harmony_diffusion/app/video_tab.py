"""The tab Video: a clip and its mask; only where the extra `video` is installed."""

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from harmony_diffusion.app.components import ONE_JOB, guarded, notes_text
from harmony_diffusion.app.engine import Engine

LONGEST = 60.0  # seconds of a clip
_CLIPS = [".mp4", ".mov", ".mkv", ".webm", ".avi"]
_MASKS = [*_CLIPS, ".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"]
_PIPELINE = "harmony_diffusion.pipelines.video"


def is_available() -> bool:
    """Return True if clips can be read."""
    return all(importlib.util.find_spec(name) is not None for name in ("av", _PIPELINE))


def build(engine: Engine) -> None:
    """Add the contents of the tab."""
    import gradio

    with gradio.Row():
        with gradio.Column(min_width=300):
            clip = gradio.File(label="Clip", file_types=_CLIPS, type="filepath", elem_id="clip-up")
            mask = gradio.File(
                label="Mask: a clip, or one picture for all frames",
                file_types=_MASKS,
                type="filepath",
                elem_id="clip-mask-up",
            )
            gradio.Markdown(f"At most {LONGEST:.0f} seconds. Sound and timestamps are kept.")
        with gradio.Column(min_width=300):
            model = gradio.Dropdown(
                engine.models, value=engine.models[0], label="Model", elem_id="clip-model"
            )
            strength = gradio.Slider(0, 1, 1, step=0.01, label="Strength", elem_id="clip-strength")
            smoothing = gradio.Radio(
                [("over time", "two-pass"), ("one correction a shot", "shot"), ("off", "none")],
                value="two-pass",
                label="Smoothing",
                elem_id="clip-smoothing",
            )
            run = gradio.Button("Harmonize the clip", variant="primary", elem_id="clip-run")
            harmonized = gradio.File(
                label="Harmonized", interactive=False, visible=False, elem_id="clip-files"
            )
            notes = gradio.Markdown(elem_id="clip-notes")
    work = guarded(engine, _harmonize)

    def pressed(*given: Any) -> tuple[Any, str]:
        (path, summary), said = work(engine, *given)
        return gradio.File(path, visible=True), f"{summary}\n\n{notes_text(said)}"

    def cleared() -> tuple[Any, str]:
        return gradio.File(None, visible=False), ""

    for given in (clip, mask):
        given.change(cleared, None, [harmonized, notes], **ONE_JOB)
    run.click(pressed, [clip, mask, model, strength, smoothing], [harmonized, notes], **ONE_JOB)


def _harmonize(
    engine: Engine, clip: str | None, mask: str | None, model: str, strength: float, smoothing: str
) -> tuple[str, str]:
    from harmony_diffusion.errors import InputError

    if not clip or not mask:
        raise InputError("page", "a clip and a mask are needed", "Upload both.")
    module = importlib.import_module(_PIPELINE)
    source = Path(clip)
    # WebM holds none of the pictures that are written by default.
    suffix = ".mkv" if source.suffix.lower() == ".webm" else source.suffix
    output = engine.new_folder() / f"{source.stem}_harmonized{suffix}"
    duration = importlib.import_module("harmony_diffusion.video.clips").open_clip(clip).duration
    if duration > LONGEST:
        raise InputError(
            source.name, f"is {duration:.0f} seconds long, more than {LONGEST:.0f}", "Use `harmony video`."
        )
    pipe = module.VideoHarmonizationPipeline(engine.model(model))
    pipe.set_progress_bar_config(disable=True)
    result = pipe(
        clip, mask, output=output, strength=strength, smoothing=smoothing, max_pixels=engine.max_pixels
    )
    flicker = f"flicker {result.flicker_before:.1f} -> {result.flicker:.1f}"
    return str(output), f"{result.frames} frames, {len(result.shots)} shots, {flicker}"
