import csv
import json
import runpy
import sys
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_open_images import WHOLE, draw, save_open_images

from harmony_diffusion.data.check import check_dataset
from harmony_diffusion.data.instances import Limits, Measure, in_random_order, measure_file, measure_mask
from harmony_diffusion.data.layouts import detect_layout, list_dataset
from harmony_diffusion.data.record_files import append_records, read_records
from harmony_diffusion.errors import InputError

SCRIPT = Path(__file__).resolve().parents[2] / "train" / "prepare_open_images.py"
# Image, label, box number, box, predicted quality, flags of the box, rotation, kind of mask.
OBJECTS = (
    ("000a1249af2bc5f0", "m01yrx", "1", WHOLE, "0.85", "000", "0.0", "disc"),
    ("000a1249af2bc5f0", "m0dzct", "2", WHOLE, "", "000", "0.0", "disc"),
    ("001000000000000a", "m01yrx", "3", WHOLE, "0.90", "000", "0.0", "disc"),
    ("002000000000000b", "m01g317", "4", WHOLE, "0.40", "000", "0.0", "disc"),
    ("003000000000000c", "m01g317", "5", WHOLE, "0.90", "100", "0.0", "disc"),
    ("004000000000000d", "m01g317", "6", WHOLE, "0.90", "000", "90.0", "disc"),
    ("005000000000000e", "m01g317", "7", (0.1, 0.15, 0.1, 0.15), "0.90", "000", "", "disc"),
    ("006000000000000f", "m01g317", "8", WHOLE, "0.90", "000", "", "speck"),
    ("007000000000000a", "m01g317", "9", (0.0, 1.0, 0.0, 1.0), "0.90", "000", "", "frame"),
    ("008000000000000b", "m01g317", "a", WHOLE, "0.90", "000", "", "two"),
    ("009000000000000c", "m01g317", "b", WHOLE, "0.90", "000", "", "band"),
    ("00a000000000000d", "m01g317", "c", WHOLE, "0.90", "010", "", "disc"),
    ("100000000000000e", "m01yrx", "d", WHOLE, "0.90", "000", "", "disc"),
    ("110000000000000f", "m01yrx", "e", WHOLE, "0.90", "001", "", "disc"),
    ("f00000000000000f", "m01yrx", "f", WHOLE, "0.90", "000", "", "disc"),
)
GOOD = ["000a1249af2bc5f0", "000a1249af2bc5f0", "001000000000000a", "100000000000000e"]


@pytest.fixture
def photographs():
    return {
        image: np.full((48, 64, 3), 10 * number, np.uint8)
        for number, image in enumerate(dict.fromkeys(row[0] for row in OBJECTS))
    }


@pytest.fixture
def folder(tmp_path):
    """Tables and mask archives of the training split as published, and no photographs."""
    return save_open_images(tmp_path / "open_images", "train", OBJECTS)


