"""`harmony batch` as it is called: exit status, what is printed, and signals."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from batch_jobs import contents, journal, lines, make_pictures, save_mask
from PIL import Image

from harmony_diffusion.cli import main


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("command") / "in", 70)


def batch(*arguments):
    return main(["batch", *map(str, arguments), "--workers", "1", "--model", "reinhard"])


def signal_at(out, count, number):
    """Send a signal to this process when so many pictures are done."""

    def wait():
        while len(journal(out)) < count:
            time.sleep(0.002)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_folder_of_png_becomes_jpeg(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert batch(source, out, "--suffix", ".jpg", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["total"], summary["done"], summary["failed"], summary["exit_code"]) == (70, 70, 0, 0)
    assert Image.open(out / "p042.jpg").format == "JPEG"
    manifest = lines(out / "manifest.jsonl")
    assert manifest[42]["output"] == "p042.jpg"
    assert manifest[42]["bytes"] == (out / "p042.jpg").stat().st_size


def test_result_is_that_of_the_command_image(source, tmp_path):
    assert batch(source, tmp_path / "out", "--strength", "0.7", "--png-level", "6") == 0
    picture, mask = source / "p007.png", source / "p007_mask.png"
    single = tmp_path / "single.png"
    call = ["image", str(picture), str(mask), "-o", str(single), "--model", "reinhard", "--strength", "0.7"]
    assert main(call) == 0
    assert (tmp_path / "out" / "p007.png").read_bytes() == single.read_bytes()


def test_rows_of_foreground_and_background_are_composed_first(tmp_path):
    folder = make_pictures(tmp_path / "in", 2)
    cut = Image.open(folder / "p001.png").convert("RGBA")
    cut.putalpha(Image.open(folder / "p001_mask.png"))
    cut.save(folder / "cut.png")
    (folder / "list.csv").write_text('foreground,background,at,scale\ncut.png,p000.png,"4,2",0.5\n')
    assert batch(folder / "list.csv", tmp_path / "out", "--png-level", "6") == 0
    single = tmp_path / "single.png"
    call = ["compose", str(folder / "cut.png"), str(folder / "p000.png"), "-o", str(single)]
    assert main([*call, "--model", "reinhard", "--at", "4,2", "--scale", "0.5"]) == 0
    assert (tmp_path / "out" / "cut_on_p000.png").read_bytes() == single.read_bytes()


def test_strength_and_reference_of_a_row(tmp_path):
    folder = make_pictures(tmp_path / "in", 1)
    save_mask(folder / "reference.png")
    Image.open(folder / "reference.png").transpose(Image.Transpose.ROTATE_180).save(folder / "reference.png")
    row = {"composite": "p000.png", "mask": "p000_mask.png"}
    rows = [
        row | {"output": "zero.png", "strength": 0},
        row | {"output": "one.png"},
        row | {"output": "part.png", "reference_mask": "reference.png"},
    ]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert batch(folder / "list.jsonl", tmp_path / "out") == 0
    read = {name: Image.open(tmp_path / "out" / f"{name}.png").tobytes() for name in ("zero", "one", "part")}
    assert read["zero"] == Image.open(folder / "p000.png").tobytes()
    assert len({*read.values()}) == 3


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["missing", "out"], "does not exist"),
        (["in", "out", "--masks", "nowhere"], "is no folder"),
        (["in", "out", "--suffix", ".xyz"], "suffix"),
        (["in", "out", "--strength", "2"], "--strength"),
        (["in", "out", "--png-level", "10"], "--png-level"),
        (["in", "out", "--root", "in"], "is for manifests"),
        (["none", "out"], "p000.png has no mask. Nothing was written. The mask of NAME.jpg is NAME_mask.png"),
        (["empty", "out"], "holds nothing to harmonize"),
        (["in", "out", "--device", "nonsense"], "device"),
        (["in", "out", "--device", "meta"], "device: 'meta' cannot be used here"),
        (["in", "out", "--device", "cuda:99"], "device: 'cuda:99' cannot be used here"),
        (["x" * 300, "out"], "File name too long"),
        (["in", "x" * 300], "File name too long"),
        (["in", "out", "--masks", "x" * 300], "File name too long"),
        (["loop", "out"], "Too many levels of symbolic links"),
        (["in", "loop/out"], "Too many levels of symbolic links"),
    ],
)
def test_bad_calls_write_nothing(tmp_path, monkeypatch, capsys, arguments, reason):
    make_pictures(tmp_path / "in", 1)
    make_pictures(tmp_path / "none", 1)
    (tmp_path / "none" / "p000_mask.png").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    assert batch(*arguments) == 2
    error = capsys.readouterr().err.strip()
    assert reason in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_on_error_stop_and_max_errors(tmp_path, capsys):
    folder = make_pictures(tmp_path / "in", 6)
    for i in (1, 3, 5):
        (folder / f"p00{i}.png").write_bytes(b"")
    assert batch(folder, tmp_path / "one", "--on-error", "stop") == 3
    assert len(lines(tmp_path / "one" / "errors.jsonl")) == 1
    assert batch(folder, tmp_path / "two", "--max-errors", "2") == 3
    assert len(lines(tmp_path / "two" / "errors.jsonl")) == 2
    assert batch(folder, tmp_path / "all") == 3
    assert "3 failed" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_the_run_after_the_picture_at_work(source, tmp_path, capsys, number, code):
    handler = signal.getsignal(number)
    thread = signal_at(tmp_path, 20, number)
    assert batch(source, tmp_path) == code
    thread.join()
    assert signal.getsignal(number) == handler
    assert "the same command goes on" in capsys.readouterr().out
    done = journal(tmp_path)
    assert 20 <= len(done) < 70
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == [record["id"] for record in done]
    assert not list((tmp_path / ".harmony" / "leases").glob("*/0*"))
    assert batch(source, tmp_path) == 0


def command(source, out, *options):
    call = [
        sys.executable,
        "-m",
        "harmony_diffusion.cli",
        "batch",
        str(source),
        str(out),
        "--model",
        "reinhard",
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([*call, *options], start_new_session=True, **quiet)


@pytest.mark.slow
def test_signal_to_the_whole_group_ends_pool_and_all_in_order(source, tmp_path):
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        out = tmp_path / str(code)
        process = command(source, out, "--workers", "2")
        while len(journal(out)) < 5:
            time.sleep(0.002)
        os.killpg(process.pid, number)
        assert process.wait(60) == code
        with pytest.raises(ProcessLookupError):
            for _ in range(200):  # the processes that were started have a moment to end
                os.killpg(process.pid, 0)
                time.sleep(0.05)


@pytest.mark.slow
def test_group_killed_25_times_ends_with_the_same_bytes(source, tmp_path):
    assert batch(source, tmp_path / "expected") == 0
    out, rng, kills = tmp_path / "out", random.Random(25), 25
    for _ in range(kills):
        process = command(source, out, "--workers", "2")
        enough = len(journal(out)) + rng.randrange(4)
        while len(journal(out)) < min(enough, 70) and process.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert command(source, out, "--workers", "2").wait() == 0
    assert contents(out) == contents(tmp_path / "expected")
    assert len(journal(out)) <= 70 + 2 * kills
    assert not list(out.rglob("*.tmp"))


def test_signal_while_the_plan_is_made_leaves_nothing(tmp_path):
    folder = make_pictures(tmp_path / "in", 1)
    row = json.dumps({"composite": "p000.png", "mask": "p000_mask.png"})[:-1]
    with (folder / "list.jsonl").open("w") as file:
        file.writelines(f'{row}, "output": "o{i}.png"}}\n' for i in range(200_000))
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        out = tmp_path / str(code)

        def send(number=number, out=out):
            while not list(out.rglob("plan.jsonl")):
                time.sleep(0.002)
            os.kill(os.getpid(), number)

        thread = threading.Thread(target=send)
        thread.start()
        assert batch(folder / "list.jsonl", out) == code
        thread.join()
        assert not out.exists()


@pytest.mark.parametrize("option", ["--workers=x", "--workers=0", "--max-memory=inf", "--max-memory=1e999G"])
def test_numbers_that_cannot_be_are_refused_in_words(tmp_path, capsys, option):
    with pytest.raises(SystemExit) as stop:
        main(["batch", str(tmp_path), str(tmp_path / "out"), option])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "_positive" not in error and ("must be an integer" in error or "expected bytes" in error)


@pytest.mark.parametrize("kind", ["none", "closed", "full"])
def test_deaf_terminal_changes_neither_the_work_nor_the_exit_code(tmp_path, monkeypatch, kind):
    source = make_pictures(tmp_path / "in", 2)
    for name in ("stdout", "stderr"):
        stream = None if kind == "none" else open("/dev/full" if kind == "full" else os.devnull, "w")
        if kind == "closed":
            stream.close()
        monkeypatch.setattr(sys, name, stream)
    assert batch(source, tmp_path / "out") == 0
    (source / "p000.png").write_bytes(b"")
    assert batch(source, tmp_path / "out") == 3


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read all")
def test_folder_that_may_not_be_entered_is_named(tmp_path, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    assert batch(locked / "in", tmp_path / "out") == 2
    assert "Permission denied" in capsys.readouterr().err
