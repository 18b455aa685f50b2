import csv

import cv2
import numpy as np
import pytest
from PIL import Image

from harmony_diffusion.app.auto_mask import find_object
from harmony_diffusion.errors import MaskError


def iou(found, wanted):
    return (found & wanted).sum() / (found | wanted).sum()


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    pixels = np.clip(rng.normal((70, 110, 160), 12, (120, 160, 3)), 0, 255).astype(np.uint8)
    wanted = np.zeros((120, 160), np.uint8)
    cv2.ellipse(wanted, (90, 60), (30, 20), 20, 0, 360, 1, -1)
    pixels[wanted > 0] = np.clip(rng.normal((200, 90, 60), 12, (wanted.sum(), 3)), 0, 255)
    return pixels, wanted > 0


def test_a_box_finds_the_object_and_the_same_box_finds_the_same(scene):
    pixels, wanted = scene
    mask = find_object(pixels, (0.3, 0.2, 0.85, 0.8))
    assert mask.dtype == np.float32 and mask.shape == wanted.shape and 0 <= mask.min() and mask.max() <= 1
    assert iou(mask > 0.5, wanted) > 0.93
    np.testing.assert_array_equal(mask, find_object(pixels, (0.85, 0.8, 0.3, 0.2)))


def test_strokes_alone_find_it_at_any_size_of_the_drawing(scene):
    pixels, wanted = scene
    inside, outside = np.zeros((60, 80), bool), np.zeros((60, 80), bool)
    inside[28:32, 40:50] = True
    outside[4:8, 4:70] = outside[50:54, 4:70] = True
    assert iou(find_object(pixels, None, inside, outside) > 0.5, wanted) > 0.85


def test_a_stroke_outside_takes_a_part_away(scene):
    pixels, _ = scene
    pixels = pixels.copy()
    pixels[90:105, 10:30] = pixels[52:67, 80:100]
    box = (0.04, 0.1, 0.95, 0.95)
    both = find_object(pixels, box, largest=False)
    stroke = np.zeros((120, 160), bool)
    stroke[95:100, 12:28] = True
    assert both[97, 20] > 0.5 > find_object(pixels, box, None, stroke, largest=False)[97, 20]
    assert find_object(pixels, box)[97, 20] == 0  # only the largest part


def test_what_cannot_be_found_is_an_error(scene):
    pixels, _ = scene
    with pytest.raises(MaskError, match="neither a box nor a stroke"):
        find_object(pixels)
    with pytest.raises(MaskError, match="nearly the whole picture"):
        find_object(pixels, (0, 0, 1, 1))
    with pytest.raises(MaskError, match="tighter box"):
        find_object(pixels, (0.5, 0.5, 0.5, 0.5))


@pytest.mark.slow
def test_w6_photographs(shared):
    with (shared / "data/photos/index.csv").open() as index:
        rows = [
            row
            for row in csv.DictReader(index)
            if row["split"] == "test" and "pseudo" not in row["mask_origin"]
        ]
    boxes, strokes = [], []
    for row in rows[:: len(rows) // 60][:60]:
        path = shared / "data/photos" / row["source"] / row["id"]
        pixels = np.asarray(Image.open(path.with_suffix(".jpg")).convert("RGB"))
        wanted = np.asarray(Image.open(path.with_suffix(".png")).convert("L")) > 127
        height, width = wanted.shape
        rows_in, columns_in = np.nonzero(wanted)
        box = (
            (columns_in.min() - 4) / width,
            (rows_in.min() - 4) / height,
            (columns_in.max() + 5) / width,
            (rows_in.max() + 5) / height,
        )
        found = find_object(pixels, box) > 0.5
        boxes.append(iou(found, wanted))
        drawn = [stroke_through(region & (found != wanted)) & region for region in (wanted, ~wanted)]
        strokes.append(iou(find_object(pixels, box, *drawn) > 0.5, wanted))
    assert np.mean(boxes) >= 0.70 and np.mean(strokes) >= 0.75


def stroke_through(wrong):
    """Draw a short stroke where most is wrong, as a visitor does."""
    stroke = np.zeros(wrong.shape, np.uint8)
    if wrong.any():
        depth = cv2.distanceTransform(np.pad(wrong, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        row, column = np.unravel_index(depth.argmax(), depth.shape)
        cv2.line(stroke, (int(column) - 12, int(row)), (int(column) + 12, int(row)), 1, 5)
    return stroke > 0
