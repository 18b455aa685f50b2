"""Every layout, as a generated miniature in its published form and, where it is at hand, for real."""

import csv
import hashlib
import json
import logging
import zipfile

import numpy as np
import pytest
from PIL import Image
from tiny_pictures import disc, picture

from harmony_diffusion.cli import main
from harmony_diffusion.data.folders import read_folders, read_json_lines
from harmony_diffusion.data.iharmony4 import PUBLISHED, count_problems, read_iharmony4
from harmony_diffusion.data.layouts import detect_layout, list_dataset
from harmony_diffusion.data.open_images import read_open_images, select_open_images
from harmony_diffusion.data.photographs import parse_filters, read_photographs, subset_weights
from harmony_diffusion.errors import DecodeError, InputError, MaskError, SizeMismatchError
from harmony_diffusion.images.quick_decoding import read_mask, read_pair, read_picture


def test_photographs_keep_their_record(photographs_folder):
    assert detect_layout(photographs_folder) == "photographs"
    photographs = list_dataset(photographs_folder, "train").photographs
    assert [p.subset for p in photographs] == ["street"] * 6 + ["food"] * 2
    assert photographs[6].name == "food/p.6" and photographs[6].record["licence"] == "CC0 1.0"
    pixels, mask = read_pair(photographs[0].picture, photographs[0].mask)
    assert pixels.shape == (48, 64, 3) and np.array_equal(mask, disc(center=(20, 28)))


def test_photographs_are_filtered(photographs_folder):
    filters = parse_filters(["licence_class=permissive,public", "source=food"])
    assert [p.name for p in read_photographs(photographs_folder, "train", filters)] == [
        "food/p.6",
        "food/p.7",
    ]
    assert len(read_photographs(photographs_folder, None)) == 9
    with pytest.raises(InputError, match="has no row with licence_class=free split=train"):
        read_photographs(photographs_folder, "train", {"licence_class": ["free"]})
    with pytest.raises(InputError, match="has no column colour"):
        read_photographs(photographs_folder, "train", {"colour": ["red"]})
    with pytest.raises(InputError, match="is not a filter"):
        parse_filters(["licence_class"])


def test_a_photograph_listed_twice_is_taken_once(photographs_folder, caplog):
    index = photographs_folder / "index.csv"
    index.write_text(index.read_text() + "street,p.0,train,CC0 1.0,research\n")
    problems = []
    assert len(read_photographs(photographs_folder, "train", problems=problems)) == 8
    assert problems == [(str(index), "street/p.0 is listed twice")]
    with caplog.at_level(logging.WARNING):
        read_photographs(photographs_folder)
    assert "street/p.0 is listed twice" in caplog.text


def test_subset_weights_lift_small_subsets():
    subsets = ["a"] * 16 + ["b"] * 4
    weights = subset_weights(subsets, power=0.5)
    assert sum(weights[:16]) == pytest.approx(2 * sum(weights[16:]))
    assert sum(weights) == pytest.approx(20)
    assert subset_weights(subsets, power=1.0) == [1.0] * 20
    doubled = subset_weights(subsets, 0.5, {"b": 2.0})
    assert sum(doubled[16:]) == pytest.approx(sum(doubled[:16]))
    with pytest.raises(InputError, match="c: is not a subset; subsets are a, b"):
        subset_weights(subsets, factors={"c": 1.0})


def test_iharmony4(iharmony4_folder):
    assert detect_layout(iharmony4_folder) == "iharmony4"
    samples = list_dataset(iharmony4_folder, "test").samples
    assert [s.name for s in samples] == [
        "c100_318219_1",
        "c100_318219_2",
        "c7_5_1",
        "d1048-20120628-200951_1_3",
    ]
    last = samples[-1]
    assert (last.subset, last.mask.name, last.real.name) == (
        "Hday2night",
        "d1048-20120628-200951_1.png",
        "d1048-20120628-200951.jpg",
    )
    for sample in samples:
        assert read_pair(sample.composite, sample.mask)[0].shape == read_picture(sample.real).shape


