"""Model cards of trained weights: model, training, data, scores."""

import json
import shlex
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from harmony_diffusion.models import model_class

# The Hub requires a name for licences that it does not list. `save_for_hub` asks for the true one.
UNNAMED_LICENSE = "license_name: that-of-the-training-data"


def write_model_card(
    folder: Path,
    name: str,
    *,
    command: str,
    training: Mapping[str, object],
    data: Mapping[str, object],
    results: Mapping[str, float],
    license: str = "other",
) -> Path:
    """Write `FOLDER/README.md` from the template of the package.

    Args:
        folder: Folder of the weights.
        name: Registry name.
        command: Command that trained the weights.
        training: Facts on the training, by name.
        data: Facts on the data, by name.
        results: Scores on the validation data; empty without validation.
        license: License identifier of the Hub; it depends on the licenses of the data.

    Returns:
        The file.
    """
    origin = model_class(name).origin  # type: ignore[attr-defined]
    table = "| metric | value |\n|---|---:|\n" + "\n".join(f"| {k} | {v:.2f} |" for k, v in results.items())
    text = Template(
        (files("harmony_diffusion") / "training" / "model_card.md").read_text("utf-8")
    ).substitute(
        name=name,
        class_name=model_class(name).__name__,
        paper=f"[{origin.title}]({origin.paper})" if origin.paper else origin.title,
        license=f"{license}\n{UNNAMED_LICENSE}" if license == "other" else license,
        training=_bullets(training),
        data=_bullets(data),
        command=command,
        results=table if results else "not run: no validation data were given.",
    )
    path = folder / "README.md"
    path.write_text(text, "utf-8")
    return path


def diffusion_card_head(*tags: str) -> str:
    """Return the front matter of a card of the diffusion method, for the Hub."""
    lines = [
        "---",
        "library_name: diffusers",
        "pipeline_tag: image-to-image",
        "license: other",
        UNNAMED_LICENSE,
        "tags:",
    ]
    lines += [f"- {tag}" for tag in ("image-harmonization", "stable-diffusion", *tags)]
    return "\n".join([*lines, "---", ""])


def name_in_card(name: str | Path) -> str:
    """Return the name of a file or folder for a card, without local paths.

    An absolute path is cut to its last part, or to its last two parts if the last one is `model`.
    """
    path = Path(name)
    if not path.is_absolute():
        return str(name)
    return f"{path.parent.name}/model" if path.name == "model" else path.name


def launch_command() -> str:
    """Return the command of the running script, without local paths."""
    given = [name_in_card(word) for word in sys.argv[1:]]
    return shlex.join(["accelerate", "launch", f"train/{Path(sys.argv[0]).name}", *given])


def drop_local_paths(folder: Path) -> None:
    """Remove the local path of the original weights from every configuration in a folder."""
    for path in (*folder.rglob("*config.json"), *folder.rglob("model_index.json")):
        entries = json.loads(path.read_text("utf-8"))
        if entries.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(entries, indent=2, sort_keys=True) + "\n", "utf-8")


def _bullets(facts: Mapping[str, object]) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())
