"""The pool of processes: dead workers are replaced, and what kills them is given up."""

import os
import signal

import pytest
from batch_jobs import contents, journal, lines, make_pictures, run, settings_for

from harmony_diffusion.batch.inputs import find_inputs
from harmony_diffusion.batch.local import InProcessEngine, LocalEngine
from harmony_diffusion.errors import HarmonyError

COUNT = 40


class DeadlyEngine(LocalEngine):
    """Kills the worker that gets certain entries, as a picture would that needs too much memory."""

    def __init__(self, settings, workers, deadly, times):
        super().__init__(settings, workers)
        self.left = dict.fromkeys(deadly, times)

    def submit(self, worker, work):
        super().submit(worker, work)
        for i, _ in work:
            if self.left.get(i):
                self.left[i] -= 1
                os.kill(self._members[worker].process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pool") / "in", COUNT)


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("one") / "out"
    run(source, out)
    return contents(out)


def deadly_run(source, out, deadly, times, workers=2):
    settings = settings_for(find_inputs(source), out)
    return run(source, out, engine=DeadlyEngine(settings, workers, deadly, times))


def test_two_workers_make_the_bytes_of_one(source, expected, tmp_path):
    summary = run(source, tmp_path, workers=2)
    assert summary.exit_code == 0 and summary.deaths == 0
    assert contents(tmp_path) == expected


def test_decoding_and_encoding_beside_the_model_changes_nothing(source, expected, tmp_path):
    settings = settings_for(find_inputs(source), tmp_path)
    assert run(source, tmp_path, engine=InProcessEngine(settings, overlap=True)).new == COUNT
    assert contents(tmp_path) == expected
    assert [record["id"] for record in journal(tmp_path)] == sorted(
        {line["id"] for line in journal(tmp_path)}
    )


@pytest.mark.parametrize(
    "deadly", [(3, 20), pytest.param(range(2, 32, 3), marks=pytest.mark.slow)], ids=["2", "10"]
)
def test_workers_killed_once_cost_nothing_but_time(source, expected, tmp_path, deadly):
    summary = deadly_run(source, tmp_path, deadly, 1)
    assert summary.exit_code == 0 and summary.deaths == len(deadly)
    assert contents(tmp_path) == expected
    assert len({record["id"] for record in journal(tmp_path)}) == COUNT


def test_picture_that_kills_its_worker_twice_is_given_up(source, expected, tmp_path):
    summary = deadly_run(source, tmp_path, [5], 9)
    assert (summary.exit_code, summary.deaths, summary.failed, summary.done) == (3, 2, 1, COUNT - 1)
    assert lines(tmp_path / "errors.jsonl") == [{"id": "p005", "reason": "killed the worker twice"}]
    assert run(source, tmp_path, options={"retry_failed": True}).exit_code == 0
    assert contents(tmp_path) == expected


def test_no_process_is_left_behind(source, tmp_path):
    settings = settings_for(find_inputs(source), tmp_path)
    engine = LocalEngine(settings, 2)
    engine.start()
    pids = engine.pids
    run(source, tmp_path, engine=engine)
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_model_that_cannot_be_loaded_is_said_once_and_nothing_is_written(source, tmp_path):
    with pytest.raises(HarmonyError, match="No model is called 'no_such'"):
        run(source, tmp_path / "out", workers=2, model="no_such")
    assert not (tmp_path / "out").exists()


def test_workers_killed_while_they_load_end_the_job(source, tmp_path):
    class Stillborn(LocalEngine):
        def start(self):
            super().start()
            for member in self._members:
                member.process.kill()

    settings = settings_for(find_inputs(source), tmp_path / "out")
    with pytest.raises(HarmonyError, match="while they load the model"):
        run(source, tmp_path / "out", engine=Stillborn(settings, 1))
    assert not (tmp_path / "out").exists()
