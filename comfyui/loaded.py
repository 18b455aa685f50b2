"""The pipeline that was used last, kept until another one is asked for or its files change."""

from pathlib import Path
from typing import Any

_kept: dict[tuple[str, float], Any] = {}


def models_with_weights() -> list[str]:
    """List the models whose weights come with the library, without importing any of them."""
    from importlib.resources import files

    folder = files("harmony_diffusion") / "weights"
    return sorted(entry.name for entry in folder.iterdir() if (entry / "config.json").is_file())


def load(source: str) -> Any:
    """Return the pipeline of a name, folder or Hub id; load it if it is not the one that is kept."""
    key = (source, _changed(Path(source)))
    if key not in _kept:
        from harmony_diffusion import load_pipeline

        _kept.clear()
        pipe = load_pipeline(source)
        pipe.set_progress_bar_config(disable=True)
        _kept[key] = pipe
    return _kept[key]


def to_device(pipe: Any) -> Any:
    """Move a pipeline to the device that ComfyUI computes on."""
    from comfy.model_management import get_torch_device

    return pipe.to(get_torch_device())


def _changed(folder: Path) -> float:
    """Return when a folder of weights was last written; 0 for a name."""
    return max((path.stat().st_mtime for path in folder.glob("*.json")), default=0.0)
