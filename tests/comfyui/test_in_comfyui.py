"""The nodes in ComfyUI itself: `COMFYUI_DIR=PATH pytest -m comfyui tests/comfyui`.

COMFYUI_PYTHON names the Python that runs it, with this library installed (default: the one of the test).
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PACK = ROOT / "comfyui"
CHECKOUT = os.environ.get("COMFYUI_DIR")
PATIENCE = 300

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif(not CHECKOUT, reason="COMFYUI_DIR does not name a checkout of ComfyUI"),
]


class Program:
    """A running ComfyUI, and its base folder."""

    def __init__(self, base):
        self.base = base
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = [
            os.environ.get("COMFYUI_PYTHON", sys.executable),
            "main.py",
            "--cpu",
            "--disable-api-nodes",
        ]
        command += ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base)]
        self.log = (base / "log.txt").open("w")
        self.process = subprocess.Popen(
            command,
            cwd=CHECKOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=self.log,
            stderr=self.log,
        )
        self.wait_for(lambda: self.get("/system_stats"))

    def get(self, path):
        with urllib.request.urlopen(self.address + path, timeout=30) as answer:
            return json.load(answer)

    def wait_for(self, ask):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.poll() is None, (self.base / "log.txt").read_text()[-3000:]
            try:
                if found := ask():
                    return found
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.3)
        raise AssertionError((self.base / "log.txt").read_text()[-3000:])

    def run(self, workflow):
        """Run a workflow; return its status and the saved pictures."""
        for path in (self.base / "output").glob("*.png"):
            path.unlink()
        data = json.dumps({"prompt": workflow}).encode()
        request = urllib.request.Request(f"{self.address}/prompt", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            number = json.load(answer)["prompt_id"]
        entry = self.wait_for(lambda: self.get(f"/history/{number}").get(number))
        paths = sorted((self.base / "output").glob("*.png"))
        return entry["status"]["status_str"], [np.asarray(Image.open(path).convert("RGB")) for path in paths]

    def end(self):
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    shutil.copytree(PACK, base / "custom_nodes" / "harmony-diffusion-nodes")
    for name in ("input", "output"):
        (base / name).mkdir()
    generator = np.random.default_rng(0)
    composite, background = (
        Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((160, 120))
        for _ in range(2)
    )
    mask = np.zeros((120, 160), np.uint8)
    mask[30:80, 50:100] = 255
    composite.save(base / "input" / "composite.png")
    background.save(base / "input" / "background.png")
    Image.fromarray(mask).save(base / "input" / "mask.png")
    Image.fromarray(np.dstack((np.asarray(composite), mask))).save(base / "input" / "cutout.png")
    running = Program(base)
    yield running
    running.end()


def workflow(name):
    return json.loads((PACK / "example_workflows" / f"{name}.json").read_text())


def read(program, name):
    return np.asarray(Image.open(program.base / "input" / name))


def eight_bits(image):
    """Return what SaveImage writes: it cuts off decimals."""
    return np.clip(255.0 * image, 0, 255).astype(np.uint8)


def test_harmonize_equals_the_library(program):
    from harmony_diffusion import HarmonizationPipeline

    status, (saved,) = program.run(workflow("harmonize"))
    assert status == "success"
    composite, mask = (read(program, name) for name in ("composite.png", "mask.png"))
    pipe = HarmonizationPipeline.from_pretrained()
    expected = pipe(composite.astype(np.float32) / 255, mask, output_type="array").images[0]
    assert np.array_equal(saved, eight_bits(expected))
    assert np.array_equal(saved[mask == 0], composite[mask == 0])


def test_a_composed_picture_keeps_its_background(program):
    status, (saved,) = program.run(workflow("compose_shadow_harmonize"))
    background = read(program, "background.png")
    assert status == "success" and saved.shape == background.shape
    assert np.array_equal(saved[:20], background[:20]) and not np.array_equal(saved, background)


def test_the_diffusion_workflow_gives_both_halves(program):
    graph = workflow("harmonize_sd2_and_compare")
    graph["3"]["inputs"] |= {"folder": str(ROOT / "checkpoints" / "mini_dual_controlnet"), "steps": 2}
    status, (saved,) = program.run(graph)
    composite, mask = (read(program, name) for name in ("composite.png", "mask.png"))
    assert status == "success" and np.array_equal(saved[:, :160], composite)
    assert np.array_equal(saved[:, 164:][mask == 0], composite[mask == 0])


def test_a_bad_mask_is_an_error_and_the_next_prompt_runs(program):
    Image.fromarray(np.zeros((50, 50), np.uint8)).save(program.base / "input" / "small.png")
    graph = workflow("harmonize")
    graph["2"]["inputs"]["image"] = "small.png"
    status, pictures = program.run(graph)
    assert status == "error" and not pictures
    assert program.run(workflow("harmonize"))[0] == "success"


@pytest.mark.parametrize("path", sorted(PACK.glob("example_workflows/*.json")), ids=lambda p: p.stem)
def test_example_workflows_fit_what_the_program_says_of_its_nodes(program, path):
    known = program.get("/object_info")
    for node in json.loads(path.read_text()).values():
        inputs = known[node["class_type"]]["input"]
        assert set(inputs["required"]) <= set(node["inputs"])
        assert set(node["inputs"]) <= {*inputs["required"], *inputs.get("optional", {})}
