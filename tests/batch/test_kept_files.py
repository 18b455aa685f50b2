"""A batch replaces neither its inputs nor files that it did not make."""

import json
import os

import pytest
from batch_jobs import lines, make_pictures, run

from harmony_diffusion.errors import OutputError

ROW = {"composite": "p000.png", "mask": "p000_mask.png"}


def write_list(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def refused(*call, match, **options):
    with pytest.raises(OutputError, match=match):
        run(*call, options={"overwrite": True}, **options)


def test_no_output_replaces_an_input_of_any_row(tmp_path):
    source = make_pictures(tmp_path / "in", 2)
    out = source / "out"
    out.mkdir()
    os.link(source / "p000.png", out / "p000.png")  # a hard link is the same file
    for kind, row in {
        "composite": {"composite": "out/p000.png", "mask": "p000_mask.png", "output": "p000.png"},
        "mask": {"composite": "p000.png", "mask": "out/p000.png"},
        "background": {"foreground": "p001.png", "background": "out/p000.png", "output": "x.png"},
    }.items():
        before = (out / "p000.png").read_bytes()
        rows = [row, {"composite": "p001.png", "mask": "p001_mask.png", "output": "z.png"}]
        if kind == "background":
            rows.append(ROW)
        refused(write_list(source / "list.jsonl", *rows), out, match="p000.png would be replaced")
        assert (out / "p000.png").read_bytes() == before and os.listdir(out) == ["p000.png"]


def test_folder_of_links_to_the_inputs_is_refused(tmp_path):
    source, out = make_pictures(tmp_path / "in", 1), tmp_path / "out"
    out.mkdir()
    (out / "p000.png").symlink_to(source / "p000.png")
    refused(source, out, match="p000.png would be replaced")


@pytest.mark.parametrize("name", ["manifest.jsonl", "errors.jsonl"])
def test_manifest_that_is_read_is_not_replaced_by_the_lists(tmp_path, name):
    source, out = make_pictures(tmp_path / "in", 1), tmp_path / "out"
    out.mkdir()
    refused(write_list(out / name, ROW), out, root=source, match=f"{name} would be replaced")
    assert lines(out / name) == [ROW]


def test_files_that_no_run_made_are_kept_in_the_folder_of_a_job(tmp_path):
    source, out = make_pictures(tmp_path / "in", 2), tmp_path / "out"
    good = (source / "p001.png").read_bytes()
    (source / "p001.png").write_bytes(good[:80])
    assert run(source, out).failed == 1
    (out / "p001.png").write_bytes(b"made by hand")
    (source / "p001.png").write_bytes(good)
    for ending in (".png", "_mask.png"):
        (source / f"new{ending}").write_bytes((source / f"p000{ending}").read_bytes())
    (out / "new.png").write_bytes(b"precious")
    with pytest.raises(OutputError, match="new.png, p001.png exists already, and no batch made it"):
        run(source, out)
    assert (out / "new.png").read_bytes() == b"precious"
    assert run(source, out, options={"overwrite": True}).new == 2
    assert run(source, out).new == 0
