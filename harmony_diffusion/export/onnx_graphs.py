"""Turn a model into ONNX graphs that every runtime computes alike.

Two operators are replaced by plain arithmetic before the graph is written. `Resize` with antialiasing is
ignored by OpenVINO without an error (openvinotoolkit/openvino#35893 is the same bug for cubic) and missing in
TensorRT (NVIDIA/TensorRT#3560); here it is two products with constant matrices. `AveragePool` has no divisor
of its own, which PyTorch's pooling has.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from harmony_diffusion.errors import ExportError

OPSET = 20
# Smaller tensors are biases and settings: rounding them gains nothing.
_LEAST_HALF = 64


class Network(nn.Module):
    """The part of a model that sees the thumbnail: returns filters, or the picture where there are none."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, composite: Tensor, mask: Tensor) -> Tensor:
        """Map `(1, 3, h, w)` and `(1, 1, h, w)` to filters, or to the harmonized `(1, 3, h, w)`."""
        if self.model.predicts_filters:
            return self.model.predict_filters(composite, mask).float()
        return self.model(composite, mask)


class Application(nn.Module):
    """The part of a model that changes the picture: filters in, harmonized picture out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, image: Tensor, filters: Tensor, mask: Tensor) -> Tensor:
        """Map `(1, 3, H, W)`, the filters and `(1, 1, H, W)` to `(1, 3, H, W)`."""
        return self.model.apply_filters(image, filters, mask)


def half_rounded(model: nn.Module) -> nn.Module:
    """Return a copy for inference whose larger parameters are rounded to float16 (and held as float32)."""
    rounded = copy.deepcopy(model).eval().requires_grad_(False)
    for parameter in rounded.parameters():
        if parameter.numel() > _LEAST_HALF:
            parameter.data = parameter.data.half().float()
            if not parameter.isfinite().all():
                raise ExportError(
                    f"{type(model).__name__} has weights beyond the range of float16. Store float32 with "
                    "`half_storage=False` (`--fp32-storage`)."
                )
    return rounded


def network_graph(model: nn.Module, size: tuple[int, int], opset: int = OPSET) -> Any:
    """Return the `onnx.ModelProto` of `Network` for thumbnails of a fixed size.

    Raises:
        ExportError: An operator of the model has no ONNX form.
    """
    inputs = (torch.rand(1, 3, *size), torch.rand(1, 1, *size))
    return _graph(Network(model), inputs, ("composite", "mask"), "result", None, opset)


def application_graph(model: nn.Module, filters: Tensor, opset: int = OPSET) -> Any:
    """Return the `onnx.ModelProto` of `Application` for pictures, and maps, of any height and width.

    Args:
        model: A model that predicts filters.
        filters: An example of them.
        opset: Version of the ONNX operators.

    Raises:
        ExportError: An operator of the model has no ONNX form.
    """
    dim = torch.export.Dim
    rows, columns = dim("height", min=2), dim("width", min=2)
    image = {2: rows, 3: columns}
    maps = {2: dim("map_height", min=2), 3: dim("map_width", min=2)} if filters.ndim == 4 else None
    # Sizes that no other dimension has, so that none of them is taken for a constant.
    inputs = (torch.rand(1, 3, 37, 53), filters, torch.rand(1, 1, 37, 53))
    shapes = (image, maps, image)
    return _graph(Application(model), inputs, ("image", "filters", "mask"), "harmonized", shapes, opset)


def store_halves(graph: Any) -> None:
    """Store tensors that float16 holds exactly as float16 with a `Cast`, in place; runtimes fold it."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) <= _LEAST_HALF:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if not np.array_equal(halves.astype(np.float32), values):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(halves, f"{name}_float16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], f"cast_{name}", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def strip_notes(graph: Any) -> None:
    """Remove what the exporter notes for debugging, in place: it holds file paths of this machine."""
    holders = [graph, graph.graph, *graph.functions]
    for part in (graph.graph, *graph.functions):
        holders += [*part.node, *part.value_info]
    holders += [*graph.graph.input, *graph.graph.output, *graph.graph.initializer]
    for holder in holders:
        for field in ("metadata_props", "doc_string"):
            if field in holder.DESCRIPTOR.fields_by_name:
                holder.ClearField(field)
    # Shapes of the values between: a runtime infers them itself.
    del graph.graph.value_info[:]


