"""Export every model of the registry and write a table of its differences from PyTorch.

    python eval/make_export_table.py -o docs/export_parity.md --json docs/export_parity.json

The script uses the included weights of a model, or else random weights (seed 0), because parity depends on
the operators. It lists models that cannot be exported with the reason. It takes about a minute per model.
`--json` saves the figures; the same command with the same file resumes. `--known` writes the table from these
figures only.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from harmony_diffusion.errors import HarmonyError
from harmony_diffusion.export.folder import read_description
from harmony_diffusion.export.onnx import export_onnx, measure_parity
from harmony_diffusion.export.runtime import OnnxModel
from harmony_diffusion.images.output_files import write_atomically
from harmony_diffusion.models import MODELS, create_model, has_weights, load_model

HEAD = """# Exported models

Made by `python eval/make_export_table.py -o docs/export_parity.md --json docs/export_parity.json`; do not
edit. Each network of the registry is exported (`harmony export`), run by onnxruntime on eight inputs (random,
a scene, empty, full and soft masks, one pixel, constant colour, extreme values) and compared with PyTorch in
float32. An export is kept if the harmonized picture differs by at most 1e-4 (values in [0, 1]) and the
background not at all. Weights are stored as float16; where that differs by more, as float32
(`--fp32-storage`). The last columns are OpenVINO on the same file, where it is installed, and the size of the
files.

| model | weights | stored as | largest difference | of the filters | OpenVINO | MB |
|---|---|---|---:|---:|---:|---:|
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="Markdown file to write")
    parser.add_argument("--json", type=Path, help="file for the figures, written after each model")
    parser.add_argument(
        "--known", action="store_true", help="export nothing; list models missing in --json as not run"
    )
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names (default: all)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    rows = json.loads(args.json.read_text()) if args.json and args.json.is_file() else {}
    for name in args.models:
        if name not in rows and not args.known:
            rows[name] = try_export(name)
            print(name, rows[name], flush=True)
            if args.json:
                write_atomically(args.json, json.dumps(rows, indent=1).encode(), overwrite=True)
    text = HEAD + "".join(table_row(name, rows.get(name)) for name in args.models)
    write_atomically(args.output, text.encode(), overwrite=True)


def try_export(name: str) -> dict[str, Any]:
    """Export one model to a temporary folder and return the figures, or the reason of a failure."""
    start = time.process_time()
    model = load_model(name) if has_weights(name) else with_random_weights(name)
    random = "random" if model.num_parameters() else "none"
    row: dict[str, Any] = {"weights": "shipped" if has_weights(name) else random}
    with tempfile.TemporaryDirectory() as folder:
        for row["storage"] in ("float16", "float32"):
            try:
                half = row["storage"] == "float16"
                exported = export_onnx(model, Path(folder) / "out", half_storage=half)
                break
            except HarmonyError as error:
                row["refused"] = str(error)
                if "at most 1e-04" not in row["refused"]:
                    return row
        else:
            return row
        row.pop("refused", None)
        row["parity"] = read_description(exported).fields["parity"]
        row["bytes"] = sum(path.stat().st_size for path in exported.iterdir())
        try:
            row["openvino"] = measure_parity(model, OnnxModel(exported, runtime="openvino")).difference
        except HarmonyError as error:
            row["openvino"] = str(error).replace(f"{folder}/out/", "")
    return row | {"seconds": round(time.process_time() - start, 1)}


def with_random_weights(name: str) -> Any:
    """Build a model with random weights. Weights that are initialised to zero become random too."""
    torch.manual_seed(0)
    model: Any = create_model(name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.02)
    return model


def table_row(name: str, row: dict[str, Any] | None) -> str:
    if row is None:
        return f"| `{name}` | | not run | | | | |\n"
    if "refused" in row:
        return f"| `{name}` | {row['weights']} | refused: {row['refused']} | | | | |\n"
    parity, openvino = row["parity"], row["openvino"]
    of_filters = "" if parity["of_filters"] is None else f"{parity['of_filters']:.0e}"
    other = f"{openvino:.0e}" if isinstance(openvino, float) else openvino
    size = row["bytes"] / 1e6
    figures = f"{parity['largest_difference']:.0e} | {of_filters} | {other} | {size:.1f}"
    return f"| `{name}` | {row['weights']} | {row['storage']} | {figures} |\n"


if __name__ == "__main__":
    main()