def prepare(monkeypatch, root, *options):
    arguments = [SCRIPT, "--data", root, "--workers", 0, "--shards", 0, 1, 15, *options]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def rows_of(root, split="train"):
    with (root / f"manifest-{split}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def write_photographs(root, photographs):
    (root / "train").mkdir()
    for image, pixels in photographs.items():
        Image.fromarray(pixels).save(root / "train" / f"{image}.jpg")


def test_good_masks_are_listed_and_the_others_counted(folder, monkeypatch):
    prepare(monkeypatch, folder, "--shards", 0, 1)
    rows = rows_of(folder)
    assert [row["ImageID"] for row in rows] == GOOD
    assert rows[0]["Label"] == "Cat" and rows[1]["Label"] == "Human face"
    assert (rows[0]["Author"], rows[0]["License"][-7:]) == ("Doe, Jane", "by/2.0/")
    assert float(rows[0]["Area"]) == pytest.approx(np.pi * 20**2 / 7500, rel=0.02)
    facts = json.loads((folder / "manifest-train.json").read_text())
    assert facts["left_out"] == {
        "IsDepiction": 1,
        "IsGroupOf": 1,
        "IsInside": 1,
        "border": 1,
        "large": 1,
        "poor mask": 1,
        "rotated": 1,
        "scattered": 1,
        "small": 2,
    }
    assert (facts["masks"], facts["images"]) == (4, 3)
    listed = (folder / "photographs-train.txt").read_text().split()
    assert listed == [f"train/{image}" for image in dict.fromkeys(GOOD)]
    assert (folder / "urls-train.txt").read_text() == ""


def test_limits_can_be_widened(folder, monkeypatch):
    options = ("--keep", "IsGroupOf", "IsDepiction", "IsInside", "--least_iou", 0, "--most_area", 1)
    prepare(monkeypatch, folder, "--shards", 0, 1, *options, "--most_sides", 4, "--least_largest_part", 0)
    left_out = json.loads((folder / "manifest-train.json").read_text())["left_out"]
    assert left_out == {"rotated": 1, "small": 2} and len(rows_of(folder)) == 11


def test_the_table_of_boxes_is_not_needed_where_nothing_of_it_is(folder, monkeypatch):
    (folder / "oidv6-train-annotations-bbox.csv").unlink()
    with pytest.raises(SystemExit, match=r"lacks oidv6-train-annotations-bbox\.csv"):
        prepare(monkeypatch, folder, "--shards", 0)
    prepare(monkeypatch, folder, "--shards", 0, "--keep", "IsGroupOf", "IsDepiction", "IsInside")
    assert "003000000000000c" in {row["ImageID"] for row in rows_of(folder)}


def test_an_empty_folder_is_told_what_it_needs(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="urls-train.txt"):
        prepare(monkeypatch, tmp_path / "new", "--shards", 0, 10)
    base = "https://storage.googleapis.com/openimages"
    assert (tmp_path / "new" / "urls-train.txt").read_text().split() == [
        f"{base}/v5/train-annotations-object-segmentation.csv",
        f"{base}/2018_04/train/train-images-boxable-with-rotation.csv",
        f"{base}/v6/oidv6-train-annotations-bbox.csv",
        f"{base}/v5/class-descriptions-boxable.csv",
        f"{base}/v5/train-masks/train-masks-0.zip",
        f"{base}/v5/train-masks/train-masks-a.zip",
    ]
    with pytest.raises(SystemExit):
        prepare(monkeypatch, tmp_path / "new", "--split", "test", "--shards", *range(16))
    urls = (tmp_path / "new" / "urls-test.txt").read_text().split()
    assert f"{base}/2018_04/test/test-images-with-rotation.csv" in urls
    assert f"{base}/v5/test-annotations-bbox.csv" in urls and len(urls) == 20


def test_single_images_are_counted_before_anything_is_left_out(folder, monkeypatch):
    prepare(monkeypatch, folder, "--shards", 0, 1, "--single")
    assert [row["ImageID"] for row in rows_of(folder)] == ["001000000000000a", "100000000000000e"]
    assert json.loads((folder / "manifest-train.json").read_text())["left_out"]["several masks"] == 2


def test_a_count_is_a_sample_by_the_seed_alone(folder, monkeypatch, capsys):
    images = {}
    for seed in range(6):
        prepare(monkeypatch, folder, "--count", 2, "--seed", seed)
        images[seed] = {row["ImageID"] for row in rows_of(folder)}
        assert len(images[seed]) == 2
    assert len({frozenset(chosen) for chosen in images.values()}) > 1
    (folder / "measures-train.jsonl").unlink()
    table = folder / "train-annotations-object-segmentation.csv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *reversed(rows)]) + "\n")
    prepare(monkeypatch, folder, "--count", 2, "--seed", 3)
    assert {row["ImageID"] for row in rows_of(folder)} == images[3]
    prepare(monkeypatch, folder, "--count", 9)
    assert "only 4 such images, not 9" in capsys.readouterr().out


def test_ids_take_exactly_the_masks_of_the_paper_without_any_limit(folder, tmp_path, monkeypatch):
    # One object each, though one mask is poor, one is a speck and one is cut by all sides.
    ids = ["002000000000000b_m01g317_4", "006000000000000f_m01g317_8", "f00000000000000f_m01yrx_f"]
    listing = tmp_path / "ids.txt"
    listing.write_text("\n".join(ids) + "\n")
    prepare(monkeypatch, folder, "--ids", listing)
    assert [row["MaskPath"].removesuffix(".png") for row in rows_of(folder)] == ids
    facts = json.loads((folder / "manifest-train.json").read_text())
    assert facts["masks"] == 3 and facts["left_out"] == {} and len(facts["settings"]["ids"]) == 64
    assert len((folder / "photographs-train.txt").read_text().split()) == 3
    listing.write_text("002000000000000b_m01g317_4\nnobody\n")
    with pytest.raises(SystemExit, match="names 2 masks, of which 1 are here"):
        prepare(monkeypatch, folder, "--ids", listing)
    with pytest.raises(SystemExit):
        prepare(monkeypatch, folder, "--ids", listing, "--single")


def test_a_killed_job_goes_on_and_ends_with_the_same_manifest(folder, monkeypatch):
    prepare(monkeypatch, folder)
    log, expected = folder / "measures-train.jsonl", (folder / "manifest-train.csv").read_bytes()
    lines = log.read_bytes().splitlines(keepends=True)
    assert len(lines) == 9
    # Killed in the middle of a line. A measure that is kept is not taken again: it is wrong on purpose.
    kept = json.loads(lines[0])
    log.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    prepare(monkeypatch, folder)
    assert (folder / "manifest-train.csv").read_bytes() == expected
    assert sorted(log.read_bytes().splitlines(keepends=True)) == sorted(lines)
    log.write_text(json.dumps({**kept, "measure": [0.9, 0, 1.0]}) + "\n")
    prepare(monkeypatch, folder)
    assert kept["mask"] not in {row["MaskPath"] for row in rows_of(folder)}


def test_unpacked_masks_serve_as_well_as_archives(folder, monkeypatch):
    prepare(monkeypatch, folder)
    expected = (folder / "manifest-train.csv").read_bytes()
    (folder / "measures-train.jsonl").unlink()
    for digit in "01f":
        archive = folder / f"train-masks-{digit}.zip"
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder / f"train-masks-{digit}")
        archive.unlink()
    prepare(monkeypatch, folder)
    assert (folder / "manifest-train.csv").read_bytes() == expected
    assert (folder / "urls-train.txt").read_text() == ""


