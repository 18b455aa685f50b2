"""Write a model as a folder of ONNX graphs, after measuring that they compute what the model computes."""

import copy
import importlib.metadata
import importlib.util
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from harmony_diffusion import __version__
from harmony_diffusion.errors import ExportError, InputError, MissingDependencyError
from harmony_diffusion.export.folder import (
    APPLICATION,
    DESCRIPTION,
    MAX_BYTES,
    NETWORK,
    SCHEMA,
    is_exported,
    sha256_of,
)
from harmony_diffusion.export.onnx_graphs import (
    OPSET,
    application_graph,
    half_rounded,
    network_graph,
    store_halves,
)
from harmony_diffusion.export.parity import LIMIT, Parity, compare_dense, compare_filters
from harmony_diffusion.export.readme import describe
from harmony_diffusion.export.runtime import OnnxModel
from harmony_diffusion.hub.card import read_header
from harmony_diffusion.images.output_folders import check_replaceable, holds_only, write_folder_atomically
from harmony_diffusion.models import MODELS, model_class

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_onnx(
    model: Any,
    folder: str | os.PathLike[str],
    *,
    mirror: bool = True,
    half_storage: bool = True,
    opset: int = OPSET,
    overwrite: bool = False,
) -> Path:
    """Export a model to a folder that `OnnxModel` opens, if the export computes the same.

    The graphs are written beside the folder, run by onnxruntime on eight inputs and compared with the model;
    the folder appears only if the pictures agree to 1e-4 and the background to the bit.

    Args:
        model: Any network of the registry, with weights; exported in float32.
        folder: Folder to make.
        mirror: False leaves out the second pass of models that average with the mirrored picture
            (`average_mirrored`): half the time, slightly less quality.
        half_storage: Store weights as float16, which halves the files. They compute in float32 all the same.
        opset: Version of the ONNX operators, 18 or later.
        overwrite: Replace a folder that was exported before.

    Returns:
        The folder, with `network.onnx`, `apply.onnx` for models that predict filters, `export.json` and a
        `README.md` that shows how to run them.

    Raises:
        ExportError: The model needs no network, has no ONNX form, or its export computes something else.
        MissingDependencyError: onnx, onnxscript or onnxruntime is not installed.
        OutputError: The folder exists and may not be replaced.
        InputError: `opset` is not supported.
    """
    folder = Path(folder)
    check_exportable(model)
    check_target(folder, overwrite=overwrite)
    check_packages()
    if not 18 <= opset <= 23:
        raise InputError("opset", f"is {opset}", "Use 18 to 23; 20 is tested.")
    # The copy that is exported; `model` itself is what it is compared with.
    source = half_rounded(model) if half_storage else _for_inference(model)
    original = _for_inference(model)
    if not mirror:
        for one in (source, original):
            one.average_mirrored = False
    options = {"mirror": mirror, "half_storage": half_storage, "opset": opset}
    write_folder_atomically(
        folder, lambda unfinished: _write(original, source, unfinished, options), keep_others=True
    )
    return folder


def check_exportable(model: Any) -> None:
    """Refuse what is no network.

    Raises:
        ExportError: A method without weights.
    """
    if not any(parameter.numel() for parameter in model.parameters()):
        raise ExportError(
            f"{_name_of(model)} is a method without a network: it computes statistics of the picture, and "
            "needs no ONNX. Export a network, such as the default."
        )


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be made, and to replace anything but one that was exported before.

    Raises:
        OutputError: It cannot be made; or it exists, and `overwrite` is false or it holds something else.
    """

    def is_one(folder: Path) -> bool:
        return is_exported(folder) and holds_only(folder, (DESCRIPTION, "README.md", "*.onnx"))

    check_replaceable(folder, "an exported model", is_one, overwrite=overwrite)


def check_packages() -> None:
    """Check that the packages of the export are installed.

    Raises:
        MissingDependencyError: One is not.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"Export needs {', '.join(missing)}: pip install 'harmony-diffusion[onnx]'"
        )


def _for_inference(model: Any) -> Any:
    return copy.deepcopy(model).float().cpu().eval().requires_grad_(False)


