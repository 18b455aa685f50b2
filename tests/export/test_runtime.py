"""`OnnxModel` on NumPy arrays, in both runtimes, and what it refuses to open."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch

from harmony_diffusion.errors import CheckpointError, InputError, MissingDependencyError
from harmony_diffusion.export.folder import read_description, read_graph, sha256_of
from harmony_diffusion.export.runtime import RUNTIMES, OnnxModel


def open_in(runtime, folder):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    return OnnxModel(folder, runtime=runtime, threads=1)


@pytest.fixture
def copy(exported, tmp_path):
    """A copy of the exported folder that a test may damage."""
    return shutil.copytree(exported["gain"], tmp_path / "copy")


def sign(folder, name):
    """Note the sum of a changed file, as somebody would who wants it opened."""
    path = folder / "export.json"
    fields = json.loads(path.read_text())
    fields["files"][name]["sha256"] = sha256_of(folder / name)
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("name", ["gain", "gain_map"])
def test_filters_and_pictures_equal_those_of_pytorch(models, exported, arrays, name, runtime):
    image, mask = arrays
    model, ours = models[name], open_in(runtime, exported[name])
    small, small_mask = image[:, :, :64, :64], mask[:, :, :64, :64]
    filters = ours.predict_filters(small, small_mask)
    with torch.no_grad():
        expected = model.predict_filters(torch.from_numpy(small), torch.from_numpy(small_mask))
        np.testing.assert_allclose(filters, expected.numpy(), atol=1e-5)
        picture = model.apply_filters(*map(torch.from_numpy, (image, filters, mask)))
    harmonized = ours.apply_filters(image, filters, mask)
    # OpenVINO enlarges bicubic maps in another way (openvinotoolkit/openvino#35893), so the library does it.
    if not (runtime == "openvino" and name == "gain_map"):
        np.testing.assert_allclose(harmonized, picture.numpy(), atol=1e-4)
    background = np.broadcast_to(mask == 0, image.shape)
    assert (harmonized[background] == image[background]).all()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_dense_pictures_equal_those_of_pytorch(models, exported, arrays, runtime):
    small, mask = (x[:, :, 10:74, 20:84] for x in arrays)
    with torch.no_grad():
        expected = models["dense"](torch.from_numpy(small.copy()), torch.from_numpy(mask.copy()))
    np.testing.assert_allclose(open_in(runtime, exported["dense"])(small, mask), expected.numpy(), atol=1e-5)


def test_call_of_a_filter_model_is_both_steps(exported, arrays):
    small, mask = (np.ascontiguousarray(x[:, :, 10:74, 20:84]) for x in arrays)
    model = OnnxModel(exported["gain"])
    expected = model.apply_filters(small, model.predict_filters(small, mask), mask)
    assert np.array_equal(model(small, mask), expected)


def test_torch_is_not_imported(exported):
    code = (
        "import sys, numpy as np\n"
        "from harmony_diffusion.export.runtime import OnnxModel\n"
        f"model = OnnxModel({str(exported['gain'])!r})\n"
        "x = np.full((1, 3, 64, 64), 0.5, np.float32)\n"
        "model(x, x[:, :1])\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_wrong_sizes_and_kinds_are_refused(exported, arrays):
    image, mask = arrays
    with pytest.raises(InputError, match="90 x 120.*64 x 64"):
        OnnxModel(exported["gain"]).predict_filters(image, mask)
    with pytest.raises(InputError, match=r"\(1, 3, H, W\)"):
        OnnxModel(exported["gain"]).apply_filters(image, np.zeros((1, 3), np.float32), mask[:, :, 1:])
    with pytest.raises(InputError, match="predicts no filters"):
        OnnxModel(exported["dense"]).predict_filters(image, mask)
    with pytest.raises(InputError, match="onnx, openvino"):
        OnnxModel(exported["gain"], runtime="tensorrt")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_missing_runtime_names_the_command_that_installs_it(exported, monkeypatch, runtime):
    package = {"onnx": "onnxruntime", "openvino": "openvino"}[runtime]
    monkeypatch.setitem(sys.modules, package, None)  # what Python does for a package that is not there
    with pytest.raises(MissingDependencyError, match=rf"pip install 'harmony-diffusion\[{runtime}\]'"):
        OnnxModel(exported["gain"], runtime=runtime)


def test_a_changed_graph_is_refused(copy):
    data = bytearray((copy / "network.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (copy / "network.onnx").write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256 differs"):
        read_graph(copy, "network.onnx", read_description(copy))


def test_a_graph_that_names_a_file_outside_is_refused(copy):
    # The whole folder is made by somebody hostile: the sums are right.
    secret = copy.parent / "secret.bin"
    secret.write_bytes(np.arange(3, dtype=np.float32).tobytes())
    graph = onnx.load(copy / "apply.onnx")
    tensor = onnx.TensorProto(name="stolen", dims=[3], data_type=1, data_location=1)
    tensor.external_data.add(key="location", value="../secret.bin")
    for place in ("initializer", "attribute"):
        changed = onnx.ModelProto()
        changed.CopyFrom(graph)
        if place == "initializer":
            changed.graph.initializer.append(tensor)
        else:
            node = changed.graph.node.add(op_type="Constant", output=["stolen"])
            node.attribute.add(name="value", type=4).t.CopyFrom(tensor)
        (copy / "apply.onnx").write_bytes(changed.SerializeToString())
        sign(copy, "apply.onnx")
        with pytest.raises(CheckpointError, match="in other files"):
            read_graph(copy, "apply.onnx", read_description(copy))


def test_what_is_no_graph_is_refused(copy, arrays):
    (copy / "apply.onnx").write_bytes(b"\x0f" * 100)
    sign(copy, "apply.onnx")
    with pytest.raises(CheckpointError, match="no ONNX graph"):
        OnnxModel(copy).apply_filters(arrays[0], np.ones((1, 3), np.float32), arrays[1])
    (copy / "apply.onnx").write_bytes(b"")
    sign(copy, "apply.onnx")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        OnnxModel(copy).apply_filters(arrays[0], np.ones((1, 3), np.float32), arrays[1])


def test_too_large_graphs_are_refused_before_they_are_read(copy, monkeypatch):
    monkeypatch.setattr("harmony_diffusion.export.folder.MAX_BYTES", 100)
    with pytest.raises(CheckpointError, match="at most 100"):
        read_graph(copy, "network.onnx", read_description(copy))


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 99},
        {"kind": "magic"},
        {"thumbnail": {"size": [1000000, 64], "antialias": True, "context": None}},
        {"thumbnail": {"size": ["a", 64], "antialias": True, "context": None}},
        {"thumbnail": {"size": [64, 64], "antialias": True, "context": -1}},
        {"upsampling": "nearest"},
        {"files": None},
    ],
    ids=str,
)
def test_a_description_that_cannot_be_is_refused(copy, change):
    fields = json.loads((copy / "export.json").read_text()) | change
    (copy / "export.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError):
        OnnxModel(copy)


def test_folders_that_are_no_exports_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="harmony export"):
        OnnxModel(tmp_path)
    (tmp_path / "export.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        OnnxModel(tmp_path)


@pytest.mark.parametrize("name", ["network.onnx", "apply.onnx"])
@pytest.mark.parametrize("node", ["ReduceMean", "Shape"])
def test_what_a_graph_returns_is_checked(copy, arrays, name, node):
    """Another shape and another type, of a folder whose sums are right."""
    image, mask = (np.ascontiguousarray(x[:, :, :64, :64] * 0) for x in arrays)
    graph = onnx.load(copy / name)
    first, last = graph.graph.input[0].name, graph.graph.output[0]
    del graph.graph.node[:]
    graph.graph.node.append(onnx.helper.make_node(node, [first], [last.name]))
    last.type.tensor_type.Clear()
    last.type.tensor_type.elem_type = onnx.TensorProto.INT64 if node == "Shape" else onnx.TensorProto.FLOAT
    (copy / name).write_bytes(graph.SerializeToString())
    sign(copy, name)
    fields = json.loads((copy / "export.json").read_text())
    if name == "network.onnx":
        (copy / "export.json").write_text(json.dumps(fields | {"kind": "dense"}))
    with pytest.raises(CheckpointError, match="returns .*Export the model again"):
        if name == "network.onnx":
            OnnxModel(copy)(image, mask)
        else:
            OnnxModel(copy).apply_filters(image, np.ones((1, 3), np.float32), mask)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": 1, "thumbnail": {"size": [Infinity, 64]}, "model": "", "kind": ""}']
)
def test_descriptions_that_break_python_are_damaged(copy, text):
    (copy / "export.json").write_text(text)
    with pytest.raises(CheckpointError, match="is damaged"):
        OnnxModel(copy)