def test_processes_measure_the_same(folder, monkeypatch):
    prepare(monkeypatch, folder)
    expected = (folder / "manifest-train.csv").read_bytes()
    (folder / "measures-train.jsonl").unlink()
    prepare(monkeypatch, folder, "--workers", 2)
    assert (folder / "manifest-train.csv").read_bytes() == expected


def test_masks_that_are_missing_or_damaged_are_left_out(folder, monkeypatch):
    archive = folder / "train-masks-1.zip"
    archive.unlink()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("110000000000000f_m01yrx_e.png", b"no picture")
    prepare(monkeypatch, folder, "--keep", "IsInside")
    left_out = json.loads((folder / "manifest-train.json").read_text())["left_out"]
    assert left_out["missing"] == 1 and left_out["unreadable"] == 1
    archive.write_bytes(b"half an archive")
    with pytest.raises(SystemExit, match=r"train-masks-1\.zip: cannot be read"):
        prepare(monkeypatch, folder)


def test_the_manifest_is_a_data_set(folder, photographs, monkeypatch):
    prepare(monkeypatch, folder, "--shards", 0, 1)
    manifest = folder / "manifest-train.csv"
    assert detect_layout(manifest) == "manifest"
    with pytest.raises(InputError, match="is missing"):
        list_dataset(manifest)
    write_photographs(folder, photographs)
    listed = list_dataset(manifest).photographs
    assert [photograph.picture.stem for photograph in listed] == GOOD
    assert listed[0].record["Author"] == "Doe, Jane" and listed[0].subset == "/m/01yrx"
    report = check_dataset(manifest)
    assert (report.count, report.problems) == (4, [])
    (folder / "train" / f"{GOOD[2]}.jpg").unlink()
    problems = []
    assert len(list_dataset(manifest, problems=problems).photographs) == 3 and len(problems) == 1
    prepare(monkeypatch, folder, "--shards", 0, 1)
    assert (folder / "photographs-train.txt").read_text() == f"train/{GOOD[2]}\n"