def test_iharmony4_lists_with_byte_order_mark_crlf_and_doubles(iharmony4_folder, caplog):
    path = iharmony4_folder / "HCOCO" / "HCOCO_test.txt"
    text = "\r\n".join((*path.read_text().split(), "", " c7_5_1.jpg ", ""))
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    problems = []
    samples = read_iharmony4(iharmony4_folder, "test", problems)
    assert [s.name for s in samples[:3]] == ["c100_318219_1", "c100_318219_2", "c7_5_1"] and len(samples) == 4
    assert problems == [(f"{path}:5", f"c7_5_1.jpg is already listed in {path}:3")]
    with caplog.at_level(logging.WARNING):
        assert len(read_iharmony4(iharmony4_folder, "test")) == 4
    assert "is already listed in" in caplog.text


def test_iharmony4_by_the_merged_list(iharmony4_folder):
    expected = read_iharmony4(iharmony4_folder, "test")
    for path in iharmony4_folder.glob("*/*_test.txt"):
        path.unlink()
    assert read_iharmony4(iharmony4_folder, "test") == expected
    with pytest.raises(InputError, match="IHD_train"):
        read_iharmony4(iharmony4_folder, "train")


def test_iharmony4_faults_stop_or_are_reported(iharmony4_folder):
    real = iharmony4_folder / "HCOCO" / "real_images" / "c100.jpg"
    real.unlink()
    path = iharmony4_folder / "HCOCO" / "HCOCO_test.txt"
    path.write_text(path.read_text() + "c9.jpg\n")
    with pytest.raises(InputError, match=r"real_images/c100: is missing"):
        read_iharmony4(iharmony4_folder, "test")
    problems = []
    assert len(read_iharmony4(iharmony4_folder, "test", problems)) == 2
    assert [reason.split(",")[0] for _, reason in problems] == [
        "is missing",
        "is missing",
        "the name 'c9.jpg' is not of the form X_m_k",
    ]
    assert (
        count_problems(iharmony4_folder, "test")[0].reason == "lists 4 samples for test, published are 4283"
    )


def test_lists_of_iharmony4_are_compared_with_what_was_published(iharmony4_folder):
    merged = iharmony4_folder / "IHD_test.txt"
    lines = merged.read_text().split()
    merged.write_text("\n".join([*lines[1:], "HFlickr/composite_images/f1_1_1.jpg"]))
    reasons = {p.file.rsplit("/", 1)[1]: [] for p in count_problems(iharmony4_folder, "test")}
    for problem in count_problems(iharmony4_folder, "test"):
        reasons[problem.file.rsplit("/", 1)[1]].append(problem.reason)
    assert reasons["HFlickr"] == ["lists 0 samples for test, published are 828"]
    assert reasons["HAdobe5k"] == ["lists 0 samples for test, published are 2160"]
    assert reasons["IHD_test.txt"] == [
        "1 composites are missing in the lists of the subsets, as HFlickr/f1_1_1.jpg",
        "1 composites are missing in the IHD_test.txt, as HCOCO/c100_318219_1.jpg",
    ]


def test_complete_lists_of_iharmony4_have_no_fault(tmp_path):
    for split in ("train", "test"):
        merged = []
        for subset, counts in PUBLISHED.items():
            names = [f"x{i}_1_1.jpg" for i in range(counts[split])]
            (tmp_path / subset).mkdir(exist_ok=True)
            (tmp_path / subset / f"{subset}_{split}.txt").write_text("\n".join(names))
            merged += [f"{subset}/composite_images/{name}" for name in names]
        (tmp_path / f"IHD_{split}.txt").write_text("\n".join(merged))
        assert count_problems(tmp_path, split) == []
    assert sum(counts["test"] for counts in PUBLISHED.values()) == 7404
    assert sum(counts["train"] for counts in PUBLISHED.values()) == 65742


def test_folders(tmp_path):
    root = tmp_path / "own"
    for name in ("composite", "mask", "real"):
        (root / name).mkdir(parents=True)
    for stem in ("b", "a"):
        Image.fromarray(picture(1)).save(root / "composite" / f"{stem}.jpg")
        Image.fromarray(disc()).save(root / "mask" / f"{stem}.png")
        Image.fromarray(picture(1)).save(root / "real" / f"{stem}.png")
    (root / "composite" / "notes.txt").write_text("not a picture")
    assert detect_layout(root) == "folders"
    samples = list_dataset(root).samples
    assert [(s.name, s.subset, s.real.name) for s in samples] == [
        ("a", "own", "a.png"),
        ("b", "own", "b.png"),
    ]
    (root / "mask" / "a.png").unlink()
    with pytest.raises(InputError, match=r"mask/a: is missing"):
        read_folders(root)
    problems = []
    assert [s.name for s in read_folders(root, problems)] == ["b"] and "mask/a" in problems[0].file
    with pytest.raises(InputError, match="holds no folder mask, real"):
        read_folders(_empty_composites(tmp_path))


