"""`eval/harmonizer_tables.sh`: from two benchmarks and two pipelines to one table."""

import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_training import ROOT, run, save_base, save_photographs


def save_benchmark(folder, photographs):
    """Write two kinds of composites of two photographs in the layout of iHarmony4."""
    for kind, gain in (("HLight", 0.7), ("HTransfer", 1.2)):
        for part in ("composite_images", "masks", "real_images"):
            (folder / kind / part).mkdir(parents=True)
        names = []
        for number in ("8", "9"):
            source = photographs / "made" / number
            real = np.asarray(Image.open(source.with_suffix(".jpg")))
            mask = np.asarray(Image.open(source.with_suffix(".png")))[..., None] > 127
            composite = np.where(mask, (gain * real).clip(0, 255), real).astype(np.uint8)
            Image.fromarray(real).save(folder / kind / "real_images" / f"p{number}.png")
            Image.fromarray(composite).save(folder / kind / "composite_images" / f"p{number}_1_1.png")
            shutil.copy(source.with_suffix(".png"), folder / kind / "masks" / f"p{number}_1.png")
            names.append(f"{kind}/composite_images/p{number}_1_1.png")
        (folder / kind / f"{kind}_test.txt").write_text("".join(f"{n.rsplit('/', 1)[1]}\n" for n in names))
    return folder


@pytest.mark.slow
def test_one_command_compares_all_methods_and_resumes(tmp_path):
    photographs = save_photographs(tmp_path / "photographs")
    benchmark = save_benchmark(tmp_path / "benchmark", photographs)
    base = save_base(tmp_path / "tiny")
    command = [
        "bash",
        ROOT / "eval" / "harmonizer_tables.sh",
        benchmark,
        benchmark,
        tmp_path / "out",
        base,
        base,
    ]
    options = {"STEPS": "1", "DUAL_STEPS": "1", "TIMED": "1", "LIMIT": "2", "JOBS": "1"}
    run(command, **options)
    text = (tmp_path / "out" / "table.md").read_text()
    assert "not run" in text.splitlines()[2] and text.count("not run") == 2 * 2
    for name in ("in_place", "relocated"):
        assert f"| {name} | identity | 4 |" in text
        for method in ("color_grid", "mini_dual_controlnet", "mini_harmonizer", "mini_harmonizer_4_steps"):
            assert f"| {name} | {method} | 4 |" in text
            assert f"| {name} | {method} | HLight | 2 |" in text
    (tmp_path / "out" / "table.md").unlink()
    run(command, **options)
    assert (tmp_path / "out" / "table.md").read_text() == text
