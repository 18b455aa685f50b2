"""The command line under bad numbers, deaf terminals, swapped arguments and late refusals."""

import ast
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harmony_diffusion import HarmonizationPipeline, load_model
from harmony_diffusion.cli import main, terminal
from harmony_diffusion.cli.number_types import join_negative
from harmony_diffusion.errors import InputError, InputNote


def run(*arguments):
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def new_files(folder):
    return sorted({path.name for path in folder.iterdir()} - {"c.png", "m.png", "cut.png"})


IMAGE = ("image", "c.png", "m.png", "--model", "reinhard", "-o", "o.png")
COMPOSE = ("compose", "cut.png", "c.png", "--model", "reinhard", "-o", "o.png")


@pytest.mark.parametrize(
    "arguments",
    [
        (*COMPOSE, "--scale", 10),  # covers the whole picture, which only harmonizing refuses
        (*COMPOSE, "--model", "no_such_model"),
        (*IMAGE[:-1], "o.xyz"),
        (*IMAGE[:-1], "/"),
        (*IMAGE[:-1], ""),
    ],
    ids=["no background", "model", "suffix", "root", "empty"],
)
def test_a_refused_command_leaves_nothing_behind(folder, capsys, arguments):
    if 10 in arguments:
        pixels = np.asarray(Image.open("c.png"))[:40, :40]
        Image.fromarray(np.dstack((pixels, np.full((40, 40), 255, np.uint8)))).save("cut.png")
        arguments = (*COMPOSE[:2], "c.png", "--mask", "all.png", *COMPOSE[3:], "--scale", 10)
        Image.new("L", (40, 40), 255).save("all.png")
    before = new_files(folder)
    assert run(*arguments) == 2
    assert new_files(folder) == before
    assert "Traceback" not in capsys.readouterr().err


def test_a_picture_the_format_cannot_hold_is_refused_before_it_is_harmonized(folder, capsys, monkeypatch):
    monkeypatch.setattr("harmony_diffusion.pipelines.loading.load_pipeline", None)  # would be called later
    assert run("image", "cut.png", "m.png", "-o", "o.jpg") == 2
    assert "transparency" in capsys.readouterr().err and not new_files(folder)


@pytest.mark.parametrize("value", ["-1", "1.5", "nan", "inf", "-inf", "1e400", "x", ""])
@pytest.mark.parametrize("option", ["--strength", "--frame", "--max-pixels", "--steps", "--seed"])
def test_numbers_out_of_range_are_refused_in_one_line(folder, capsys, option, value):
    assert run(*IMAGE, option, value) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and not new_files(folder)
    assert option in error


@pytest.mark.parametrize("value", ["-1", "0", "nan", "inf", "1e300", "1e-300"])
def test_scales_out_of_range_are_refused_or_give_one_pixel(folder, capsys, value):
    assert run(*COMPOSE, "--scale", value) == (0 if value == "1e-300" else 2)
    assert "Traceback" not in capsys.readouterr().err


def test_coordinates_may_be_negative(folder):
    assert run(*COMPOSE, "--at", "-30,-10") == 0
    mask = np.asarray(Image.open("o_mask.png"))
    assert mask[10:30, :18].all() and mask.sum() == 20 * 18 * 255
    assert run(*COMPOSE, "--overwrite", "--at", f"{10**30},{-(10**30)}") == 2


def test_misplaced_and_missing_options_get_a_hint(capsys):
    for call, hint in (
        (["--debug", "models"], "unrecognized arguments: --debug (options of harmony models follow it,"),
        (["image", "a.jpg", "b.png", "--outptu", "c.png"], "-o/--output (did you mean --output?)"),
    ):
        with pytest.raises(SystemExit):
            main(call)
        assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "suggestion"),
    [
        ("--strenght", " (did you mean --strength?)"),
        ("--sidebyside=1", " (did you mean --side-by-side?)"),
        ("--overwrit", " (did you mean --overwrite?)"),  # an abbreviation is not the option
        ("--xyz", ""),
        ("--smoothin", ""),  # an option of `harmony video`
    ],
)
def test_misspelt_options_get_a_suggestion(option, suggestion, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["image", "a.jpg", "b.png", "-o", "c.png", option])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(f"unrecognized arguments: {option}{suggestion}\n")


def test_only_the_values_of_options_are_joined():
    assert join_negative(["a", "-5", "--at", "-5,3", "-o", "-1"]) == ["a", "-5", "--at=-5,3", "-o", "-1"]
    assert join_negative(["--", "--at", "-5"]) == ["--", "--at", "-5"]


def command(*arguments, **options):
    program = [sys.executable, "-m", "harmony_diffusion.cli", *arguments]
    return subprocess.run(program, stderr=subprocess.PIPE, text=True, **options)


def test_a_terminal_without_the_characters_of_a_name_gets_them_escaped(folder):
    result = command(
        *IMAGE[:-1],
        "\u00fc.png",
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        stdout=subprocess.PIPE,
    )
    assert result.returncode == 0 and "Traceback" not in result.stderr
    assert result.stdout == "\\xfc.png\n" and (folder / "\u00fc.png").is_file()


