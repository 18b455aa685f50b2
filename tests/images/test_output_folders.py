import errno
import os
import shutil
from pathlib import Path

import pytest

from harmony_diffusion.errors import OutputError
from harmony_diffusion.images.output_folders import (
    check_replaceable,
    remove_unfinished,
    write_folder_atomically,
)


def test_folder_that_cannot_be_written_whole_leaves_the_one_before(tmp_path):
    write_folder_atomically(tmp_path / "model", lambda folder: (folder / "a").write_text("old") and None)

    def fail(folder):
        (folder / "a").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_folder_atomically(tmp_path / "model", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model" / "a").read_text() == "old"
    (tmp_path / ".unfinished-x" / "deep").mkdir(parents=True)
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_only_folders_of_the_same_kind_are_replaced(tmp_path):
    def is_one(folder):
        return (folder / "mark").is_file()

    full, marked, empty, file = (tmp_path / name for name in ("full", "marked", "empty", "file"))
    for folder in (full, marked, empty):
        folder.mkdir()
    for path in (full / "photograph.jpg", marked / "mark", file):
        path.write_text("")
    for folder in (tmp_path / "absent", marked, empty):
        check_replaceable(folder, "a marked one", is_one, overwrite=True)
    for folder in (full, file):
        with pytest.raises(OutputError, match="something else than a marked one"):
            check_replaceable(folder, "a marked one", is_one, overwrite=True)
    for folder in (full, marked, empty, file):
        with pytest.raises(OutputError, match="exists already"):
            check_replaceable(folder, "a marked one", is_one, overwrite=False)


def write_a(folder):
    (folder / "a").write_text("new")


def is_any(folder):
    return True


@pytest.mark.parametrize("step", ["rename", "rmtree"])
def test_an_interrupted_exchange_leaves_a_whole_folder(step, tmp_path, monkeypatch):
    write_folder_atomically(tmp_path / "model", lambda folder: (folder / "a").write_text("old") and None)
    real, calls = (Path.rename, shutil.rmtree)[step == "rmtree"], []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == (2 if step == "rename" else 1):
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(*((Path, "rename") if step == "rename" else (shutil, "rmtree")), interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder_atomically(tmp_path / "model", write_a)
    assert (tmp_path / "model" / "a").read_text() == ("old" if step == "rename" else "new")


def test_a_file_without_successor_is_kept_where_that_is_asked(tmp_path):
    folder = tmp_path / "model"
    write_folder_atomically(folder, lambda staging: (staging / "part").mkdir() or write_a(staging))
    for place in (folder / "part" / "notes.txt", folder / ".git"):
        place.parent.mkdir(exist_ok=True)
        place.write_text("precious")
        with pytest.raises(OutputError, match=f"{place.name}: would be lost"):
            write_folder_atomically(folder, write_a, keep_others=True)
        assert place.read_text() == "precious" and [path.name for path in tmp_path.iterdir()] == ["model"]
        place.unlink()
    write_folder_atomically(folder, write_a, keep_others=True)


def test_paths_with_dots_and_links(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    write_folder_atomically(folder, lambda staging: (staging / "b").mkdir())
    monkeypatch.chdir(folder)
    for name in (".", "../model", "b/..", "..", folder):
        with pytest.raises(OutputError, match="holds the current folder"):
            check_replaceable(Path(name), "any", is_any, overwrite=True)
    monkeypatch.chdir(tmp_path)
    for name, target in (("link", "model"), ("dangling", "absent")):
        Path(name).symlink_to(target)
        check_replaceable(Path(name), "any", is_any, overwrite=True)
        write_folder_atomically(Path(name), write_a)
        assert Path(name).is_symlink() and (tmp_path / target / "a").read_text() == "new"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_closed_is_refused(tmp_path):
    for mode in (0o555, 0):
        folder = tmp_path / str(mode)
        folder.mkdir()
        folder.chmod(mode)
        with pytest.raises(OutputError, match="ermission"):
            check_replaceable(folder, "any", is_any, overwrite=True)
        folder.chmod(0o755)


def test_what_the_file_system_refuses_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        write_folder_atomically(tmp_path / "file" / "sub", lambda staging: None)

    def fill_the_disk(staging):
        raise OSError(errno.ENOSPC, "No space left on device", str(staging / "weights"))

    with pytest.raises(OutputError, match="out: the disk is full"):
        write_folder_atomically(tmp_path / "out", fill_the_disk)

    def read_what_is_absent(staging):
        (tmp_path / "absent").read_text()

    with pytest.raises(FileNotFoundError, match="absent"):
        write_folder_atomically(tmp_path / "out", read_what_is_absent)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
