import errno

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
