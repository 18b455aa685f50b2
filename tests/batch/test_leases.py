import json
import os
import signal
import subprocess
import sys
import time

import pytest
from batch_jobs import contents, journal, lines, make_pictures, run, start

from harmony_diffusion.batch import leases as module
from harmony_diffusion.batch.leases import Leases, Owner, owner_of_name, remove_abandoned


@pytest.fixture
def pair(tmp_path):
    return Leases(tmp_path, Owner.this_process()), Leases(tmp_path, Owner.this_process())


def elsewhere(owner=None):
    """An owner on another machine, of which nobody can know whether it runs."""
    return Owner("elsewhere_00000000", 1, "feed" if owner is None else owner)


def age(path, seconds):
    stamp = path.stat().st_mtime - seconds
    os.utime(path, (stamp, stamp))


def test_one_process_holds_a_lease_until_it_gives_it_back(pair):
    mine, theirs = pair
    assert mine.take(7) and not theirs.take(7)
    theirs.give_back(7)
    assert not theirs.take(7)
    mine.give_back(7)
    assert theirs.take(7)


def test_lease_of_another_machine_is_taken_over_after_a_minute_of_silence(tmp_path, pair):
    mine, _ = pair
    (tmp_path / "000003").write_text(json.dumps(elsewhere()))
    assert not mine.take(3)
    age(tmp_path / "000003", module.STALE_SECONDS - 5)
    assert not mine.take(3)
    age(tmp_path / "000003", 10)
    assert mine.take(3)
    mine.give_back(3)
    assert [path for path in tmp_path.iterdir() if not path.name.startswith("clock")] == []


def test_wrong_clock_of_this_machine_changes_nothing(tmp_path, pair, monkeypatch):
    mine, _ = pair
    (tmp_path / "000000").write_text(json.dumps(elsewhere()))
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert not mine.take(0)


def test_lease_of_a_process_that_ended_here_is_taken_over_at_once(tmp_path, pair):
    mine, _ = pair
    ended = subprocess.Popen([sys.executable, "-c", ""])
    while Owner(mine.owner.host, ended.pid, "x").has_ended is False:
        time.sleep(0.01)  # nobody has asked for its exit status: it is a zombie
    (tmp_path / "000001").write_text(json.dumps(Owner(mine.owner.host, ended.pid, "x")))
    assert mine.take(1)
    ended.wait()
    assert Owner(mine.owner.host, ended.pid, "x").has_ended
    assert not mine.owner.has_ended and not elsewhere().has_ended


def test_lease_that_was_torn_by_a_crash_is_taken_over_after_a_minute(tmp_path, pair):
    mine, _ = pair
    (tmp_path / "000002").write_text('["elsew')
    assert not mine.take(2)
    age(tmp_path / "000002", module.STALE_SECONDS + 1)
    assert mine.take(2)


def test_refresh_touches_own_leases_and_tells_which_were_taken(tmp_path, pair, monkeypatch):
    mine, theirs = pair
    assert mine.take(0) and mine.take(1)
    age(tmp_path / "000000", 30)
    assert mine.refresh() == set()  # not every time
    monkeypatch.setattr(module, "TOUCH_SECONDS", 0.0)
    (tmp_path / "000001").write_text(json.dumps(theirs.owner))
    before = (tmp_path / "000000").stat().st_mtime
    assert mine.refresh() == {1}
    assert (tmp_path / "000000").stat().st_mtime > before + 20
    mine.give_all_back()
    assert {path.name for path in tmp_path.iterdir()} == {"000001"}


def test_fresh_lease_that_was_moved_by_mistake_comes_back(tmp_path, pair):
    mine, theirs = pair
    assert theirs.take(4)
    assert not mine._remove_stale(tmp_path / "000004", elsewhere())
    assert not mine.take(4)
    theirs.give_back(4)
    assert mine.take(4)


def test_temporary_folders_of_ended_processes_are_removed(tmp_path):
    mine = Owner.this_process()
    ended = mine._replace(pid=2**22 + 1)  # above the largest number Linux gives
    for owner in (mine, ended, elsewhere()):
        (tmp_path / owner.name).mkdir()
    age(tmp_path / elsewhere().name, 90_000)
    remove_abandoned(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [mine.name]
    assert owner_of_name(mine.name) == mine and owner_of_name("x.tmp") is None


def test_two_runs_on_one_folder_share_the_work(tmp_path):
    source = make_pictures(tmp_path / "in", 140)
    run(source, tmp_path / "expected")
    out = tmp_path / "out"
    first, second = start(source, out), start(source, out)
    for process in (first, second):
        process.join()
        assert process.exitcode == 0
    assert contents(out) == contents(tmp_path / "expected")
    made = [record["id"] for record in journal(out)]
    assert sorted(made) == sorted({*made}) and len(made) == 140
    assert len(lines(out / "manifest.jsonl")) == 140
    assert not list((out / ".harmony" / "leases").glob("*/0*"))


def test_stopped_run_is_taken_over_and_leaves_what_it_lost(tmp_path):
    # The minute of silence passes by `utime`.

    source, out = make_pictures(tmp_path / "in", 100), tmp_path / "out"
    run(source, tmp_path / "expected")
    stopped = start(source, out)
    while len(journal(out)) < 10:
        time.sleep(0.002)
    os.kill(stopped.pid, signal.SIGSTOP)
    for path in (out / ".harmony" / "leases").glob("*/0*"):
        age(path, module.STALE_SECONDS + 30)
    assert run(source, out).exit_code == 0
    os.kill(stopped.pid, signal.SIGCONT)
    stopped.join()
    assert stopped.exitcode == 0
    assert contents(out) == contents(tmp_path / "expected")
    assert 100 <= len(journal(out)) <= 100 + 64