def _graph(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    names: tuple[str, ...],
    output: str,
    shapes: tuple[Any, ...] | None,
    opset: int,
) -> Any:
    module.eval()
    try:
        with torch.no_grad(), _quiet():
            program = _traced(module, inputs, shapes)
            program = program.run_decompositions({torch.ops.aten.avg_pool2d.default: _average})
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset,
                input_names=list(names),
                output_names=[output],
                optimize=False,  # its rules drop an addend of 1e-8, which keeps a division finite
                verbose=False,
            )
    except Exception as error:  # the exporter's own errors have no common class
        reason = str(error).strip().splitlines() or [""]
        raise ExportError(
            f"{type(getattr(module, 'model', module)).__name__} has no ONNX form: "
            f"{type(error).__name__}: {reason[0][:200]}"
        ) from error
    assert written is not None
    from onnxscript import optimizer

    optimizer.fold_constants(written.model)
    optimizer.remove_unused_nodes(written.model)
    graph = written.model_proto
    strip_notes(graph)
    return graph


def _traced(module: nn.Module, inputs: tuple[Tensor, ...], shapes: tuple[Any, ...] | None) -> Any:
    mode = _AntialiasByMatrices()
    with mode:
        module(*inputs)  # makes the matrices: what is made while tracing would be a part of the graph
        return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)


class _AntialiasByMatrices(TorchFunctionMode):
    """While a model is traced, resize with antialiasing by products with constant matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.matrices: dict[tuple[int, int], Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `F.interpolate(..., antialias=True)`, from half-pixel centres to a given size."""
        kwargs = kwargs or {}
        if func is not F.interpolate or not kwargs.get("antialias"):
            return func(*args, **kwargs)
        options = dict(zip(("input", "size", "scale_factor", "mode", "align_corners"), args, strict=False))
        options |= kwargs
        x, size = options["input"], options.get("size")
        if size is None or options.get("mode") != "bilinear" or options.get("align_corners"):
            return func(*args, **kwargs)
        size = (size, size) if isinstance(size, int) else size
        rows, columns = (self._matrix(*sides) for sides in zip(x.shape[2:], size, strict=True))
        return rows @ x @ columns.mT

    def _matrix(self, before: int, after: int) -> Tensor:
        if (before, after) not in self.matrices:
            self.matrices[before, after] = _triangles(before, after)
        return self.matrices[before, after]


def _triangles(before: int, after: int) -> Tensor:
    """Return the matrix `(after, before)` that shrinks or enlarges a line with a triangle filter."""
    scale = before / after
    centres = (torch.arange(after, dtype=torch.float64) + 0.5) * scale
    places = torch.arange(before, dtype=torch.float64) + 0.5
    weights = (1 - (places - centres[:, None]).abs() / max(scale, 1.0)).clamp_min(0)
    return (weights / weights.sum(1, keepdim=True)).float()


def _average(
    x: Tensor,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: list[int] | None = None,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Tensor:
    """Pool with a divisor of its own as a mean times a constant."""
    if divisor is None:
        return NotImplemented
    area = kernel[0] * kernel[-1]
    means = torch.ops.aten.avg_pool2d.default(x, kernel, stride or kernel, padding or [0, 0], ceil_mode, True)
    return means * (area / divisor)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter says about torchvision, which is absent on purpose, and about itself."""

    def keep(record: logging.LogRecord) -> bool:
        return "torchvision" not in record.getMessage()

    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    logger.addFilter(keep)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            yield
    finally:
        logger.removeFilter(keep)
