import pytest
from PIL import Image

from harmony_diffusion.data.layouts import detect_layout, list_dataset
from harmony_diffusion.data.triples import read_triples
from harmony_diffusion.errors import InputError

LAYOUTS = {
    "folders as in iHarmony4": ("composite_images/{0}_1.jpg", "masks/{0}.png", "real_images/{1}.jpg"),
    "a folder a subset": ("HVIDIT/composites/{0}_1.jpg", "HVIDIT/masks/{0}.png", "HVIDIT/gt/{1}.jpg"),
    "roles above subsets": ("composite/NUS/{0}_1.png", "mask/NUS/{0}.png", "real/NUS/{1}.png"),
    "a folder a sample": ("{0}_1/composite.jpg", "{0}_1/mask.png", "{0}_1/gt.jpg"),
    "endings of names": ("{0}_1_composite.jpg", "{0}_1_mask.jpg", "{0}_1_harmonized.jpg"),
}
STEMS = (("scene-1_2", "scene-1"), ("x_y_1", "x_y"))


def make(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / path)


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    patterns = LAYOUTS[request.param]
    for stems in STEMS:
        make(tmp_path / "Own", *(pattern.format(*stems) for pattern in patterns))
    (tmp_path / "Own" / "readme.txt").write_text("no list")
    return tmp_path / "Own", patterns


def test_triples_are_found_by_the_words_in_their_paths(layout):
    root, patterns = layout
    assert detect_layout(root) == "triples"
    samples = list_dataset(root, "test").samples
    assert [sample.name for sample in samples] == ["scene-1_2_1", "x_y_1_1"]
    for sample, stems in zip(samples, STEMS, strict=True):
        files = [sample.composite, sample.mask, sample.real]
        assert files == [root / pattern.format(*stems) for pattern in patterns]
    subset = {"H": "HVIDIT", "composite/": "NUS"}
    expected = next((name for start, name in subset.items() if patterns[0].startswith(start)), "Own")
    assert {sample.subset for sample in samples} == {expected}


def test_a_list_restricts_the_samples(layout):
    root, patterns = layout
    (root / "Own_test.txt").write_bytes(b"\xef\xbb\xbfcomposite_images\\x_y_1_1.jpg\r\n\r\n")
    assert [sample.name for sample in read_triples(root, "test")] == ["x_y_1_1"]
    assert len(read_triples(root, "train")) == 2
    (root / "Own_test.txt").write_text("x_y_1_1.jpg\nnobody.jpg\n")
    with pytest.raises(InputError, match="lists nobody.jpg, which is not a composite"):
        read_triples(root, "test")
    problems = []
    assert len(read_triples(root, "test", problems)) == 1 and len(problems) == 1


def test_folders_of_splits_restrict_the_samples(tmp_path):
    for split, name in (("train", "a"), ("test", "b"), ("val", "c")):
        make(tmp_path, *(f"{split}/{role}/{name}.png" for role in ("comp", "masks", "gt")))
    for split, name in (("train", "a"), ("test", "b"), ("validation", "c")):
        samples = list_dataset(tmp_path, split).samples
        assert [(sample.name, sample.subset) for sample in samples] == [(name, tmp_path.name)]


def test_faults_stop_or_are_reported(tmp_path):
    make(tmp_path, "comp/a.png", "masks/a.png", "gt/a.png", "comp/b.png", "masks/b.png", "comp/a.jpg")
    with pytest.raises(InputError, match=r"a\.png: has the same role \(composite\) and name as .*a\.jpg"):
        read_triples(tmp_path)
    problems = []
    assert [sample.name for sample in read_triples(tmp_path, "test", problems)] == ["a"]
    assert problems[1].reason == "has no real: expected a file named b" and problems[1].file.endswith("b.png")


def test_folders_without_triples_are_none(tmp_path):
    make(tmp_path, "composite/a.png", "mask/a.png", "holiday.jpg")
    with pytest.raises(InputError, match="has none of the layouts"):
        detect_layout(tmp_path)
    with pytest.raises(InputError, match="no composite of the split"):
        read_triples(tmp_path / "mask")
