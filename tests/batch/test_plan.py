"""Folders, manifests and shards become the same plan wherever they lie and however they are listed."""

import json
import os
import random
import tarfile
import unicodedata

import pytest
from batch_jobs import make_pictures, save_mask
from PIL import Image

from harmony_diffusion.batch import plan as module
from harmony_diffusion.batch.inputs import check_name, find_inputs
from harmony_diffusion.batch.plan import Plan, digest, write_plan
from harmony_diffusion.errors import InputError


def plan_of(source, tmp_path, **options):
    path = tmp_path / "plan.jsonl"
    write_plan(find_inputs(source, **options), path)
    return [json.loads(line) for line in path.read_text().splitlines()]


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (9, 99, 200)).save(path)


def names(entries, *fields):
    return [tuple(entry[field] for field in fields) for entry in entries]


def test_masks_beside_the_pictures(tmp_path):
    for name in ("b.png", "A.jpg", "sub/c.gif"):
        picture(tmp_path / "in" / name)
        save_mask((tmp_path / "in" / name).with_name(f"{name[-5]}_mask.png"))
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    assert names(plan_of(tmp_path / "in", tmp_path), "id", "composite", "mask", "output") == [
        ("A", "A.jpg", "A_mask.png", "A.jpg"),
        ("b", "b.png", "b_mask.png", "b.png"),
        ("sub/c", "sub/c.gif", "sub/c_mask.png", "sub/c.png"),
    ]


def test_masks_in_a_folder_of_their_own(tmp_path):
    for name in ("x.y.jpg", "day/b.png"):
        picture(tmp_path / "in" / name)
    (tmp_path / "masks" / "day").mkdir(parents=True)
    save_mask(tmp_path / "masks" / "x.y.png")
    save_mask(tmp_path / "masks" / "day" / "b_mask.png")
    entries = plan_of(tmp_path / "in", tmp_path, masks=tmp_path / "masks", suffix=".webp")
    assert names(entries, "id", "mask", "output") == [
        ("day/b", "day/b_mask.png", "day/b.webp"),
        ("x.y", "x.y.png", "x.y.webp"),
    ]


def test_layout_of_iharmony4(tmp_path):
    root = tmp_path / "in" / "HCOCO"
    for name in ("composite_images/c1_5_1.jpg", "composite_images/c1_5_2.jpg", "real_images/c1.jpg"):
        picture(root / name)
    (root / "masks").mkdir()
    save_mask(root / "masks" / "c1_5.png")
    assert names(plan_of(tmp_path / "in", tmp_path), "id", "mask") == [
        ("HCOCO/composite_images/c1_5_1", "HCOCO/masks/c1_5.png"),
        ("HCOCO/composite_images/c1_5_2", "HCOCO/masks/c1_5.png"),
    ]