def _empty_composites(tmp_path):
    (tmp_path / "half" / "composite").mkdir(parents=True)
    return tmp_path / "half"


def test_json_lines(iharmony4_folder, tmp_path):
    subset = iharmony4_folder / "HCOCO"
    entry = {
        "composite": "HCOCO/composite_images/c7_5_1.jpg",
        "mask": "HCOCO/masks/c7_5.png",
        "real": "HCOCO/real_images/c7.jpg",
    }
    other = {
        **entry,
        "composite": "HCOCO/composite_images/c100_318219_1.jpg",
        "name": "first",
        "prompt": "a cat",
    }
    lines = [json.dumps(entry), "", json.dumps(other), json.dumps(entry), "{", '{"composite": "x"}']
    lines.append(json.dumps({**entry, "real": "HCOCO/real_images/none.jpg"}))
    path = iharmony4_folder / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert detect_layout(path) == "json-lines"
    problems = []
    samples = read_json_lines(path, problems)
    assert [(s.name, s.subset, s.prompt) for s in samples] == [
        ("c7_5_1", "pairs", ""),
        ("first", "pairs", "a cat"),
    ]
    assert samples[0].composite == subset / "composite_images" / "c7_5_1.jpg"
    places = [problem.file for problem in problems]
    missing = str(subset / "real_images" / "none.jpg")
    assert places == [f"{path}:4", f"{path}:5", f"{path}:6", missing]
    with pytest.raises(InputError, match="is not JSON"):
        read_json_lines(path)


HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
INFO = (
    "ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,OriginalSize,"
    "OriginalMD5,Thumbnail300KURL,Rotation"
)


@pytest.fixture
def open_images_folder(tmp_path):
    """Three images of two shards: names, tables and mask archives as they are distributed."""
    root = tmp_path / "open_images"
    (root / "train").mkdir(parents=True)
    (root / "train_1").mkdir()
    rows, archives = [HEADER], {}
    masks = (
        ("000a1249af2bc5f0", "m01yrx", "b1", "0.85"),
        ("000a1249af2bc5f0", "m0dzct", "b2", ""),
        ("1f00000000000001", "m01g317", "b3", "0.40"),
        ("f0aaaaaaaaaaaaaa", "m01yrx", "b4", "0.9"),
    )
    for image, label, box, iou in masks:
        name = f"{image}_{label}_{box}.png"
        rows.append(f"{name},{image},/m/{label[1:]},{box},0.1,0.7,0.2,0.8,{iou},0.5 0.5 1;")
        with zipfile.ZipFile(root / f"train-masks-{image[0]}.zip", "a") as archive:
            # Larger than the photograph, and of a slightly other shape, as they are.
            Image.fromarray(disc(75, 101, (37, 50), 25)).convert("1").save(tmp_path / name)
            archive.write(tmp_path / name, name)
        archives[image] = name
    for folder, image in (
        ("train", "000a1249af2bc5f0"),
        ("train_1", "1f00000000000001"),
        ("train", "f0aaaaaaaaaaaaaa"),
    ):
        Image.fromarray(picture(3)).save(root / folder / f"{image}.jpg")
    (root / "train-annotations-object-segmentation.csv").write_text("\n".join(rows) + "\n")
    info = [INFO]
    for image, rotation in (
        ("000a1249af2bc5f0", "0.0"),
        ("1f00000000000001", ""),
        ("f0aaaaaaaaaaaaaa", "90.0"),
    ):
        licence = "https://creativecommons.org/licenses/by/2.0/"
        info.append(
            f'{image},train,u,https://flickr/{image},{licence},p,"Doe, Jane",A title,1,m,t,{rotation}'
        )
    (root / "train-images-boxable-with-rotation.csv").write_text("\n".join(info) + "\n")
    return root


