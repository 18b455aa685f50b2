"""Ray makes the same bytes, and a batch may change its engine midway."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from batch_jobs import contents, journal, make_pictures, run, settings_for, start

from harmony_diffusion.batch.inputs import find_inputs

pytest.importorskip("ray", reason="Ray is not installed: pip install harmony-diffusion[ray]")
from harmony_diffusion.batch.ray_engine import RayEngine

pytestmark = pytest.mark.slow
COUNT = 100


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("ray") / "in", COUNT)


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("local") / "out"
    run(source, out)
    return contents(out)


@pytest.fixture(autouse=True)
def package_on_the_path(monkeypatch):
    """Let the processes of Ray import this checkout."""
    root = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def processes_of_ray():
    """Return number and command of each process that belongs to Ray."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if "raylet" in line or "gcs_server" in line or line.startswith("ray::"):
                found[int(entry.name)] = line
    return found


def listening_sockets():
    """Return number and address of each socket that listens on this machine."""
    tables = [Path("/proc/net") / name for name in ("tcp", "tcp6")]
    rows = (row.split() for table in tables if table.exists() for row in table.read_text().splitlines()[1:])
    return {row[9]: row[1] for row in rows if row[3] == "0A"}


def sockets_of(pids):
    found = set()
    for pid in pids:
        try:
            links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        except OSError:
            continue
        found |= {link[8:-1] for link in links if link.startswith("socket:[")}
    return found & {*listening_sockets()}


def test_ray_with_a_killed_actor_makes_the_bytes_of_the_local_engine(source, expected, tmp_path):
    sockets = set()
    engine = RayEngine(settings_for(find_inputs(source), tmp_path), 2)

    def kill_one():
        while len(journal(tmp_path)) < 20:
            time.sleep(0.01)
        sockets.update(sockets_of(processes_of_ray()))
        os.kill(int(sorted((tmp_path / ".harmony/journal").iterdir())[0].name.split("-")[1]), signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    summary = run(source, tmp_path, engine=engine)
    killer.join()
    assert (summary.exit_code, summary.deaths) == (0, 1)
    assert contents(tmp_path) == expected
    deadline = time.monotonic() + 20
    while processes_of_ray() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of_ray() == {}
    assert sockets and not sockets & {*listening_sockets()}


def killed_after(process, out, count):
    while len(journal(out)) < count:
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def test_engine_may_change_midway(source, expected, tmp_path):
    killed_after(start(source, tmp_path), tmp_path, 20)
    killed_after(start(source, tmp_path, engine="ray"), tmp_path, 50)
    # Ray ends the actors of a killed driver; two agents of its own stay for about a minute.
    deadline = time.monotonic() + 60
    while any("_Actor" in name for name in processes_of_ray().values()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(journal(tmp_path)) < COUNT
    assert run(source, tmp_path).exit_code == 0
    assert contents(tmp_path) == expected
    assert len({record["id"] for record in journal(tmp_path)}) == COUNT


def test_two_nodes_make_the_same_bytes_when_one_is_killed(source, expected, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    second = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    try:
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        engine = RayEngine(settings_for(find_inputs(source), tmp_path), 2)

        def kill_node():
            while len(journal(tmp_path)) < 20 or len({*(tmp_path / ".harmony/journal").iterdir()}) < 2:
                time.sleep(0.01)
            cluster.remove_node(second, allow_graceful=False)

        killer = threading.Thread(target=kill_node)
        killer.start()
        summary = run(source, tmp_path, engine=engine)
        killer.join()
    finally:
        cluster.shutdown()
    assert summary.exit_code == 0 and contents(tmp_path) == expected
