"""Bad pictures among good ones: each gives a line with its reason, and nothing else happens."""

import io
import os
import tarfile

import numpy as np
import pytest
import tifffile
from batch_jobs import contents, journal, lines, make_pictures, run, save_mask, settings_for
from picture_files import png, smooth_picture
from PIL import Image

from harmony_diffusion.batch.inputs import find_inputs
from harmony_diffusion.batch.local import InProcessEngine
from harmony_diffusion.errors import OutputError


def encoded(kind, size=(32, 32), **options):
    file = io.BytesIO()
    Image.fromarray(smooth_picture(*size)).save(file, kind, **options)
    return file.getvalue()


def mask_bytes(size=(32, 32), value=None):
    mask = np.full(size, value or 0, np.uint8)
    if value is None:
        mask[8:16, 8:24] = 255
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


def float_tiff(value):
    file = io.BytesIO()
    tifffile.imwrite(file, np.full((32, 32, 3), value, np.float32), photometric="rgb")
    return file.getvalue()


def flipped(data):
    data = bytearray(data)
    data[len(data) // 2] ^= 0x55
    return bytes(data)


PNG, JPEG, WEBP, MASK = encoded("PNG"), encoded("JPEG"), encoded("WEBP"), mask_bytes()
# 30 rows: the picture, its mask, a part of the reason.
BAD = {
    "bomb.png": (png(30000, 30000, 8, 2, b""), MASK, "30000x30000"),
    "large.png": (png(14000, 14000, 8, 2, b""), MASK, "196.0 million"),
    "empty.png": (b"", MASK, "empty"),
    "text.png": (b"hello, this is no picture at all", MASK, ""),
    "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", MASK, "HTML"),
    "pointer.png": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        MASK,
        "git lfs pull",
    ),
    "cut.jpg": (JPEG[: len(JPEG) // 2], MASK, ""),
    "cut_png.png": (PNG[: len(PNG) // 2], MASK, ""),
    "cut_webp.webp": (WEBP[: len(WEBP) // 2], MASK, ""),
    "cut_gif.gif": (encoded("GIF")[:60], MASK, ""),
    "cut_bmp.bmp": (encoded("BMP")[:200], MASK, ""),
    "cut_tif.tif": (float_tiff(0.5)[:300], MASK, ""),
    "flipped.png": (flipped(PNG), MASK, ""),
    "zeros.jpg": (bytes(500), MASK, ""),
    "photo.heic.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), MASK, ""),
    "drawing.png": (b"<svg xmlns='http://www.w3.org/2000/svg'></svg>", MASK, "SVG"),
    "paper.png": (b"%PDF-1.7\n%" + bytes(40), MASK, "PDF"),
    "print.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n", MASK, ""),
    "dot.png": (encoded("PNG", (1, 1)), mask_bytes((1, 1)), "1x1"),
    "line.png": (png(20000, 1, 8, 2, bytes(60001)), MASK, "20000x1"),
    "nan.tif": (float_tiff(np.nan), MASK, ""),
    "small_matte.png": (PNG, mask_bytes((16, 16)), "16x16"),
    "large_matte.png": (PNG, mask_bytes((64, 64)), "64x64"),
    "full_matte.png": (PNG, mask_bytes(value=255), "background"),
    "empty_file_matte.png": (PNG, b"", "empty"),
    "text_matte.png": (PNG, b"no mask, but some words", ""),
    "cut_matte.png": (PNG, MASK[:50], ""),
    "bomb_matte.png": (PNG, png(30000, 30000, 8, 0, b""), "30000x30000"),
    "pipe.png": (None, MASK, "pipe"),
    "pipe_matte.png": (PNG, None, "pipe"),
}


def write(path, content):
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)


def make_bad(folder):
    for name, (picture, mask, _) in BAD.items():
        write(folder / f"bad_{name}", picture)
        write(folder / f"bad_{os.path.splitext(name)[0]}_mask.png", mask)


@pytest.mark.parametrize("good", [20, pytest.param(970, marks=pytest.mark.slow)])
def test_thirty_bad_pictures_give_thirty_reasons(tmp_path, good):
    source, out = make_pictures(tmp_path / "in", good), tmp_path / "out"
    make_bad(source)
    summary = run(source, out)
    assert (summary.exit_code, summary.done, summary.failed) == (3, good, len(BAD)) and len(BAD) == 30
    assert len(contents(out)) == good + 2
    reasons = {line["id"]: line["reason"] for line in lines(out / "errors.jsonl")}
    for name, (_, _, part) in BAD.items():
        reason = reasons.pop(f"bad_{os.path.splitext(name)[0]}")
        assert part in reason and "\n" not in reason and len(reason) > 10, (name, reason)
        assert str(tmp_path) not in reason
    assert not reasons
    assert len(lines(out / "manifest.jsonl")) == good


def test_notes_stand_in_the_journal_at_their_picture(tmp_path):
    source = make_pictures(tmp_path / "in", 4)
    Image.fromarray(smooth_picture(32, 32)).convert("CMYK").save(source / "q.tif")
    save_mask(source / "q_mask.png")
    for overlap in (False, True):
        out = tmp_path / f"out{overlap}"
        settings = settings_for(find_inputs(source), out)
        assert run(source, out, engine=InProcessEngine(settings, overlap=overlap)).exit_code == 0
        notes = {record["id"]: record.get("notes") for record in journal(out)}
        assert "CMYK" in notes.pop("q")[0] and not any(notes.values())


def test_stop_at_the_first_failure_and_after_some(tmp_path):
    source = make_pictures(tmp_path / "in", 5)
    make_bad(source)
    summary = run(source, tmp_path / "first", options={"max_errors": 1})
    assert (summary.exit_code, summary.failed, summary.manifest) == (3, 1, None)
    assert len(lines(tmp_path / "first" / "errors.jsonl")) == 1
    assert run(source, tmp_path / "third", options={"max_errors": 3}).failed == 3
    # What failed is not tried again, and the next one stops the run again.
    assert run(source, tmp_path / "first", options={"max_errors": 1}).failed == 2
    run(source, tmp_path / "first")
    run(source, tmp_path / "whole")
    assert contents(tmp_path / "first") == contents(tmp_path / "whole")


def test_format_without_transparency_fails_the_transparent_picture_only(tmp_path):
    source = make_pictures(tmp_path / "in", 2)
    pixels = np.dstack((smooth_picture(32, 32), np.full((32, 32), 128, np.uint8)))
    Image.fromarray(pixels, "RGBA").save(source / "p001.png")
    assert run(source, tmp_path / "out", suffix=".jpg").done == 1
    (error,) = lines(tmp_path / "out" / "errors.jsonl")
    assert error["id"] == "p001" and "transparency" in error["reason"]


def test_memory_limit_refuses_by_the_header(tmp_path):
    source = make_pictures(tmp_path / "in", 1)
    make_pictures(tmp_path / "large", 1, side=64)
    for path in (tmp_path / "large").iterdir():
        path.rename(source / f"large{path.name[4:]}")
    run(source, tmp_path / "out", max_memory=64 * 64 * 40 - 1)
    (error,) = lines(tmp_path / "out" / "errors.jsonl")
    assert error["id"] == "large" and "64x64" in error["reason"] and "--max-memory" in error["reason"]


def test_folder_that_cannot_be_written_to_stops_the_run_and_blames_no_picture(tmp_path):
    source, out = make_pictures(tmp_path / "in", 3), tmp_path / "out"
    out.mkdir()
    (out / "sub").write_text("a file where a folder must be")
    for path in source.glob("p001*"):
        (source / "sub").mkdir(exist_ok=True)
        path.rename(source / "sub" / path.name)
    with pytest.raises(OutputError):
        run(source, out, options={"overwrite": True})
    assert "failed" not in {record["status"] for record in journal(out)}
    (out / "sub").unlink()
    assert run(source, out).exit_code == 0


def test_outputs_go_to_no_folder_with_other_files_and_not_among_the_inputs(tmp_path):
    source, out = make_pictures(tmp_path / "in", 1), tmp_path / "out"
    out.mkdir()
    (out / "p000.png").write_bytes(b"precious")
    with pytest.raises(OutputError, match="--overwrite"):
        run(source, out)
    with pytest.raises(OutputError, match="is the folder of the inputs"):
        run(source, source, options={"overwrite": True})
    assert (out / "p000.png").read_bytes() == b"precious" and not (source / ".harmony").exists()
    assert run(source, out, options={"overwrite": True}).done == 1
    assert run(source, source / "results").done == 1
    assert run(source, source / "results").new == 0  # they are no inputs


def test_shard_with_bad_samples(tmp_path):
    def add(shard, name, content):
        member = tarfile.TarInfo(name)
        member.size = len(content)
        shard.addfile(member, io.BytesIO(content))

    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "s0.tar", "w") as shard:
        for name in ("day/a", "b"):
            add(shard, f"{name}.composite.png", PNG)
            add(shard, f"{name}.mask.png", MASK)
            add(shard, f"{name}.json", b"{}")
        add(shard, "cut.composite.jpg", JPEG[:200])
        add(shard, "cut.mask.png", MASK)
        add(shard, "alone.composite.png", PNG)
        add(shard, "../out.composite.png", PNG)
        add(shard, "../out.mask.png", MASK)
    (tmp_path / "in" / "s1.tar").write_bytes(b"this is no tar file")
    summary = run(tmp_path / "in", tmp_path / "out", suffix=".jpg")
    assert (summary.exit_code, summary.done) == (3, 1)
    with tarfile.open(tmp_path / "out" / "s0.tar") as shard:
        assert shard.getnames() == ["day/a.harmonized.jpg", "b.harmonized.jpg"]
        assert {(member.mtime, member.uid) for member in shard.getmembers()} == {(0, 0)}
        assert Image.open(shard.extractfile("b.harmonized.jpg")).size == (32, 32)
    errors = {line["id"]: line["reason"] for line in lines(tmp_path / "out" / "errors.jsonl")}
    assert [*errors] == ["s0/cut", "s0/alone", "s0/../out", "s1"]
    assert errors["s0/cut"].startswith("cut.composite.jpg") and "has no mask" in errors["s0/alone"]
    assert str(tmp_path) not in str(errors)
    before = contents(tmp_path / "out")
    run(tmp_path / "in", tmp_path / "again", suffix=".jpg")
    assert contents(tmp_path / "again") == before


def test_mask_of_another_size_is_resized_on_request(tmp_path):
    source = make_pictures(tmp_path / "in", 1)
    save_mask(source / "p000_mask.png", 64)
    assert run(source, tmp_path / "no").failed == 1
    assert run(source, tmp_path / "yes", resize_mask=True).done == 1
