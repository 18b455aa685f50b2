"""A tar shard that is cut or damaged is a failure, though the reader takes a bad header for the end."""

import io
import random
import tarfile

import pytest
from batch_jobs import lines, make_pictures, run


@pytest.fixture
def shard(tmp_path):
    """Write a shard of four samples; return it with the places of its headers."""
    pictures = make_pictures(tmp_path / "pictures", 4)
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "s.tar"
    with tarfile.open(path, "w") as file:
        for i in range(4):
            for name, part in ((f"p00{i}.png", "composite"), (f"p00{i}_mask.png", "mask")):
                file.add(pictures / name, f"p{i}.{part}.png")
    with tarfile.open(path) as file:
        return path, [member.offset for member in file]


def damaged(data, headers, kind):
    middle = headers[4]
    if kind == "cut between members":
        return data[:middle]
    if kind == "cut in a header":
        return data[: middle + 100]
    if kind == "one block of zeros":
        end = data.rstrip(b"\0")
        return data[: -(-len(end) // 512) * 512 + 512]
    over = random.Random(0).randbytes(512) if kind == "random header" else bytes(1024)
    return data[:middle] + over + data[middle + len(over) :]


@pytest.mark.parametrize(
    "kind, reason",
    [
        ("cut between members", "is cut"),
        ("cut in a header", "is damaged|is cut"),
        ("random header", "no header at byte"),
        ("zeros over a header", "data follow its end"),
        ("one block of zeros", "is cut"),
    ],
)
def test_damaged_shard_is_an_error(shard, tmp_path, kind, reason):
    path, headers = shard
    path.write_bytes(damaged(path.read_bytes(), headers, kind))
    summary = run(tmp_path / "in", tmp_path / "out")
    assert (summary.exit_code, summary.done, summary.failed) == (3, 0, 1)
    (error,) = lines(tmp_path / "out" / "errors.jsonl")
    assert error["id"] == "s" and any(part in error["reason"] for part in reason.split("|"))
    summary = run(tmp_path / "in", tmp_path / "left", allow_truncated=True)
    assert (summary.exit_code, summary.done, summary.failed) == (3, 1, 1)
    with tarfile.open(tmp_path / "left" / "s.tar") as file:
        assert len(file.getnames()) == (4 if kind == "one block of zeros" else 2)


def test_shard_without_samples_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    for name, member in (("empty", None), ("other", "notes.txt")):
        with tarfile.open(tmp_path / "in" / f"{name}.tar", "w") as file:
            if member:
                file.addfile(tarfile.TarInfo(member), io.BytesIO())
    assert run(tmp_path / "in", tmp_path / "out").failed == 2
    assert all("holds no sample" in line["reason"] for line in lines(tmp_path / "out" / "errors.jsonl"))


def test_whole_shard_is_done(shard, tmp_path):
    assert run(tmp_path / "in", tmp_path / "out").exit_code == 0