@pytest.mark.parametrize("arguments", [IMAGE, ("--help",), ("models",)], ids=["image", "help", "models"])
def test_a_pipe_that_nobody_reads_is_no_error(folder, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    result = command(*arguments, stdout=writer)
    os.close(writer)
    assert result.returncode == 0 and result.stderr == ""


def test_commands_print_by_the_helpers_of_the_terminal_alone():
    """`print` ends with a traceback where nobody reads its pipe."""
    folder = Path(terminal.__file__).parent
    for path in folder.glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
        names = [node.func.id for node in calls if isinstance(node.func, ast.Name)]
        assert path.name == "terminal.py" or "print" not in names, path.name


def test_names_cannot_control_the_terminal(folder, capsys):
    assert run("image", "no\x1b[31m\nfile.png", "m.png", "-o", "o.png") == 2
    error = capsys.readouterr().err
    assert "\x1b" not in error and len(error.splitlines()) == 1


def test_resize_mask_helps_every_mask(folder):
    mask = Image.open("m.png")
    mask.resize((192, 160), 0).save("m2.png")
    mask.point(lambda value: 255 - value).resize((192, 160), 0).save("r2.png")
    assert run(*IMAGE, "--reference-mask", "r2.png") == 2
    assert run("image", "c.png", "m2.png", *IMAGE[3:], "--reference-mask", "r2.png", "--resize-mask") == 0
    assert run("compose", "c.png", "c.png", "--mask", "m2.png", *IMAGE[3:-1], "p.png") == 2
    assert run("compose", "c.png", "c.png", "--mask", "m2.png", *IMAGE[3:-1], "p.png", "--resize-mask") == 0


@pytest.mark.parametrize("size", [(80, 96), (80, 96, 3)])
def test_swapped_and_inverted_arguments_are_noticed_with_one_line(folder, capsys, size):
    run("image", "m.png", "c.png", *IMAGE[3:])
    lines = [line for line in capsys.readouterr().err.splitlines() if "may be swapped" in line]
    assert len(lines) == 1
    inverted = 255 - np.asarray(Image.open("m.png"))
    inverted = np.broadcast_to(inverted.reshape(80, 96, *[1] * (len(size) - 2)), size)
    Image.fromarray(np.ascontiguousarray(inverted)).save("i.png")
    run("image", "c.png", "i.png", *IMAGE[3:], "--overwrite")
    lines = [line for line in capsys.readouterr().err.splitlines() if "--invert-mask" in line]
    assert len(lines) == 1
    run(*IMAGE, "--overwrite")
    assert capsys.readouterr().err == ""


def test_a_private_data_set_does_not_fail_for_its_counts(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:16, 8:16] = 255
    for name, array in (("composite_images/a_1_1.png", pixels), ("real_images/a.png", pixels)):
        (tmp_path / "HCOCO" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(tmp_path / "HCOCO" / name)
    (tmp_path / "HCOCO" / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "HCOCO" / "masks" / "a_1.png")
    (tmp_path / "HCOCO" / "HCOCO_train.txt").write_text("a_1_1.png\n")
    assert run("data", "check", tmp_path) == 0
    out = capsys.readouterr().out
    assert "note: " in out and "lists 1 samples for train, published are 38545" in out
    assert "1 samples looked at, 0 problems" in out
    (tmp_path / "HCOCO" / "masks" / "a_1.png").write_bytes(b"")
    assert run("data", "check", tmp_path) == 2


@pytest.mark.parametrize("kind", ["array", "array with a channel", "tensor", "list with None"])
def test_reference_masks_are_taken_in_every_form_that_masks_are(kind):
    import torch

    pipe = HarmonizationPipeline(load_model("reinhard"))
    pipe.set_progress_bar_config(disable=True)
    composite = np.random.default_rng(0).integers(0, 256, (80, 96, 3), dtype=np.uint8)
    mask = np.zeros((80, 96), np.uint8)
    mask[20:40, 24:48] = 255
    composites, masks = np.stack([composite] * 2), np.stack([mask] * 2)
    half = mask == 0
    half[:, 60:] = False
    references = {
        "array": np.stack([half] * 2),
        "array with a channel": np.stack([half] * 2)[..., None],
        "tensor": torch.from_numpy(np.stack([half] * 2))[:, None],
        "list with None": [None, half],
    }[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputNote)
        expected = pipe(composite, mask, reference_mask=half, output_type="np").images[0]
        got = pipe(composites, masks, reference_mask=references, output_type="np").images
        whole = pipe(composite, mask, output_type="np").images[0]
    assert np.array_equal(got[1], expected) and not np.array_equal(expected, whole)
    assert np.array_equal(got[0], whole if kind == "list with None" else expected)
    with pytest.raises(InputError, match="reference_mask: there are 1 for 2"):
        pipe(composites, masks, reference_mask=half)


@pytest.mark.parametrize(
    "taken, call",
    [
        ("x_mask.png", "compose c.png c.png --mask x_mask.png -o x.png"),
        ("x_composite.png", "compose cut.png x_composite.png -o x.png"),
        ("x_before_after.png", "image x_before_after.png m.png -o x.png --side-by-side"),
    ],
)
def test_files_beside_the_output_replace_no_input(folder, capsys, taken, call):
    os.link(folder / ("m.png" if "mask" in taken else "c.png"), folder / taken)
    before = (folder / taken).read_bytes()
    assert run(*call.split(), "--model", "reinhard", "--overwrite") == 2
    assert f"{taken}: would replace a file that is read" in capsys.readouterr().err
    assert (folder / taken).read_bytes() == before and new_files(folder) == [taken]


@pytest.mark.parametrize(
    "call",
    [
        "image c.png m.png -o x.png --model LONG",
        "image c.png m.png -o x.png --model LONG --runtime onnx",
        "image c.png m.png -o x.png --model loop",
        "image c.png m.png -o x.png --filters LONG",
        "batch loop out",
        "batch . out --model LONG",
        "export LONG x",
        "export default LONG",
        "export default loop/x",
    ],
)
def test_paths_that_the_system_refuses_are_one_line(folder, capsys, call):
    (folder / "loop").symlink_to("loop")
    assert run(*call.replace("LONG", "n" * 300).split()) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1 and ("too long" in error or "loop" in error)
    assert new_files(folder) == ["loop"]