def test_photographs_are_downloaded_when_asked_and_only_once(folder, photographs, tmp_path, monkeypatch):
    mirror, asked = tmp_path / "mirror", []
    mirror.mkdir()
    write_photographs(mirror, photographs)
    (mirror / "train" / f"{GOOD[0]}.jpg").unlink()
    whole = (mirror / "train" / f"{GOOD[2]}.jpg").read_bytes()
    (mirror / "train" / f"{GOOD[2]}.jpg").write_bytes(whole[:-30])

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=mirror))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ("--shards", 0, 1, "--mirror", f"http://127.0.0.1:{server.server_port}")
    try:
        prepare(monkeypatch, folder, *options)
        assert not asked and not (folder / "train").exists()
        with pytest.raises(SystemExit, match="2 of 3 photographs did not come: .*404.*no whole JPEG"):
            prepare(monkeypatch, folder, *options, "--download")
        assert [path.stem for path in (folder / "train").iterdir()] == [GOOD[3]]
        assert (folder / "photographs-train.txt").read_text() == f"train/{GOOD[0]}\ntrain/{GOOD[2]}\n"
        (mirror / "train" / f"{GOOD[2]}.jpg").write_bytes(whole)
        (mirror / "train" / f"{GOOD[0]}.jpg").write_bytes(whole)
        asked.clear()
        prepare(monkeypatch, folder, *options, "--download")
    finally:
        server.shutdown()
        server.server_close()
    assert sorted({path for path in asked if path.startswith("/")}) == [
        f"/train/{GOOD[0]}.jpg",
        f"/train/{GOOD[2]}.jpg",
    ]
    assert (folder / "photographs-train.txt").read_text() == ""
    assert check_dataset(folder / "manifest-train.csv").problems == []


@pytest.mark.parametrize("options", [("--shards", 16), ("--count", 0)])
def test_bad_options_are_refused(folder, monkeypatch, options):
    with pytest.raises(SystemExit):
        prepare(monkeypatch, folder, *options)


def test_nothing_that_fits_is_an_error(folder, monkeypatch):
    with pytest.raises(SystemExit, match="has no mask that fits: .*'small': 9"):
        prepare(monkeypatch, folder, "--least_area", 0.59)


def test_masks_are_measured():
    assert measure_mask(draw("disc")) == Measure(pytest.approx(np.pi * 20**2 / 7500, rel=0.02), 0, 1.0)
    assert measure_mask(draw("two")) == Measure(450 / 7500, 0, 0.5)
    assert measure_mask(draw("band")).sides == 4
    assert measure_mask(np.zeros((5, 7), np.uint8)) == Measure(0.0, 0, 0.0)
    assert measure_mask(np.full((5, 7), 255, np.uint8)) == Measure(1.0, 4, 1.0)
    large = np.kron(draw("two"), np.ones((20, 20), np.uint8))
    assert measure_mask(large) == Measure(450 / 7500, 0, pytest.approx(0.5, abs=0.01))
    assert measure_file(Path("/nowhere/mask.png")) == "does not exist"


@pytest.mark.parametrize(
    "measure, fault",
    [
        (Measure(0.2, 2, 1.0), ""),
        (Measure(0.009, 0, 1.0), "small"),
        (Measure(0.61, 0, 1.0), "large"),
        (Measure(0.2, 3, 1.0), "border"),
        (Measure(0.2, 0, 0.79), "scattered"),
    ],
)
def test_limits_name_the_fault(measure, fault):
    assert Limits().fault(measure) == fault


def test_random_order_is_that_of_each_name():
    names = [f"{number:04}" for number in range(300)]
    order = in_random_order(names, 7)
    assert order != in_random_order(names, 8) and sorted(order) == names
    assert in_random_order(names[::-2], 7) == [name for name in order if name in names[::-2]]


def test_records_survive_a_torn_line(tmp_path):
    path = tmp_path / "records.jsonl"
    append_records(path, [{"a": 1}, {"a": "é\n"}])
    with path.open("ab") as file:
        file.write(b'{"a": 3' + b"x" * 9000)
    assert list(read_records(path)) == [{"a": 1}, {"a": "é\n"}]
    append_records(path, [{"a": 4}])
    assert [record["a"] for record in read_records(path)] == [1, "é\n", 4]
    path.write_text("[1]\n")
    with pytest.raises(InputError, match="records.jsonl:1: is not a JSON object"):
        list(read_records(path))
    path.write_text("{\n")
    with pytest.raises(InputError, match="is not JSON:"):
        list(read_records(path))
