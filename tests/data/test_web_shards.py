import io
import tarfile

import pytest
import torch
from PIL import Image
from tiny_pictures import disc, picture
from torch.utils.data import DataLoader

pytest.importorskip("datasets", reason="the train extra (datasets) is absent")

from harmony_diffusion.data.check import check_dataset
from harmony_diffusion.data.layouts import detect_layout
from harmony_diffusion.data.photographs import Photograph
from harmony_diffusion.data.web_shards import ShardSet, list_shards, read_shards
from harmony_diffusion.errors import InputError

PARTS = ("composite.jpg", "mask.png", "real.jpg")


def encoded(array, suffix):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, {"jpg": "JPEG", "png": "PNG"}[suffix])
    return buffer.getvalue()


def write_shard(path, numbers, parts=PARTS, broken=(), mode="w"):
    with tarfile.open(path, mode) as archive:
        for number in numbers:
            for part in parts:
                name, suffix = part.split(".")
                data = encoded(disc() if name == "mask" else picture(number), suffix)
                entry = tarfile.TarInfo(f"s{number:04d}.{part}")
                data = data[: len(data) // 2] if number in broken and name == "real" else data
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    for shard in range(4):
        write_shard(tmp_path / f"train-{shard:04d}.tar", range(5 * shard, 5 * shard + 5))
    return list_shards(tmp_path)


def test_samples_come_as_they_were_written(shards):
    samples = list(read_shards(shards))
    assert [s.name for s in samples] == [f"s{number:04d}" for number in range(20)]
    assert (samples[7].subset, samples[7].real.data) == ("train-0001", encoded(picture(7), "jpg"))
    assert str(samples[7].mask).endswith("train-0001.tar/s0007.mask.png")


def test_processes_and_workers_share_the_samples_and_none_is_seen_twice(shards):
    seen = []
    for rank in range(2):
        stream = ShardSet(shards, 32, seed=3, rank=rank, world_size=2)
        loader = DataLoader(stream, batch_size=None, num_workers=2)
        seen += [int(item["key"]) for item in loader]
    alone = [int(item["key"]) for item in ShardSet(shards, 32, seed=3)]
    assert len(seen) == 20 and sorted(seen) == sorted(alone)


def test_crops_depend_on_seed_epoch_and_name_alone(shards):
    def items(seed, epoch, **options):
        stream = ShardSet(shards, 32, seed, **options)
        stream.set_epoch(epoch)
        return {int(item["key"]): item for item in stream}

    first, again = items(1, 0), items(1, 0, shuffle_buffer=0)
    assert list(first) != list(again) and first.keys() == again.keys()
    assert all(torch.equal(first[key]["real"], again[key]["real"]) for key in first)
    assert list(items(1, 0)) == list(first)
    assert not items(1, 1).keys() & first.keys()


def test_photographs_in_shards(tmp_path):
    write_shard(tmp_path / "p.tar", range(3), parts=("mask.png", "real.jpg"))
    assert detect_layout(tmp_path) == "shards"
    assert all(isinstance(sample, Photograph) for sample in read_shards(list_shards(tmp_path)))
    items = list(ShardSet(list_shards(tmp_path), 32, seed=0))
    assert set(items[0]) == {"real", "mask", "key", "skipped"} and len(items) == 3


def test_bad_samples_stop_or_are_skipped_and_counted(tmp_path):
    write_shard(tmp_path / "p.tar", range(6), broken=(1, 2))
    with pytest.raises(InputError, match=r"p\.tar/s0001\.real\.jpg: cannot be decoded"):
        list(ShardSet([tmp_path / "p.tar"], 32, seed=0, shuffle_buffer=0))
    items = list(ShardSet([tmp_path / "p.tar"], 32, seed=0, skip_bad=True, shuffle_buffer=0))
    assert [int(item["skipped"]) for item in items] == [0, 2, 0, 0]
    report = check_dataset(tmp_path)
    assert (report.layout, report.count) == ("shards", 6)
    assert [p.file.rsplit("/", 1)[1] for p in report.problems] == ["s0001.real.jpg", "s0002.real.jpg"]


def test_incomplete_samples_and_missing_shards_are_named(tmp_path):
    write_shard(tmp_path / "a.tar", range(6))
    write_shard(tmp_path / "a.tar", [9], parts=("composite.jpg",), mode="a")
    with pytest.raises(InputError, match=r"a\.tar/s0009: has no mask, real"):
        list(read_shards([tmp_path / "a.tar"]))
    problems = []
    assert len(list(read_shards([tmp_path / "a.tar"], problems))) == 6 and len(problems) == 1
    with pytest.raises(InputError, match=r"none\.tar: does not exist or is not a file"):
        list(read_shards([tmp_path / "none.tar"]))
    write_shard(tmp_path / "b.tar", [1, 2])
    write_shard(tmp_path / "b.tar", [3], parts=("real.jpg",), mode="a")
    with pytest.raises(InputError, match=r"b\.tar: has samples with different parts"):
        list(read_shards([tmp_path / "b.tar"]))


def test_a_shard_that_was_cut_off_is_named(tmp_path):
    write_shard(tmp_path / "a.tar", range(8))
    data = (tmp_path / "a.tar").read_bytes()
    for share in (0.0, 0.5, 0.7):
        (tmp_path / "a.tar").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(InputError, match=r"a\.tar: is truncated or not a tar file"):
            ShardSet([tmp_path / "a.tar"], 32, seed=0)