def test_open_images(open_images_folder):
    assert detect_layout(open_images_folder) == "open-images"
    photographs = list_dataset(open_images_folder, "train").photographs
    # The rotated one is left out: its mask is not rotated with it.
    assert [p.name for p in photographs] == [
        "000a1249af2bc5f0_m01yrx_b1",
        "000a1249af2bc5f0_m0dzct_b2",
        "1f00000000000001_m01g317_b3",
    ]
    first = photographs[0]
    assert first.record["License"] == "https://creativecommons.org/licenses/by/2.0/"
    assert (first.record["Author"], first.subset) == ("Doe, Jane", "/m/01yrx")
    pixels, mask = read_pair(first.picture, first.mask, resize_mask=first.resize_mask)
    assert pixels.shape[:2] == mask.shape == (48, 64)
    assert abs((mask > 0).mean() - (disc(75, 101, (37, 50), 25) > 0).mean()) < 0.01
    with pytest.raises(SizeMismatchError, match=r"b1\.png: is 101x75, its picture is 64x48"):
        read_pair(first.picture, first.mask)


def test_open_images_parts(open_images_folder):
    names = [p.name[:1] for p in read_open_images(open_images_folder, shards=[1, 15])]
    assert names == ["1"]
    assert [p.name[-2:] for p in read_open_images(open_images_folder, least_iou=0.5)] == ["b1", "b2"]
    assert [p.name[-2:] for p in read_open_images(open_images_folder, single=True)] == ["b3"]
    with pytest.raises(InputError, match="has no mask that fits"):
        read_open_images(open_images_folder, shards=[2])


def test_open_images_and_their_manifests_are_filtered_by_any_column(open_images_folder, iharmony4_folder):
    manifest = open_images_folder / "manifest-train.csv"
    rows = ["Split,ImageID,MaskPath,LabelName,License"]
    for image, mask, licence in (
        ("000a1249af2bc5f0", "m01yrx_b1", "by"),
        ("1f00000000000001", "m01g317_b3", "cc0"),
    ):
        rows.append(f"train,{image},{image}_{mask}.png,/m/{mask[1:-3]},{licence}")
    manifest.write_text("\n".join(rows) + "\n")
    for path, filters in (
        (manifest, {"License": ["cc0", "pd"]}),
        (open_images_folder, {"LabelName": ["/m/01g317"], "Author": ["Doe, Jane"]}),
    ):
        (kept,) = list_dataset(path, filters=filters).photographs
        assert kept.name == "1f00000000000001_m01g317_b3"
        with pytest.raises(InputError, match="has no row with LabelName=cat"):
            list_dataset(path, filters={"LabelName": ["cat"]})
        with pytest.raises(InputError, match="has no column licence_class"):
            list_dataset(path, filters={"licence_class": ["permissive"]})
    (open_images_folder / "train" / "000a1249af2bc5f0.jpg").unlink()
    (open_images_folder / "train_1" / "1f00000000000001.jpg").unlink()
    problems = []
    assert list_dataset(manifest, filters={"License": ["cc0"]}, problems=problems).photographs == []
    assert len(problems) == 2
    with pytest.raises(InputError, match="cannot be filtered"):
        list_dataset(iharmony4_folder, "test", filters={"License": ["x"]})