def test_csv_and_json_lines_give_the_same_plan(tmp_path):
    source = make_pictures(tmp_path / "in", 2)
    picture(source / "back.jpg")
    (source / "list.csv").write_text(
        "\ufeffcomposite,mask,foreground,background,strength,output,at,scale,other\r\n"
        'p001.png,p001_mask.png,,,0.5,"made/one.jpg",,,x\r\n'
        "p000.png,p000_mask.png,,,,,,,\r\n"
        ',,p000.png,back.jpg,,,"3,4",0.5,\r\n'
    )
    rows = [
        {"composite": "p001.png", "mask": "p001_mask.png", "strength": 0.5, "output": "made/one.jpg"},
        {"composite": "./p000.png", "mask": "p000_mask.png", "other": 1},
        {"foreground": "p000.png", "background": "back.jpg", "at": [3, 4], "scale": 0.5},
    ]
    (source / "list.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    entries = plan_of(source / "list.csv", tmp_path)
    assert entries == plan_of(source / "list.jsonl", tmp_path)
    assert names(entries, "id", "output") == [
        ("made/one", "made/one.jpg"),
        ("p000", "p000.png"),
        ("p000_on_back", "p000_on_back.jpg"),
    ]
    assert entries[0]["strength"] == 0.5 and entries[2]["at"] == [3, 4] and entries[2]["scale"] == 0.5


def test_manifest_elsewhere_with_root(tmp_path):
    source = make_pictures(tmp_path / "in", 1)
    (tmp_path / "list.csv").write_text("composite,mask\np000.png,p000_mask.png\n")
    with pytest.raises(InputError, match="p000.png: cannot be read"):
        plan_of(tmp_path / "list.csv", tmp_path)
    assert len(plan_of(tmp_path / "list.csv", tmp_path, root=source)) == 1


def test_tar_shards(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("b.tar", "a.tar"):
        tarfile.open(tmp_path / "in" / name, "w").close()
    assert names(plan_of(tmp_path / "in", tmp_path), "id", "output") == [("a", "a.tar"), ("b", "b.tar")]
    assert names(plan_of(tmp_path / "in" / "a.tar", tmp_path), "id") == [("a",)]


@pytest.mark.parametrize("first, second", [("a.jpg", "a.png"), ("Ä.png", "a\u0308.PNG"), ("B.png", "b.png")])
def test_results_of_the_same_name_are_refused(tmp_path, first, second):
    folder = tmp_path / "in"
    for name, stem in ((first, first[:-4]), (second, unicodedata.normalize("NFC", second[:-4]) + "2")):
        picture(folder / name)
        save_mask(folder / f"{stem}_m.png")
    rows = [{"composite": name, "mask": next(folder.glob("*_m.png")).name} for name in (first, second)]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="have the same name"):
        plan_of(folder / "list.jsonl", tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../x.png",
        "a/../../x.png",
        "/etc/x.png",
        "..\\x.png",
        "C:\\x.png",
        "a\0b.png",
        "",
        ".",
        ".harmony/x.png",
    ],
)
def test_names_that_leave_their_folder_are_refused(tmp_path, name):
    with pytest.raises(ValueError):
        check_name(name, "output")
    source = make_pictures(tmp_path / "in", 1)
    row = {"composite": "p000.png", "mask": "p000_mask.png", "output": name}
    (source / "list.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match="line 1: output"):
        plan_of(source / "list.jsonl", tmp_path)


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"composite": "p000.png"}, "needs composite and mask"),
        ({"composite": "p000.png", "mask": "p000_mask.png", "strength": 2}, "strength is 2"),
        ({"composite": "p000.png", "mask": "p000_mask.png", "strength": "nan"}, "strength is 'nan'"),
        ({"foreground": "p000.png", "background": "p000.png", "at": "3"}, "at is '3'"),
        ({"composite": "p000.png", "mask": "p000_mask.png", "output": "x.gif"}, "no suffix of a picture"),
        (["p000.png"], "is no JSON object"),
        ({"composite": "p000.png", "mask": "p000_mask.png", "strength": 10**400}, "strength is 1000"),
        ({"composite": "p000.png", "mask": "p000_mask.png", "strength": True}, "strength is True"),
        ({"composite": "p000.png", "mask": "p000_mask.png", "stength": 0.5}, "did you mean 'strength'"),
        ({"composite": "\ud800.png", "mask": "p000_mask.png"}, "holds characters that no file name has"),
        ({"foreground": "p000.png", "background": "p000.png", "at": [float("inf"), 0]}, "Infinity"),
        ({"foreground": "p000.png", "background": "p000.png", "at": [1.7, 2.9]}, "at is"),
        ({"foreground": "p000.png", "background": "p000.png", "at": {"1": 0, "2": 0}}, "at is"),
        ({"foreground": "p000.png", "background": "p000.png", "prompt": 3}, "prompt is 3"),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path, row, reason):
    source = make_pictures(tmp_path / "in", 1)
    (source / "list.jsonl").write_text(json.dumps(row))
    with pytest.raises(InputError, match=f"line 1: .*{reason}"):
        plan_of(source / "list.jsonl", tmp_path)


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("l.jsonl", "[" * 200_000, "nested too deeply"),
        ("l.jsonl", '{"mask": "a.png", "mask": "b.png"}', "more than one key mask"),
        ("l.csv", "composite,mask,mask\n", "more than one column mask"),
        ("l.csv", "composite,mask,Strength\n", "did you mean 'strength'"),
        ("l.csv", "composite,mask,at\na.png,b.png,3,4\n", "more values than columns"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        plan_of(tmp_path / name, tmp_path)
    assert reason in str(caught.value)


def test_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    source = make_pictures(tmp_path / "in", 1)
    make_pictures(source / "secret", 1)
    scan = os.scandir

    def deny(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(InputError, match="secret: cannot be read: Permission denied"):
        plan_of(source, tmp_path)


def test_shards_beside_pictures_are_refused_and_folders_are_no_shards(tmp_path):
    source = make_pictures(tmp_path / "in", 1)
    (source / "d.tar").mkdir()
    assert len(plan_of(source, tmp_path)) == 1
    tarfile.open(source / "s.tar", "w").close()
    with pytest.raises(InputError, match="tar shards such as s.tar and pictures such as p000"):
        plan_of(source, tmp_path)


def test_all_missing_masks_are_counted(tmp_path):
    source = make_pictures(tmp_path / "in", 9)
    for path in source.glob("*_mask.png"):
        path.unlink()
    with pytest.raises(InputError, match="has no mask; .*and 4 more"):
        plan_of(source, tmp_path)


def test_sorting_in_runs_gives_what_sorting_at_once_gives(tmp_path, monkeypatch):
    source = make_pictures(tmp_path / "in", 1)
    order = list(range(200))
    random.Random(0).shuffle(order)
    rows = ({"composite": "p000.png", "mask": "p000_mask.png", "output": f"o{i:03d}.png"} for i in order)
    (source / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    at_once = plan_of(source / "list.jsonl", tmp_path)
    monkeypatch.setattr(module, "_SORTED_AT_ONCE", 7)
    assert plan_of(source / "list.jsonl", tmp_path) == at_once
    assert [entry["id"] for entry in at_once] == [f"o{i:03d}" for i in range(200)]
    plan = Plan(tmp_path / "plan.jsonl", 64)
    assert (len(plan), plan.shards, len(plan.read(3))) == (200, 4, 8)
    assert plan.entry(130)["id"] == "o130" and len({digest(line) for line in plan.lines()}) == 200


def test_names_with_line_breaks_are_sorted_in_runs_too(tmp_path, monkeypatch):
    source = tmp_path / "in"
    for i in range(5):
        picture(source / f"a\n{i}.png")
        save_mask(source / f"a\n{i}_mask.png")
    at_once = plan_of(source, tmp_path)
    monkeypatch.setattr(module, "_SORTED_AT_ONCE", 2)
    assert plan_of(source, tmp_path) == at_once and len(at_once) == 5


@pytest.mark.parametrize(
    "outputs, reason",
    [
        (["manifest.jsonl/a.png"], "a name the job itself needs"),
        (["Errors.jsonl/a.png"], "a name the job itself needs"),
        (["./.harmony/x.png"], "the folder of the job's state"),
        (["x.png", "X.png/y.png"], "an output and of the folder of another"),
        (["x" * 300 + ".png"], "the file name is too long"),
        (["\ud800.png"], "characters that no file name has"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_by_the_plan(tmp_path, outputs, reason):
    source = make_pictures(tmp_path / "in", 1)
    rows = [{"composite": "p000.png", "mask": "p000_mask.png", "output": name} for name in outputs]
    (source / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=reason):
        plan_of(source / "list.jsonl", tmp_path)
