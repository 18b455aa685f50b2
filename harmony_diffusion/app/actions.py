"""What the buttons of the page do: harmonize, show, and write at full resolution."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harmony_diffusion.app.changes import Change, predict_change, render_change
from harmony_diffusion.app.engine import VARIATION, Engine
from harmony_diffusion.app.generated import Generated, generate
from harmony_diffusion.app.previews import VIEW_SIDE, jpeg_url, small_alpha, small_mask, small_pixels
from harmony_diffusion.app.sources import CompositeFiles, PastedFiles, Scene
from harmony_diffusion.errors import InputError
from harmony_diffusion.images.compose import mask_encoder
from harmony_diffusion.images.output_files import write_together
from harmony_diffusion.images.picture import Picture
from harmony_diffusion.models.contract import HarmonyModel
from harmony_diffusion.numbers import check_number

_WEAKER = 0.6  # strength of the variations


@dataclass(eq=False)
class Result:
    """A harmonized picture of one session: files and filters, no pixels.

    Attributes:
        files: The input.
        changes: What each model changes: that of the first result, then those of the variations.
    """

    files: CompositeFiles | PastedFiles
    changes: list[Change | Generated] = field(default_factory=list)


def harmonize(
    engine: Engine,
    files: CompositeFiles | PastedFiles,
    model: str,
    variations: bool = False,
    prompt: str = "",
) -> tuple[Result, dict[str, Any]]:
    """Run the model, and return the result with what the viewer shows of it.

    Args:
        engine: Models and files.
        files: The input.
        model: A model that is offered.
        variations: Also a weaker result and one of another method, or of other seeds.
        prompt: Text for models that take one.

    Raises:
        InputError: The files cannot be used.
    """
    scene, name = files.load(), Path(model).name
    result, choices = Result(files), [{"label": name, "change": 0, "strength": 1.0}]
    result.changes.append(_change(engine, scene, model, prompt))
    generates = isinstance(result.changes[0], Generated)
    if variations and generates:
        for seed in (1, 2):
            choices.append({"label": f"{name}, seed {seed}", "change": seed, "strength": 1.0})
            result.changes.append(_change(engine, scene, model, prompt, seed))
    elif variations:
        choices.append({"label": f"{name}, weaker", "change": 0, "strength": _WEAKER})
        if model != VARIATION:
            choices.append({"label": f"{VARIATION}, weaker", "change": 1, "strength": _WEAKER})
            result.changes.append(_change(engine, scene, VARIATION))
    before, mask = _small(scene)
    afters = [_view(_rendered(change, before, mask, 1.0)) for change in result.changes]
    filters = _arguments(result.changes[0])
    return result, {"before": _view(before), "afters": afters, "choices": choices, "filters": filters}


def with_arguments(result: Result, arguments: list[float]) -> tuple[Result, dict[str, Any]]:
    """Replace the filter arguments of the first change, and return what the viewer shows of it.

    Raises:
        InputError: The model has no such arguments.
    """
    first = result.changes[0]
    if (
        not isinstance(arguments, list)
        or isinstance(first, Generated)
        or first.filters is None
        or len(arguments) != len(first.model.filter_names)
    ):
        raise InputError("filters", "do not belong to this model", "Press Harmonize again.")
    values = [check_number("filter", value, -1, 1) for value in arguments]
    filters = torch.tensor([values], dtype=first.filters.dtype, device=first.filters.device)
    changed = Change(first.model, first.thumbnail, filters, None, first.in_window, first.restricted)
    result = Result(result.files, [changed, *result.changes[1:]])
    before, mask = _small(result.files.load())
    return result, {"after": _view(render_change(changed, before, mask))}


def write_result(engine: Engine, result: Result, change: int, strength: float) -> list[str]:
    """Write the result at full resolution, its mask, and the layers of a pasted picture; return their paths.

    The result is what `harmony image` and `harmony compose` write.

    Raises:
        InputError: `strength` lies outside [0, 1].
    """
    strength = check_number("strength", strength, 0, 1)
    chosen = result.changes[change if 0 <= change < len(result.changes) else 0]
    scene = result.files.load()
    harmonized = _rendered(chosen, scene.composite, scene.mask, strength)
    folder, name = engine.new_folder(), Path(result.files.result_name())
    path = folder / name
    files: list[tuple[Path, Any]] = [(path, harmonized.encoder(path))]
    if scene.layers is not None:
        pasted = folder / f"{name.stem}_composite{name.suffix}"
        files.append((pasted, scene.composite.encoder(pasted)))
        if scene.layers.shadow is not None:
            files.append((folder / f"{name.stem}_shadow.png", mask_encoder(scene.layers.shadow)))
    files.append((folder / f"{name.stem}_mask.png", mask_encoder(scene.mask)))
    write_together(files)
    return [str(path) for path, _ in files]


def harmonize_files(engine: Engine, composite: str, mask: str, model: str, strength: float) -> str:
    """Harmonize files for a program, and return the path of the result.

    Raises:
        InputError: Something that cannot be used.
    """
    files = CompositeFiles(composite, mask, max_pixels=engine.max_pixels)
    scene = files.load()
    strength = check_number("strength", strength, 0, 1)
    change = _change(engine, scene, model)
    path = engine.new_folder() / files.result_name()
    _rendered(change, scene.composite, scene.mask, strength).save(path)
    return str(path)


def _change(engine: Engine, scene: Scene, name: str, prompt: str = "", seed: int = 0) -> Change | Generated:
    model = engine.model(name)
    if isinstance(model, HarmonyModel):
        return predict_change(model, scene.composite, scene.mask, scene.reference)
    return generate(engine, model, scene, prompt, seed)


def _rendered(change: Change | Generated, picture: Picture, mask: np.ndarray, strength: float) -> Picture:
    if isinstance(change, Generated):
        return change.render(picture, strength)
    return render_change(change, picture, mask, strength)


def _small(scene: Scene) -> tuple[Picture, np.ndarray]:
    """Return a copy of composite and mask at the size of the viewer."""
    alpha = small_alpha(scene.composite, VIEW_SIDE)
    picture = Picture(
        small_pixels(scene.composite, VIEW_SIDE),
        None if alpha is None else np.rint(alpha * 255).astype(np.uint8),
    )
    return picture, small_mask(scene.mask, VIEW_SIDE)


def _view(picture: Picture) -> str:
    return jpeg_url(picture.pixels, picture.visible)


def _arguments(change: Change | Generated) -> list[dict[str, Any]]:
    """Return names and values of the filters that can be set by hand."""
    if isinstance(change, Generated):
        return []
    names = change.model.filter_names
    if change.filters is None or not names or change.filters.ndim != 2:
        return []
    values = change.filters[0].clamp(-1, 1).tolist()
    return [{"name": name, "value": round(value, 4)} for name, value in zip(names, values, strict=True)]
