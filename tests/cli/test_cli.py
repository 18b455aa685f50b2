import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from harmony_diffusion.cli import main


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    composite = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    mask[10:30, 20:40] = 255
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "maker", 1
    Image.fromarray(composite).save(tmp_path / "composite.png", exif=exif)
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(np.dstack((composite, mask)), "RGBA").save(tmp_path / "cut.png")
    return tmp_path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_image_writes_the_result_and_prints_its_path(files, capsys):
    out = files / "out.png"
    assert run("image", files / "composite.png", files / "mask.png", "-o", out, "--model", "reinhard") == 0
    assert capsys.readouterr().out.strip() == str(out)
    before, after = np.asarray(Image.open(files / "composite.png")), np.asarray(Image.open(out))
    mask = np.asarray(Image.open(files / "mask.png"))
    assert np.array_equal(before[mask == 0], after[mask == 0])
    assert not np.array_equal(before[mask > 0], after[mask > 0])
    assert Image.open(out).getexif()[0x010F] == "maker"
    assert sorted(path.name for path in files.iterdir()) == [
        "composite.png",
        "cut.png",
        "mask.png",
        "out.png",
    ]


def test_strength_zero_and_inverted_mask(files):
    out = files / "out.png"
    arguments = ["image", files / "composite.png", files / "mask.png", "-o", out, "--overwrite"]
    assert run(*arguments, "--strength", 0) == 0
    before = np.asarray(Image.open(files / "composite.png"))
    assert np.array_equal(np.asarray(Image.open(out)), before)
    assert run(*arguments, "--invert-mask", "--model", "reinhard") == 0
    mask = np.asarray(Image.open(files / "mask.png"))
    assert np.array_equal(np.asarray(Image.open(out))[mask > 0], before[mask > 0])


def test_side_by_side_holds_input_and_result(files):
    out = files / "out.png"
    assert run("image", files / "composite.png", files / "mask.png", "-o", out, "--side-by-side") == 0
    pair = np.asarray(Image.open(files / "out_before_after.png"))
    assert np.array_equal(pair[:, :64], np.asarray(Image.open(files / "composite.png")))
    assert np.array_equal(pair[:, -64:], np.asarray(Image.open(out)))


def test_existing_output_is_refused_before_any_work(files, capsys):
    out = files / "out.png"
    out.write_bytes(b"precious")
    assert run("image", files / "composite.png", files / "mask.png", "-o", out) == 2
    assert out.read_bytes() == b"precious"
    error = capsys.readouterr().err
    assert "out.png" in error and "--overwrite" in error and len(error.splitlines()) == 1
    assert run("image", files / "composite.png", files / "mask.png", "-o", out, "--overwrite") == 0
    assert Image.open(out).size == (64, 48)


def test_output_equal_to_an_input_is_refused(files, capsys):
    before = (files / "composite.png").read_bytes()
    assert run("image", files / "composite.png", files / "mask.png", "-o", files / "composite.png") == 2
    assert (files / "composite.png").read_bytes() == before
    assert "is the picture that was read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda d: (d / "composite.png").write_bytes(b""), "empty"),
        (lambda d: (d / "mask.png").unlink(), "mask.png"),
        (lambda d: Image.new("L", (10, 20), 255).save(d / "mask.png"), "10x20"),
        (lambda d: Image.new("L", (64, 48), 255).save(d / "mask.png"), "no background"),
    ],
    ids=["empty file", "missing mask", "size", "full mask"],
)
def test_bad_input_is_one_line_exit_2_and_nothing_written(files, capsys, change, word):
    change(files)
    assert run("image", files / "composite.png", files / "mask.png", "-o", files / "out.png") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if ": note: " not in line]
    assert len(lines) == 1 and word in lines[0] and "Traceback" not in lines[0]
    assert not (files / "out.png").exists()


@pytest.mark.parametrize("model", ["harmonizer", "no_such_model"])
def test_models_that_cannot_run_are_refused(files, capsys, model):
    out = files / "out.png"
    assert run("image", files / "composite.png", files / "mask.png", "-o", out, "--model", model) == 2
    assert model in capsys.readouterr().err and not out.exists()


def test_debug_shows_the_traceback(files):
    from harmony_diffusion.errors import InputError

    with pytest.raises(InputError):
        run("image", files / "none.png", files / "mask.png", "-o", files / "out.png", "--debug")


def test_compose_writes_composite_mask_and_result(files):
    arguments = ["compose", files / "cut.png", files / "composite.png", "-o", files / "new.jpg"]
    assert run(*arguments, "--at", "3,4", "--scale", "0.5", "--model", "mkl") == 0
    mask = np.asarray(Image.open(files / "new_mask.png"))
    assert mask.shape == (48, 64) and mask[4 + 5 + 2, 3 + 10 + 2] == 255 and mask[40, 50] == 0
    assert Image.open(files / "new.jpg").size == Image.open(files / "new_composite.jpg").size == (64, 48)


def test_compose_refuses_a_foreground_outside(files, capsys):
    arguments = ["compose", files / "cut.png", files / "composite.png", "-o", files / "new.png"]
    assert run(*arguments, "--at", "900,0") == 2
    assert "outside" in capsys.readouterr().err
    assert not list(files.glob("new*"))


def test_models_lists_every_registry_name(capsys):
    from harmony_diffusion.models import MODELS

    assert run("models", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(MODELS)
    assert {row["name"]: row["parameters"] for row in rows}["harmonizer"] == 4_726_882
    licenses = {row["name"]: row["license"] for row in rows}
    assert licenses["harmonizer"] == "CC BY-NC-SA 4.0"
    assert licenses["harmonizer_lite"] == "-", "there is no official code or weights of it"
    assert sum(row["default"] for row in rows) == 1
    assert run("models") == 0
    assert "harmonizer" in capsys.readouterr().out


def test_usage_error_exits_2():
    with pytest.raises(SystemExit) as stop:
        run("image", "only-one.png")
    assert stop.value.code == 2


def test_interrupt_exits_130_and_leaves_nothing(files):
    program = (
        "import signal, sys, os\n"
        # A shell starts background jobs with the interrupt ignored, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from harmony_diffusion import cli\n"
        "def stop(*_, **__): os.kill(os.getpid(), signal.SIGINT); signal.pause()\n"
        "import harmony_diffusion.highres.harmonize as h\n"
        "h.harmonize_picture = stop\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, "image", files / "composite.png", files / "mask.png", "-o"]
        + [files / "out.png"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 130, process.stderr
    assert process.stderr.strip().endswith("interrupted")
    assert not list(files.glob("*out*"))
