"""The page: tabs, and an endpoint for programs."""

from pathlib import Path
from typing import Any

from harmony_diffusion.app import compose_tab, harmonize_tab, video_tab
from harmony_diffusion.app.components import guarded
from harmony_diffusion.app.engine import Engine
from harmony_diffusion.app.results import PICTURES

MOST_WAITING = 8
CSS = (Path(__file__).parent / "page.css").read_text("utf-8")


def build_page(engine: Engine) -> Any:
    """Return the page, not yet served."""
    import gradio

    with gradio.Blocks(title="Harmony Diffusion", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown("# Harmony Diffusion\nMake a pasted object look photographed where it stands.")
        with gradio.Tab("Harmonize", id="harmonize"):
            harmonize_tab.build(engine)
        with gradio.Tab("Compose", id="compose"):
            compose_tab.build(engine)
        if video_tab.is_available():
            with gradio.Tab("Video", id="video"):
                video_tab.build(engine)
        _add_endpoint(engine)
    page.queue(default_concurrency_limit=1, max_size=MOST_WAITING)
    return page


def theme() -> Any:
    """Return colours and fonts; the fonts are those of the system, so that none is fetched."""
    import gradio

    fonts = ["system-ui", "sans-serif"]
    base = gradio.themes.Default(primary_hue="blue", font=fonts, font_mono=["ui-monospace", "monospace"])
    # White on these has a contrast of 6.7 to 1; on Gradio's own blue it has 3.7.
    strong = dict.fromkeys(
        ("button_primary_background_fill", "button_primary_background_fill_dark"), "#1d4ed8"
    )
    return base.set(**strong, button_primary_text_color="#ffffff", button_primary_text_color_dark="#ffffff")


def _add_endpoint(engine: Engine) -> None:
    """Add `harmonize` for `gradio_client`: composite, mask, model, strength -> file."""
    import gradio

    work = guarded(engine, _harmonize_files)

    def harmonize(composite: str, mask: str, model: str, strength: float) -> str:
        """Harmonize a composite; the result has its size, format and depth.

        Args:
            composite: File of the picture with the pasted foreground.
            mask: File of a mask of the same size, white on the foreground.
            model: One of the models of the page.
            strength: 0 keeps the input, 1 is full.
        """
        path, _ = work(engine, composite, mask, model or engine.models[0], strength)
        return path

    with gradio.Column(visible=False):
        composite = gradio.File(label="Composite", file_types=PICTURES, type="filepath")
        mask = gradio.File(label="Mask", file_types=PICTURES, type="filepath")
        model = gradio.Textbox(engine.models[0], label="Model")
        strength = gradio.Number(1.0, label="Strength")
        harmonized = gradio.File(label="Harmonized")
        gradio.Button("Harmonize").click(
            harmonize,
            [composite, mask, model, strength],
            harmonized,
            api_name="harmonize",
            concurrency_id="job",
            concurrency_limit=1,
        )


def _harmonize_files(engine: Engine, composite: str, mask: str, model: str, strength: float) -> str:
    from harmony_diffusion.app.actions import harmonize_files
    from harmony_diffusion.errors import InputError

    if not composite or not mask:
        raise InputError("harmonize", "a composite and a mask are needed", "Give both files.")
    return harmonize_files(engine, composite, mask, model, strength)
