"""Save an inpainting model and trained ControlNets as one pipeline folder.

    python train/make_pipeline.py --base outputs/base/model --high outputs/high/model \
        --low outputs/low/model --half --output outputs/pipeline

`StableDiffusionHarmonizationPipeline.from_pretrained(OUTPUT)`, `harmony image … --model OUTPUT` and the
scripts in `eval` open this folder. It stores how control images are drawn, so that they match those of
the training. OUTPUT receives a model card, and beside the weights of each part the card of its training.
`--captioner` adds a BLIP, which writes the prompts that calls leave out. `--call` stores the arguments that
the networks need, such as `--call guidance_scale=1`: calls that leave them out use them.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from harmony_diffusion.diffusion.control_settings import FILE
from harmony_diffusion.errors import HarmonyError
from harmony_diffusion.images.output_folders import check_replaceable, holds_only, write_folder_atomically
from harmony_diffusion.pipelines.assembly import assemble_pipeline
from harmony_diffusion.pipelines.call_defaults import CALL_SETTINGS, parse_call
from harmony_diffusion.pipelines.saved_folders import open_in_single_precision, parts_of
from harmony_diffusion.training.model_card import diffusion_card_head, drop_local_paths

CARD = """{head}
# {title}

Stable Diffusion inpainting with ControlNets, trained with Harmony Diffusion.

```python
from harmony_diffusion import StableDiffusionHarmonizationPipeline

pipe = StableDiffusionHarmonizationPipeline.from_pretrained("PATH/TO/THIS/FOLDER")
image = pipe(composite, mask, "a cup on a table").images[0]
```

It works at {size} x {size} pixels.

| part | class | parameters |
|---|---|---:|
{parts}

Training, data and licences of the parts: {cards}.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--base", help="inpainting model, a folder or a Hub id (default: Stable Diffusion 2)")
    add("--high", type=Path, help="ControlNet for edges, a folder by train_controlnet.py")
    add("--low", type=Path, help="ControlNet for colours")
    add("--captioner", help="BLIP that writes missing prompts, a folder or a Hub id (default: none)")
    add("--call", nargs="+", metavar="NAME=VALUE", help="arguments of calls that leave them out (default: those of the base)")  # fmt: skip  # noqa: E501
    add("--half", action="store_true", help="store the weights in half precision")
    add("--overwrite", action="store_true", help="replace OUTPUT, if it holds a pipeline")
    add("--output", type=Path, required=True)
    return parser.parse_args()


def write_card(folder: Path, title: str, pipe: Any) -> None:
    """Write `FOLDER/README.md`."""
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    parts = "\n".join(
        f"| `{name}` | {type(part).__name__} | {sum(p.numel() for p in part.parameters()):,} |"
        for name, part in networks.items()
    )
    cards = ", ".join(
        f"[`{path.parent.name}`]({path.parent.name}/README.md)" for path in sorted(folder.glob("*/README.md"))
    )
    text = CARD.format(
        head=diffusion_card_head("controlnet"),
        title=title,
        size=pipe.config["working_size"],
        parts=parts,
        cards=cards or "unknown",
    )
    (folder / "README.md").write_text(text, "utf-8")


def _is_pipeline(folder: Path) -> bool:
    parts = parts_of(folder)
    return bool(parts) and holds_only(folder, ["model_index.json", "README.md", "pipeline.py", *parts])


def save(args: argparse.Namespace) -> None:
    """Write the folder.

    Raises:
        OutputError: It exists and `--overwrite` is not given, or it holds something else than a pipeline.
        CheckpointError: A part is missing, or does not fit the others.
    """
    check_replaceable(args.output, "a pipeline", _is_pipeline, overwrite=args.overwrite)
    dtype = torch.float16 if args.half else None
    pipe = assemble_pipeline(
        args.base,
        high=args.high,
        low=args.low,
        dtype=dtype,
        captioner=args.captioner,
        call_defaults=None if args.call is None else parse_call(args.call, CALL_SETTINGS),
    )

    def write(folder: Path) -> None:
        pipe.save_pretrained(folder)
        drop_local_paths(folder)
        open_in_single_precision(folder)
        origins = {"unet": args.base, "controlnet_high": args.high, "controlnet_low": args.low}
        for name, origin in origins.items():
            for file in ("README.md", FILE):
                if origin and (path := Path(origin, file)).is_file():
                    shutil.copyfile(path, folder / name / file)
        write_card(folder, args.output.resolve().name, pipe)

    write_folder_atomically(args.output, write, keep_others=True)
    size = sum(path.stat().st_size for path in args.output.rglob("*") if path.is_file())
    print(f"{args.output}: {size / 1e6:.1f} MB")


def main() -> None:
    args = parse_args()
    try:
        save(args)
    except HarmonyError as error:
        sys.exit(f"make_pipeline: {error}")


if __name__ == "__main__":
    main()
