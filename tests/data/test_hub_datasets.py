import io
import json
import pickle
import sys

import datasets
import numpy as np
import pytest
from PIL import Image
from tiny_pictures import disc, picture

from harmony_diffusion.cli import main
from harmony_diffusion.data.check import check_dataset
from harmony_diffusion.data.folders import read_folders
from harmony_diffusion.data.hub_datasets import list_hub_dataset, stream_hub_dataset
from harmony_diffusion.data.hub_export import write_hub_dataset
from harmony_diffusion.data.layouts import detect_layout, list_dataset
from harmony_diffusion.data.photographs import Photograph
from harmony_diffusion.data.training_set import PairSet
from harmony_diffusion.errors import InputError, MissingDependencyError, OutputError
from harmony_diffusion.images.quick_decoding import read_bytes, read_mask, read_picture


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture
def samples(tmp_path):
    root = tmp_path / "folders"
    for part in ("composite", "mask", "real"):
        (root / part).mkdir(parents=True)
    for number in range(3):
        Image.fromarray(picture(number)).save(root / "composite" / f"{number}.png")
        Image.fromarray(picture(number + 10)).save(root / "real" / f"{number}.jpg")
        Image.fromarray(disc()).save(root / "mask" / f"{number}.png")
    return read_folders(root)


def pictures_of(sample):
    return [read_bytes(getattr(sample, part)) for part in ("composite", "mask", "real")]


def test_a_data_set_comes_back_from_parquet_byte_for_byte(samples, tmp_path):
    paths = write_hub_dataset(samples, tmp_path / "out", "val", bytes_a_file=8000)
    assert len(paths) > 1 and all(path.name.startswith("val-0000") for path in paths)
    assert detect_layout(tmp_path / "out") == "datasets"
    listed = list_dataset(tmp_path / "out", "val").samples
    assert [(s.name, s.subset, s.prompt) for s in listed] == [(s.name, s.subset, s.prompt) for s in samples]
    assert [pictures_of(s) for s in listed] == [pictures_of(s) for s in samples]
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="val")
    assert np.array_equal(np.asarray(loaded[1]["composite"]), picture(1))
    report = check_dataset(tmp_path / "out", "val")
    assert report.count == 3 and not report.problems


def test_streaming_gives_the_same(samples, tmp_path):
    write_hub_dataset(samples, tmp_path / "out")
    streamed = list(stream_hub_dataset(tmp_path / "out"))
    assert [pictures_of(s) for s in streamed] == [pictures_of(s) for s in samples]


def test_rows_feed_training_also_pickled_for_workers(samples, tmp_path):
    write_hub_dataset(samples, tmp_path / "out")
    listed = list_dataset(tmp_path / "out").samples
    expected = PairSet(samples, 32).sample_at(0, 0, 1)
    copied = pickle.loads(pickle.dumps(PairSet(listed, 32)))
    found = copied.sample_at(0, 0, 1)
    assert all((found[name] == value).all() for name, value in expected.items())


def test_a_data_set_in_memory_is_read_by_other_column_names():
    features = datasets.Features({"image": datasets.Image(), "gt": datasets.Image(), "m": datasets.Image()})
    rows = [
        {
            "image": Image.fromarray(picture(n)),
            "gt": Image.fromarray(picture(n)),
            "m": Image.fromarray(disc()),
        }
        for n in range(2)
    ]
    table = datasets.Dataset.from_list(rows, features=features)
    columns = {"composite": "image", "real": "gt", "mask": "m"}
    for found in (
        list_hub_dataset(table, columns=columns),
        list(stream_hub_dataset(table.to_iterable_dataset(), columns=columns)),
    ):
        assert np.array_equal(read_picture(found[1].composite), picture(1))
        assert np.array_equal(read_mask(found[1].mask), disc()) and found[1].name == "dataset[1]"
    photographs = list_hub_dataset(table, columns={"real": "gt", "mask": "m"})
    assert all(isinstance(one, Photograph) for one in photographs)


def test_an_imagefolder_is_read(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    lines = []
    for number in range(2):
        for part, array in (("composite", picture(number)), ("mask", disc()), ("real", picture(5))):
            Image.fromarray(array).save(root / f"{number}_{part}.png")
        names = {f"{part}_file_name": f"{number}_{part}.png" for part in ("composite", "mask", "real")}
        lines.append(json.dumps(names | {"prompt": f"thing {number}"}))
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    found = list_dataset(root).samples
    assert [one.prompt for one in found] == ["thing 0", "thing 1"]
    assert np.array_equal(read_picture(found[1].composite), picture(1))


def test_photographs_are_written_and_saved_tables_are_read(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    Image.fromarray(disc()).save(tmp_path / "m.png")
    photograph = Photograph("a", "made", tmp_path / "a.png", tmp_path / "m.png", {"label": "cup"})
    write_hub_dataset([photograph], tmp_path / "out")
    (found,) = list_dataset(tmp_path / "out").photographs
    assert (found.name, found.subset) == ("a", "made") and read_bytes(found.picture) == buffer.getvalue()
    table = datasets.load_dataset(str(tmp_path / "out"), split="train")
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "saved"))
    (saved,) = list_dataset(tmp_path / "saved").photographs
    assert read_bytes(saved.picture) == buffer.getvalue()
    with pytest.raises(InputError, match="has no split 'test'"):
        list_dataset(tmp_path / "saved", "test")


def test_what_cannot_be_read_or_written_is_named(samples, tmp_path, monkeypatch):
    table = datasets.Dataset.from_list([{"composite": 1, "mask": 2}])
    with pytest.raises(InputError, match="has no column real"):
        list_hub_dataset(table)
    with pytest.raises(InputError, match="columns: names 'gt'"):
        list_hub_dataset(table, columns={"gt": "real"})
    with pytest.raises(InputError, match="is a list"):
        list_hub_dataset([1])
    with pytest.raises(InputError, match="no-such-owner/no-such-data: cannot be loaded"):
        list_dataset(type(tmp_path)("no-such-owner/no-such-data"))
    write_hub_dataset(samples, tmp_path / "out")
    with pytest.raises(OutputError, match="exists already"):
        write_hub_dataset(samples, tmp_path / "out")
    samples[1].mask.unlink()
    with pytest.raises(InputError, match="mask/1.png"):
        write_hub_dataset(samples, tmp_path / "out", overwrite=True)
    assert len(list_dataset(tmp_path / "out").samples) == 3
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r"harmony-diffusion\[train\]"):
        list_hub_dataset(tmp_path / "out")


def test_the_command_writes_a_split(samples, tmp_path, capsys):
    root = samples[0].composite.parents[1]
    assert main(["data", "to-datasets", str(root), str(tmp_path / "out")]) == 0
    assert "train-00000-of-00001.parquet" in capsys.readouterr().out
    assert len(list_dataset(tmp_path / "out").samples) == 3
    assert main(["data", "to-datasets", str(root), str(tmp_path / "out")]) == 2


def test_data_sets_are_not_written_into_files(samples, tmp_path):
    (tmp_path / "file").write_text("precious")
    for name in ("file", "file/sub"):
        with pytest.raises(OutputError, match="is a file"):
            write_hub_dataset(samples, tmp_path / name)
    assert (tmp_path / "file").read_text() == "precious"