def test_open_images_selection_is_single_and_the_same_everywhere(tmp_path, capsys):
    rows = [HEADER]
    for i in range(40):
        for box in ("a", "b")[: 1 + i % 2]:  # every other image has two instances
            rows.append(f"i{i}_m1_{box}.png,i{i},/m/1,{box},0.1,0.7,0.2,0.8,0.9,")
    rows.append("tiny_m1_a.png,tiny,/m/1,a,0.1,0.11,0.2,0.21,0.9,")
    (tmp_path / "test-annotations-object-segmentation.csv").write_text("\n".join(rows) + "\n")
    singles = {f"i{i}_m1_a" for i in range(0, 40, 2)}
    assert set(select_open_images(tmp_path, 20)) == singles
    five, eight = select_open_images(tmp_path, 5), select_open_images(tmp_path, 8)
    assert {*five} < {*eight} and five == sorted(five)
    by_hash = sorted(singles, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert {*five} == {*by_hash[:5]}
    with pytest.raises(InputError, match="has 20 photographs with one instance, got count=21"):
        select_open_images(tmp_path, 21)
    out = tmp_path / "ids.txt"
    assert main(["data", "select", str(tmp_path), "--count", "5", "-o", str(out)]) == 0
    assert out.read_text().split() == five and capsys.readouterr().out == f"{out}\n"


def test_open_images_unpacked_and_incomplete(open_images_folder):
    with zipfile.ZipFile(open_images_folder / "train-masks-0.zip") as archive:
        archive.extractall(open_images_folder / "train-masks-0")
    (open_images_folder / "train-masks-0.zip").unlink()
    (open_images_folder / "train-masks-0" / "000a1249af2bc5f0_m0dzct_b2.png").unlink()
    (open_images_folder / "train_1" / "1f00000000000001.jpg").unlink()
    with pytest.raises(InputError, match="b2.png: is missing"):
        read_open_images(open_images_folder)
    problems = []
    (first,) = read_open_images(open_images_folder, problems=problems)
    assert read_pair(first.picture, first.mask, resize_mask=True)[1].max() == 255
    assert [p.file.rsplit("/", 1)[1] for p in problems] == [
        "000a1249af2bc5f0_m0dzct_b2.png",
        "1f00000000000001.jpg",
    ]


def test_large_photographs_are_decoded_small_with_their_mask(tmp_path):
    Image.fromarray(picture(1, 480, 640)).save(tmp_path / "p.jpg")
    Image.fromarray(disc(480, 640, (240, 320), 150)).save(tmp_path / "m.png")
    pixels, mask = read_pair(tmp_path / "p.jpg", tmp_path / "m.png", shortest=100)
    assert pixels.shape[:2] == mask.shape == (120, 160)
    assert set(np.unique(mask)) == {0, 255} and abs((mask > 0).mean() - 0.23) < 0.01


def test_photographs_lie_upright_as_their_mask(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(1)).save(tmp_path / "p.jpg", exif=exif)
    Image.fromarray(disc(64, 48)).save(tmp_path / "m.png")
    assert read_pair(tmp_path / "p.jpg", tmp_path / "m.png")[0].shape == (64, 48, 3)


def test_what_cannot_be_decoded_is_named(tmp_path):
    Image.fromarray(picture(1)).save(tmp_path / "p.jpg", quality=95)
    Image.fromarray(disc()).save(tmp_path / "m.png")
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / "empty.png")
    Image.fromarray(disc() // 255).save(tmp_path / "ones.png")
    data = (tmp_path / "p.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    with pytest.raises(DecodeError, match=r"cut\.jpg: cannot be decoded: .*truncated"):
        read_pair(tmp_path / "cut.jpg", tmp_path / "m.png")
    with pytest.raises(MaskError, match=r"empty\.png: is empty"):
        read_pair(tmp_path / "p.jpg", tmp_path / "empty.png")
    with pytest.raises(InputError, match=r"none\.png: does not exist"):
        read_pair(tmp_path / "p.jpg", tmp_path / "none.png")
    assert np.array_equal(read_mask(tmp_path / "ones.png"), disc())


def test_unknown_layouts_are_refused(tmp_path):
    with pytest.raises(InputError, match="has none of the layouts"):
        detect_layout(tmp_path)
    with pytest.raises(InputError, match="is neither a folder"):
        detect_layout(tmp_path / "nothing")


def test_the_real_photographs(shared):
    root = shared / "data" / "photos"
    if not root.is_dir():
        pytest.skip("../shared/data/photos is absent")
    counts = {split: len(read_photographs(root, split)) for split in ("train", "val", "test")}
    assert counts == {"train": 3846, "val": 278, "test": 482}
    permissive = read_photographs(root, "train", parse_filters(["licence_class=permissive"]))
    assert {p.subset for p in permissive} == {"food", "clothing", "dreambooth", "kodak"}
    with (root / "index.csv").open(newline="") as file:
        areas = {f"{r['source']}/{r['id']}": float(r["mask_area"]) for r in csv.DictReader(file)}
    for photograph in read_photographs(root, "val")[::40]:
        pixels, mask = read_pair(photograph.picture, photograph.mask)
        assert pixels.shape[:2] == mask.shape
        assert (mask > 0).mean() == pytest.approx(areas[photograph.name], abs=5e-3)
