"""The page's own code in node, beside the Python library: the same windows, filters and pictures."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from small_models import make_picture

from harmony_diffusion.export.full_size import harmonize_picture, make_thumbnail
from harmony_diffusion.export.runtime import OnnxModel
from harmony_diffusion.highres.windows import window_around

SIZES = [(150, 200), (400, 300), (256, 256), (90, 700), (400, 300)]


def make_masks():
    masks = []
    for number, (height, width) in enumerate(SIZES):
        y, x = np.mgrid[:height, :width]
        radius = min(height, width) * (0.15 + 0.07 * number)
        distance = np.hypot(y - height * 0.6, x - width * (0.2 + 0.15 * number))
        masks.append(((radius - distance) / 3 + 0.5).clip(0, 1).astype(np.float32))
    return masks


@pytest.fixture(scope="module")
def results(web, node, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cases")
    cases = []
    for number, (size, mask) in enumerate(zip(SIZES, make_masks(), strict=True)):
        picture = make_picture(size=size)
        opaque = np.full((*size, 1), 255, np.uint8)
        (folder / f"{number}.rgba").write_bytes(np.concatenate((picture.pixels, opaque), 2).tobytes())
        (folder / f"{number}.mask").write_bytes(mask.tobytes())
        (folder / f"{number}.json").write_text(json.dumps({"width": size[1], "height": size[0]}))
        cases.append((picture, mask, folder / str(number)))
    script = Path(__file__).with_name("run_harmonize.mjs")
    run = subprocess.run([node, str(script), str(web), str(folder)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return OnnxModel(web / "model", threads=1), cases


def test_windows_and_thumbnails_are_the_same(results):
    model, cases = results
    for picture, mask, base in cases:
        rows, columns = window = window_around(mask, model.description.context)
        ours = json.loads(base.with_suffix(".window").read_text())
        assert ours == [rows.start, rows.stop, columns.start, columns.stop]
        expected, _ = make_thumbnail(model, picture.cut(window), mask[window])
        seen = np.fromfile(base.with_suffix(".thumbnail"), np.float32).reshape(expected.shape)
        assert np.abs(seen - expected).max() <= 1e-5


def test_filters_differ_by_at_most_1e_4(results):
    model, cases = results
    for picture, mask, base in cases:
        window = window_around(mask, model.description.context)
        expected = model.predict_filters(*make_thumbnail(model, picture.cut(window), mask[window]))
        filters = np.fromfile(base.with_suffix(".filters"), np.float32).reshape(expected.shape)
        assert np.abs(filters - expected).max() <= 1e-4
        assert np.abs(filters).max() > 0.01


def test_pictures_differ_by_at_most_one_level_and_the_background_not_at_all(results):
    model, cases = results
    for picture, mask, base in cases:
        expected = harmonize_picture(model, picture, mask).pixels.astype(int)
        rgba = np.fromfile(base.with_suffix(".harmonized"), np.uint8).reshape(*picture.size, 4)
        assert np.abs(rgba[..., :3] - expected).max() <= 1
        assert (rgba[..., :3][mask == 0] == picture.pixels[mask == 0]).all()
        assert (rgba[..., 3] == 255).all()
        assert (rgba[..., :3][mask == 1] != picture.pixels[mask == 1]).any()
