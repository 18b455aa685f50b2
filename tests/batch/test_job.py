"""A batch that is killed at any moment ends with the bytes of one that was not."""

import json
import os
import random
import signal
import time
from collections import Counter

import numpy as np
import pytest
from batch_jobs import contents, journal, lines, make_pictures, run, start
from PIL import Image

from harmony_diffusion.errors import OutputError

COUNT = 70  # more than one lease


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of inputs, and what an undisturbed run made of it."""
    folder = tmp_path_factory.mktemp("finished")
    make_pictures(folder / "in", COUNT)
    assert run(folder / "in", folder / "out").exit_code == 0
    return folder / "in", contents(folder / "out")


def wait_for_lines(out, count):
    while len(journal(out)) < count:
        time.sleep(0.002)


def kill_and_resume(source, out, kills, seed):
    """Kill a run at random moments, then let it finish; return how often a picture was made."""
    rng = random.Random(seed)
    for _ in range(kills):
        process = start(source, out)
        wait_for_lines(out, min(len(journal(out)) + rng.randrange(3), COUNT))
        time.sleep(rng.random() * 0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert run(source, out).exit_code == 0
    return Counter(record["id"] for record in journal(out))


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_same_bytes(finished, tmp_path, kills):
    source, expected = finished
    made = kill_and_resume(source, tmp_path / "out", kills, seed=kills)
    assert contents(tmp_path / "out") == expected
    # A picture is made again only if the kill came between its file and its line.
    assert len(made) == COUNT and sum(made.values()) <= COUNT + kills
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_output_without_line_and_line_without_output_are_made_again(finished, tmp_path):
    source, expected = finished
    out = tmp_path / "out"
    run(source, out)
    (path,) = (out / ".harmony" / "journal").glob("*.jsonl")
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(whole[: last + 20])  # as a crash in the middle of the line leaves it
    (out / "p003.png").unlink()
    (out / "p004.png").write_bytes(b"short")
    assert run(source, out).new == 3
    assert contents(out) == expected


def test_kill_while_the_manifest_is_written_leaves_none_or_all_of_it(finished, tmp_path, monkeypatch):
    source, expected = finished
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", _failing_for("manifest.jsonl", os.replace))
        with pytest.raises(KeyboardInterrupt):
            run(source, out)
    assert not (out / "manifest.jsonl").exists()
    assert run(source, out).new == 0
    assert contents(out) == expected


def _failing_for(name, replace):
    def call(source, target, **options):
        if str(target).endswith(name):
            raise KeyboardInterrupt
        return replace(source, target, **options)

    return call


def test_second_run_does_nothing_and_verify_finds_a_changed_file(finished, tmp_path):
    source, expected = finished
    out = tmp_path / "out"
    run(source, out)
    assert run(source, out).new == 0
    data = bytearray((out / "p005.png").read_bytes())
    data[-20] ^= 1
    (out / "p005.png").write_bytes(data)
    assert run(source, out).new == 0  # the size is the same
    assert run(source, out, options={"verify": True}).new == 1
    assert contents(out) == expected


def test_changed_and_added_inputs_are_made_and_no_others(tmp_path):
    source, out = make_pictures(tmp_path / "in", 6), tmp_path / "out"
    run(source, out)
    Image.fromarray(np.full((32, 32, 3), 9, np.uint8)).save(source / "p002.png")
    mask = Image.open(source / "p004_mask.png").transpose(Image.Transpose.ROTATE_90)
    mask.save(source / "p004_mask.png")
    for ending in (".png", "_mask.png"):
        (source / f"new{ending}").write_bytes((source / f"p000{ending}").read_bytes())
    assert run(source, out).new == 3
    run(source, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")
    assert [line["id"] for line in lines(out / "manifest.jsonl")][:2] == ["new", "p000"]


def test_other_settings_are_refused_with_what_differs_and_restart_accepts_them(tmp_path):
    source, out = make_pictures(tmp_path / "in", 3), tmp_path / "out"
    run(source, out)
    before = contents(out)
    with pytest.raises(OutputError, match=r"strength was 1\.0, is 0\.5.*--restart"):
        run(source, out, strength=0.5)
    assert contents(out) == before
    assert run(source, out, strength=0.5, options={"restart": True}).new == 3
    assert contents(out) != before


def test_failed_pictures_are_tried_again_only_on_request(tmp_path):
    source, out = make_pictures(tmp_path / "in", 3), tmp_path / "out"
    good = (source / "p001.png").read_bytes()
    (source / "p001.png").write_bytes(good[:80])
    stamp = os.stat(source / "p001.png")
    assert run(source, out).exit_code == 3
    assert run(source, out).new == 0
    assert run(source, out, options={"retry_failed": True}).new == 1
    assert [line["id"] for line in lines(out / "errors.jsonl")] == ["p001"]
    (source / "p001.png").write_bytes(good)
    assert os.stat(source / "p001.png").st_size != stamp.st_size
    assert run(source, out).exit_code == 0
    assert lines(out / "errors.jsonl") == []


@pytest.mark.parametrize("content", ["", "[]", "{}", "[" * 100_000])
def test_damaged_record_of_the_settings_is_named_with_the_remedy(tmp_path, content):
    source, out = make_pictures(tmp_path / "in", 1), tmp_path / "out"
    run(source, out)
    (out / ".harmony" / "job.json").write_text(content)
    with pytest.raises(OutputError, match="job.json: is damaged.*--restart"):
        run(source, out)
    assert run(source, out, options={"restart": True}).exit_code == 0


def test_two_runs_that_start_at_once_do_not_both_claim_the_folder(tmp_path, monkeypatch):
    source, out = make_pictures(tmp_path / "in", 1), tmp_path / "out"
    link = os.link

    def link_late(new, path):
        monkeypatch.setattr(os, "link", link)
        run(source, out, strength=0.5)  # another process is quicker by a moment
        link(new, path)

    monkeypatch.setattr(os, "link", link_late)
    with pytest.raises(OutputError, match=r"strength was 0\.5, is 1\.0"):
        run(source, out)


def test_damaged_lines_of_a_journal_cost_only_their_pictures(tmp_path):
    source, out = make_pictures(tmp_path / "in", 7), tmp_path / "out"
    run(source, out)
    expected = contents(out)
    (path,) = (out / ".harmony" / "journal").glob("*.jsonl")
    damages = [
        {"sha256": None},
        {"sha256": "zz" * 32},
        {"sha256": "ab"},
        {"bytes": "zz"},
        {"status": None},
        {"status": "failed"},
    ]
    kept = journal(out)
    records = [record | change for record, change in zip(kept, [*damages, {}], strict=True)]
    path.write_text("[1]\n" + "[" * 100_000 + "\n" + "".join(json.dumps(line) + "\n" for line in records))
    (path.parent / "f.jsonl").mkdir()
    assert run(source, out).new == len(damages)
    assert contents(out) == expected
