"""What `export_onnx` writes, and what it refuses to write."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_models import Gain, make_mask, make_picture
from torch import nn

from harmony_diffusion.errors import ExportError, InputError, OutputError
from harmony_diffusion.export.onnx import export_onnx
from harmony_diffusion.export.onnx_graphs import half_rounded, network_graph, store_halves
from harmony_diffusion.export.parity import LIMIT
from harmony_diffusion.export.runtime import OnnxModel
from harmony_diffusion.models import load_model


class Shrinking(Gain):
    """Sees an antialiased half of its thumbnail, and pools it with a divisor of its own."""

    def predict_filters(self, composite, mask):
        small = F.interpolate(composite, (24, 20), mode="bilinear", antialias=True)
        sums = F.avg_pool2d(small, 3, 2, divisor_override=2)
        return self.amount * sums.mean((2, 3))


class FrozenBranch(Gain):
    """Takes another branch for a full mask than for the one it is traced with, which no graph shows."""

    def predict_filters(self, composite, mask):
        if bool(torch.all(torch.as_tensor(float(mask.detach().mean()) == 1.0))):
            return torch.full((1, 3), 0.5)
        return super().predict_filters(composite, mask)


def test_folder_holds_one_file_a_graph_and_its_description(exported):
    names = {path.name for path in exported["gain"].iterdir()}
    assert names == {"network.onnx", "apply.onnx", "export.json", "README.md"}
    assert {path.name for path in exported["dense"].iterdir()} == names - {"apply.onnx"}


@pytest.mark.parametrize("name", ["gain", "gain_map", "dense"])
def test_description_states_sums_shapes_and_measured_parity(exported, name):
    fields = json.loads((exported[name] / "export.json").read_text())
    assert fields["schema"] == 1
    assert 0 <= fields["parity"]["largest_difference"] <= LIMIT
    assert fields["parity"]["background"] == "equal to the bit"
    for file, noted in fields["files"].items():
        data = (exported[name] / file).read_bytes()
        assert noted["sha256"] == hashlib.sha256(data).hexdigest() and noted["bytes"] == len(data)
        graph = onnx.load_from_string(data)
        onnx.checker.check_model(graph)
        assert [value["name"] for value in noted["inputs"]] == [v.name for v in graph.graph.input]
    assert {"harmony-diffusion", "torch", "onnx", "onnxruntime"} <= set(fields["versions"])


@pytest.mark.parametrize("name", ["gain", "gain_map", "dense"])
def test_files_name_no_path_of_the_exporting_machine(exported, name):
    forbidden = [str(Path.home()), str(Path(__file__).resolve().parents[2]), sys.prefix, "site-packages"]
    for path in exported[name].iterdir():
        data = path.read_bytes()
        assert not [text for text in forbidden if text.encode() in data], path.name


def test_no_graph_resizes_with_antialiasing(tmp_path):
    model = Shrinking().eval()
    graph = network_graph(half_rounded(model), (64, 64))
    assert not [a for node in graph.graph.node for a in node.attribute if a.name == "antialias" and a.i]
    export_onnx(model, tmp_path / "out")  # and the matrices in its place compute the same


@pytest.mark.parametrize("before, after", [(320, 160), (64, 24), (50, 50), (30, 47)])
def test_matrices_resize_as_pytorch_does(before, after):
    from harmony_diffusion.export.onnx_graphs import _triangles

    x = torch.rand(1, 1, before, 3, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(x, (after, 3), mode="bilinear", antialias=True)
    torch.testing.assert_close(_triangles(before, after) @ x, expected, atol=2e-6, rtol=0)


def test_weights_are_stored_as_float16_without_changing_their_values():
    layer = nn.Linear(40, 30)
    rounded = half_rounded(layer)
    data = rounded.weight.detach().numpy()
    graph = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
            "g",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 30])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 40])],
            [onnx.numpy_helper.from_array(data, "w")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 20)],
        ir_version=10,
    )
    before = len(graph.SerializeToString())
    store_halves(graph)
    assert len(graph.SerializeToString()) < 0.6 * before
    x = np.random.default_rng(0).random((2, 30), np.float32)
    y = onnx.reference.ReferenceEvaluator(graph).run(None, {"x": x})[0]
    np.testing.assert_array_equal(y, x @ data)


def test_weights_beyond_float16_are_refused_with_a_remedy():
    layer = nn.Linear(40, 30)
    layer.weight.data[0, 0] = 1e6
    with pytest.raises(ExportError, match="fp32-storage"):
        half_rounded(layer)


def test_export_leaves_the_model_as_it_was(tmp_path):
    model = Gain().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_onnx(model, tmp_path / "out")
    assert model.training and model.amount.requires_grad
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_model_whose_export_differs_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    # The original is changed after the graph was written, as if the exporter had made a mistake.
    import harmony_diffusion.export.onnx as module

    def wrong(model, *args):
        model.amount.data += 0.01
        graph = network_graph(model, *args)
        model.amount.data -= 0.01
        return graph

    monkeypatch.setattr(module, "network_graph", wrong)
    with pytest.raises(ExportError, match=r"differs by 0\.\d+ for the check"):
        export_onnx(Gain().eval(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_control_flow_on_values_is_refused(tmp_path):
    with pytest.raises(ExportError):
        export_onnx(FrozenBranch().eval(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_methods_without_network_are_refused(tmp_path):
    with pytest.raises(ExportError, match="without a network"):
        export_onnx(load_model("reinhard"), tmp_path / "out")


def test_existing_folders_are_replaced_only_when_asked_and_only_exports(exported, tmp_path):
    with pytest.raises(OutputError, match="exists already"):
        export_onnx(Gain().eval(), exported["gain"])
    other, export = tmp_path / "photographs", tmp_path / "export"
    other.mkdir()
    shutil.copytree(exported["gain"], export)
    export_onnx(Gain().eval(), export, overwrite=True)
    for folder in (other, export):
        (folder / "only_copy.txt").write_text("precious")
        with pytest.raises(OutputError, match="something else"):
            export_onnx(Gain().eval(), folder, overwrite=True)
        assert (folder / "only_copy.txt").read_text() == "precious"


def test_opset_is_checked(tmp_path):
    with pytest.raises(InputError, match="opset"):
        export_onnx(Gain().eval(), tmp_path / "out", opset=9)


@pytest.mark.parametrize("name", ["gain", "gain_map", "dense"])
def test_the_lines_of_the_readme_run_without_this_library(exported, tmp_path, name):
    (code,) = re.findall(r"```python\n(.*?)```", (exported[name] / "README.md").read_text(), re.DOTALL)
    assert "harmony_diffusion" not in code and "torch" not in code
    size = (64, 64) if name == "dense" else (90, 120)
    picture, mask = make_picture(size=size), make_mask(size)
    mask[:5] = 0
    Image.fromarray(picture.pixels).save(tmp_path / "composite.png")
    Image.fromarray(np.rint(mask * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    arguments = [tmp_path / "composite.png", tmp_path / "mask.png", tmp_path / "out.png"]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=exported[name], check=True)
    result = np.asarray(Image.open(tmp_path / "out.png"))
    assert result.shape == picture.pixels.shape
    assert (result[mask == 0] == picture.pixels[mask == 0]).all()
    assert (result[mask == 1] != picture.pixels[mask == 1]).mean() > 0.5


@pytest.mark.slow
def test_the_default_exports_with_parity_and_half_the_size(tmp_path):
    model = load_model("default")
    folder = export_onnx(model, tmp_path / "default")
    fields = json.loads((folder / "export.json").read_text())
    assert fields["parity"]["largest_difference"] <= LIMIT
    weights = sum(p.numel() for p in model.parameters())
    assert (folder / "network.onnx").stat().st_size < 2.3 * weights
    assert OnnxModel(folder).size == (model.working_size, model.working_size)


def test_folders_that_cannot_be_made_are_refused_before_any_work(tmp_path, monkeypatch):
    import harmony_diffusion.export.onnx as module

    monkeypatch.setattr(module, "network_graph", None)  # any work would fail
    (tmp_path / "file").write_text("")
    for name, words in (("file/out", "is a file"), ("x" * 300, "too long")):
        with pytest.raises(OutputError, match=words):
            export_onnx(Gain().eval(), tmp_path / name)
