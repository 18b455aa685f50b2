"""Open an exported model with onnxruntime or OpenVINO; PyTorch is never imported."""

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from harmony_diffusion.errors import CheckpointError, InputError, MissingDependencyError
from harmony_diffusion.export.folder import APPLICATION, NETWORK, read_description, read_graph

RUNTIMES = ("onnx", "openvino")
_INPUTS = {NETWORK: ("composite", "mask"), APPLICATION: ("image", "filters", "mask")}


class _Graph(Protocol):
    """A graph that is ready to run."""

    def __call__(self, inputs: dict[str, np.ndarray]) -> np.ndarray: ...


class OnnxModel:
    """A model exported by `export_onnx`: the methods of the model it was made from, on NumPy arrays.

    The folder is not trusted, see `harmony_diffusion.export.folder`. Graphs are opened when they are first
    needed.

    Args:
        folder: Written by `export_onnx` or `harmony export`.
        runtime: "onnx" (onnxruntime) or "openvino"; both open the same files.
        threads: Of the processor, for one call.

    Raises:
        CheckpointError: The folder is not complete, not as it was written, or of another schema.
        MissingDependencyError: The runtime is not installed.
        InputError: No runtime is called so.
    """

    def __init__(
        self, folder: str | os.PathLike[str], *, runtime: str = "onnx", threads: int | None = None
    ) -> None:
        if runtime not in RUNTIMES:
            raise InputError("runtime", f"is {runtime!r}", f"Use one of {', '.join(RUNTIMES)}.")
        self.folder, self.runtime = Path(folder), runtime
        self.description = read_description(self.folder)
        self.threads = threads or _threads()
        self._open = _onnxruntime(self.threads) if runtime == "onnx" else _openvino(self.threads)
        self._graphs: dict[str, _Graph] = {}

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the thumbnails that the network takes."""
        return self.description.size

    def predict_filters(self, composite: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Predict filters from a thumbnail.

        Args:
            composite: `(1, 3, h, w)` float32 in [0, 1], of `size`.
            mask: 1 on the foreground, soft values allowed, `(1, 1, h, w)` float32.

        Returns:
            `(1, F)` or maps `(1, F, h, w)`, float32.

        Raises:
            InputError: Another size, or the model predicts no filters.
            CheckpointError: The graph cannot be run, or returns something else.
        """
        self._check_kind("filters")
        return self._run(NETWORK, *self._thumbnail(composite, mask))

    def apply_filters(self, image: np.ndarray, filters: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Apply filters to a picture of any size.

        Args:
            image: `(1, 3, H, W)` float32 in [0, 1].
            filters: As `predict_filters` returns them; maps may have any size.
            mask: 1 on the foreground, `(1, 1, H, W)` float32.

        Returns:
            `(1, 3, H, W)` float32 in [0, 1], equal to `image` where the mask is 0.

        Raises:
            InputError: Shapes that do not fit, or the model predicts no filters.
        """
        self._check_kind("filters")
        _check_pair(image, mask)
        return self._run(APPLICATION, *(np.require(x, np.float32, "C") for x in (image, filters, mask)))

    def __call__(self, composite: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Harmonize a picture of the size of the thumbnail, whatever the kind of model.

        Args:
            composite: `(1, 3, h, w)` float32 in [0, 1], of `size`.
            mask: 1 on the foreground, soft values allowed, `(1, 1, h, w)` float32.

        Returns:
            `(1, 3, h, w)` float32 in [0, 1], equal to `composite` where the mask is 0.

        Raises:
            InputError: Another size.
        """
        if self.description.kind == "filters":
            return self.apply_filters(composite, self.predict_filters(composite, mask), mask)
        return self._run(NETWORK, *self._thumbnail(composite, mask))

    def _thumbnail(self, composite: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _check_pair(composite, mask)
        if composite.shape[2:] != self.size:
            raise InputError(
                "composite",
                f"is {composite.shape[2]} x {composite.shape[3]} (height x width), and this network takes "
                f"{self.size[0]} x {self.size[1]}",
                "Resize it, or use `harmonize_picture`, which does.",
            )
        return np.require(composite, np.float32, "C"), np.require(mask, np.float32, "C")

    def _check_kind(self, kind: str) -> None:
        if self.description.kind != kind:
            raise InputError(
                str(self.folder), f"holds {self.description.model}, which predicts no filters", "Call it."
            )

    def _run(self, name: str, *inputs: np.ndarray) -> np.ndarray:
        if name not in self._graphs:
            data = read_graph(self.folder, name, self.description)
            try:
                self._graphs[name] = self._open(data)
            except Exception as error:  # onnxruntime's errors have no base of their own
                raise CheckpointError(f"{self.folder / name}: cannot be opened: {_line(error)}") from error
        try:
            result = self._graphs[name](dict(zip(_INPUTS[name], inputs, strict=True)))
        except Exception as error:
            raise CheckpointError(f"{self.folder / name}: failed to run: {_line(error)}") from error
        is_picture = name == APPLICATION or self.description.kind == "dense"
        self._check_result(name, result, inputs[0].shape if is_picture else None)
        return result

    def _check_result(self, name: str, result: Any, expected: tuple[int, ...] | None) -> None:
        """Check what a graph returns: nothing but the graph itself says that it is a picture, or filters.

        Args:
            name: Of the graph.
            result: Its first output.
            expected: Shape of the picture that it must return; None = filters.
        """
        shape = getattr(result, "shape", None)
        fits = (
            shape == expected
            if expected
            else shape is not None and shape[:1] == (1,) and len(shape) in (2, 4)
        )
        if not fits or result.dtype != np.float32:
            wanted = f"float32 {expected}" if expected else "float32 (1, F) or (1, F, h, w)"
            found = "no array" if shape is None else f"{result.dtype} {shape}"
            raise CheckpointError(
                f"{self.folder / name}: returns {found}, expected {wanted}. Export the model again."
            )


def _check_pair(image: np.ndarray, mask: np.ndarray) -> None:
    if image.ndim != 4 or image.shape[:2] != (1, 3) or mask.shape != (1, 1, *image.shape[2:]):
        raise InputError(
            "image and mask",
            f"must be (1, 3, H, W) and (1, 1, H, W), got {image.shape} and {mask.shape}",
        )


def _onnxruntime(threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "`runtime='onnx'` (`--runtime onnx`) needs onnxruntime: pip install 'harmony-diffusion[onnx]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Threads that spin while they wait take the cores from those that work.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")

    def open_graph(data: bytes) -> _Graph:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        taken = {value.name for value in session.get_inputs()}
        return lambda inputs: session.run(None, _only(taken, inputs))[0]

    return open_graph


def _openvino(threads: int) -> Any:
    try:
        import openvino
    except ImportError as error:
        raise MissingDependencyError(
            "`runtime='openvino'` (`--runtime openvino`) needs OpenVINO: "
            "pip install 'harmony-diffusion[openvino]'"
        ) from error
    # In float32: where the processor has bfloat16, OpenVINO would compute in it.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}

    def open_graph(data: bytes) -> _Graph:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model=data, weights=b""), "CPU", settings)
        # An input that nothing depends on is no input of the compiled graph.
        taken = {value.any_name for value in compiled.inputs}
        return lambda inputs: compiled(_only(taken, inputs))[0].copy()

    return open_graph


def _only(taken: set[str], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in inputs.items() if name in taken}


def _threads() -> int:
    named = os.environ.get("OMP_NUM_THREADS", "")
    return int(named) if named.isdigit() and int(named) > 0 else max(1, len(_processors()))


def _processors() -> Any:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