def _write(original: Any, source: Any, folder: Path, options: dict[str, Any]) -> None:
    """Fill the folder: graphs, the comparison, and what describes them."""
    size = (source.working_size, source.working_size)
    graphs = {NETWORK: network_graph(source, size, options["opset"])}
    upsampling = None
    if source.predicts_filters:
        with torch.no_grad():
            filters = source.predict_filters(torch.rand(1, 3, *size), torch.ones(1, 1, *size))
        upsampling = source.filter_upsampling
        graphs[APPLICATION] = application_graph(source, filters.float(), options["opset"])
    for name, graph in graphs.items():
        store_halves(graph)
        data = graph.SerializeToString()
        if len(data) > MAX_BYTES:
            raise ExportError(f"{name} would have {len(data)} bytes, at most {MAX_BYTES} are read again.")
        (folder / name).write_bytes(data)
    fields = {
        "schema": SCHEMA,
        "model": _name_of(original),
        "class": type(original).__name__,
        "config": {k: v for k, v in dict(original.config).items() if k[0] != "_"},
        "kind": "filters" if original.predicts_filters else "dense",
        "thumbnail": {
            "size": list(size),
            "shape": "square: the window is squashed to it",
            "antialias": not original.predicts_filters or original.antialias or original.keeps_shape,
            "context": original.context,
        },
        "upsampling": upsampling,
        "frame_wide": original.needs_frame_statistics,
        "files": {
            name: {
                "sha256": sha256_of(folder / name),
                "bytes": (folder / name).stat().st_size,
                "inputs": [_value(value) for value in graph.graph.input],
                "outputs": [_value(value) for value in graph.graph.output],
            }
            for name, graph in graphs.items()
        },
        "options": options,
        "weights_sha256": _sum_of_weights(original),
        "license": _license(original),
        "versions": {
            "harmony-diffusion": __version__,
            "torch": torch.__version__,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }
    _write_description(folder, fields)
    parity = measure_parity(original, OnnxModel(folder, threads=1))
    fields["parity"] = {
        "largest_difference": parity.difference,
        "of_filters": parity.filters,
        "worst_input": parity.worst,
        "limit": LIMIT,
        "background": "equal to the bit",
        "runtime": f"onnxruntime {importlib.metadata.version('onnxruntime')}",
    }
    _write_description(folder, fields)
    (folder / "README.md").write_text(describe(fields), encoding="utf-8")


def measure_parity(model: Any, exported: OnnxModel) -> Parity:
    """Compare an exported model with its original.

    Args:
        model: The original, in evaluation mode.
        exported: What was exported.

    Returns:
        The largest differences.

    Raises:
        ExportError: They are too large.
    """
    if exported.description.kind == "dense":
        return compare_dense((_on_arrays(model), exported), exported.size)
    predict = _on_arrays(model.predict_filters), exported.predict_filters
    apply = _on_arrays(model.apply_filters), exported.apply_filters
    return compare_filters(predict, apply, exported.size)


def _on_arrays(function: Callable[..., torch.Tensor]) -> Callable[..., np.ndarray]:
    def run(*arrays: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return function(*(torch.from_numpy(array) for array in arrays)).float().numpy()

    return run


def _write_description(folder: Path, fields: dict[str, Any]) -> None:
    text = json.dumps(fields, indent=2, ensure_ascii=False, default=str)
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def _value(value: Any) -> dict[str, Any]:
    """Describe an input or output of a graph: name, type, shape with the names of free dimensions."""
    shape = [one.dim_param or one.dim_value for one in value.type.tensor_type.shape.dim]
    ranges = {"composite": [0, 1], "image": [0, 1], "mask": [0, 1], "harmonized": [0, 1]}
    described = {"name": value.name, "type": "float32", "shape": shape}
    return described | ({"range": ranges[value.name]} if value.name in ranges else {})


def _name_of(model: Any) -> str:
    """Return the registry name with the model's settings, or its class where there is none."""
    config = {(key, value) for key, value in dict(model.config).items() if not isinstance(value, list | dict)}
    fitting = [name for name in MODELS if model_class(name) is type(model) and _settings_of(name) <= config]
    # Of a class with several names, the one with most settings fits best.
    return max(fitting, key=lambda name: len(_settings_of(name)), default=type(model).__name__)


def _settings_of(name: str) -> set[tuple[str, Any]]:
    return set(getattr(MODELS[name], "keywords", {}).items())


def _sum_of_weights(model: Any) -> str:
    """Return the SHA-256 of the weights as `save_pretrained` would write them."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
        return sha256_of(path)


def _license(model: Any) -> str:
    """Return the licence of the weights by the card beside them, else that of the official ones."""
    folder = model.config.get("_name_or_path")
    header = read_header(Path(folder, "README.md")) if folder else {}
    if header.get("license"):
        return str(header.get("license_name") or header["license"])
    return model.origin.weights_license or "not known"
