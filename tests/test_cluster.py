import json
import os
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
import tiny
import torch

from helpers.model import load_pretrained
from helpers.studies import ablation, cluster, runs

distributed = pytest.importorskip("dask.distributed", reason="needs dask[distributed]")
dask = pytest.importorskip("dask")

OPTIONS = "--data shapes10 --train-size 60 --validation-size 20 --epochs 1 --image-sizes 16".split()
OPTIONS += ["--seeds", "2", "--variants", "the recipe", "without flip"]
LOCAL = {"protocol": "tcp", "dashboard_address": ":0"}  # on a port that is free


@pytest.fixture(scope="module")
def scheduler():
    """The address of a cluster of two processes, each with one thread."""
    settings = {
        # Dask sets variables for its workers here and leaves them: one makes all that later tests
        # start half as fast.
        "distributed.nanny.pre-spawn-environ": {},
        # How soon Dask drops copies of what no run is waiting for; by default every two seconds.
        "distributed.scheduler.active-memory-manager.interval": "20ms",
    }
    kept = dask.config.set(settings)
    with kept, tiny.one_thread():
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **LOCAL) as local:
            yield local.scheduler_address


@pytest.fixture(autouse=True)
def few_test_images(monkeypatch):
    monkeypatch.setattr(runs, "load_dataset", tiny.load_few_test_images)


@pytest.fixture
def study(tmp_path):
    return tiny.make_study(tmp_path / "table.csv")


@pytest.mark.process
def test_runs_on_a_cluster_give_the_table_of_runs_here(tmp_path, monkeypatch, capsys, scheduler):
    monkeypatch.chdir(tmp_path)  # where the workers are not: a path from here must reach them whole
    tables = []
    for name, how in {"here.csv": [], "there.csv": ["--scheduler", scheduler]}.items():
        with tiny.one_thread():
            ablation.main([*OPTIONS, *how, "--output", name])
        tables.append(pd.read_csv(name).sort_values(["seed", "variant"], ignore_index=True))
        # Rows as they came, then the summary with its three heads.
        assert len(capsys.readouterr().out.splitlines()) == 4 + 5
    pd.testing.assert_frame_equal(*tables)
    assert list(tables[1]["seed"]) == [0, 0, 1, 1]
    paths = [tmp_path / f"{name}-narrow-1.pt" for name in ("here", "there")]
    twins = [load_pretrained(str(path)).state_dict().values() for path in paths]
    assert all(torch.equal(*weights) for weights in zip(*twins))


def count(study):
    """How many runs this process has made with this very object."""
    vars(study)["runs"] = vars(study).get("runs", 0) + 1
    return {"process": os.getpid(), "runs": vars(study)["runs"]}


@pytest.mark.process
def test_images_go_to_a_worker_once_and_stay_there(study, scheduler):
    with cluster.on_cluster(scheduler, study):
        time.sleep(0.2)  # so long that Dask could drop all copies but one
        with distributed.Client(scheduler, set_as_default=False) as client:
            holders = [who for key, who in client.who_has().items() if key.startswith("Study")]
        assert [len(who) for who in holders] == [2]
        table = study.run_missing({(seed, "a"): (count,) for seed in range(8)})
    for _, rows in table.groupby("process"):
        assert sorted(rows["runs"]) == list(range(1, len(rows) + 1))


def killed_once(study, seed, mark, tester):
    """A run whose process is killed, the first time, before it can tell of it."""
    assert os.getpid() != tester
    row = runs.train_once(study, "a", seed, {})
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return row | {"process": os.getpid()}
    mark.write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.process
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows cannot kill")
def test_run_whose_worker_is_killed_is_made_by_another(tmp_path, study, scheduler):
    mark = tmp_path / "killed"
    calls = {(seed, "a"): (killed_once, seed, mark, os.getpid()) for seed in range(4)}
    with cluster.on_cluster(scheduler, study):
        table = study.run_missing(calls)
    assert sorted(table["seed"]) == [0, 1, 2, 3] and pd.DataFrame(
        runs.read_rows(study.path)
    ).equals(table)
    assert int(mark.read_text()) not in table["process"].tolist()


def refused(scheduler, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        ablation.main([*OPTIONS, "--output", str(tmp_path / "t.csv"), "--scheduler", scheduler])
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:{}", "127.0.0.1:{}", "nonsense", "tcp://:port"]
)
def test_scheduler_that_is_not_there_is_one_line_within_seconds(tmp_path, capsys, address):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address, began = address.format(taken.getsockname()[1]), time.monotonic()
        assert refused(address, tmp_path, capsys).startswith(f"no cluster to use at {address} (")
    assert time.monotonic() - began < 5 and not (tmp_path / "t.csv").exists()


@pytest.mark.process
def test_scheduler_that_cannot_import_the_project_is_refused(tmp_path, capsys):
    options = "--port=0 --scheduler-file=s.json --no-dashboard".split()
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as process:
        while not (tmp_path / "s.json").exists():
            time.sleep(0.1)
        address = json.loads((tmp_path / "s.json").read_text())["address"]
        assert "No module named 'helpers'" in refused(address, tmp_path, capsys)
        process.terminate()


def test_missing_dask_is_named_with_the_command_that_gets_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    line = refused("tcp://127.0.0.1:1", tmp_path, capsys)
    assert "dask.distributed" in line and 'pip install "dask[distributed]"' in line


@pytest.mark.process
@pytest.mark.parametrize(
    ("workers", "threads", "seconds", "reason"),
    [(1, 1, 2, "1/2 workers"), (2, 2, 10, "one thread each")],
)
def test_workers_that_would_spoil_the_runs_are_refused(
    study, monkeypatch, workers, threads, seconds, reason
):
    monkeypatch.setattr(cluster, "TIMEOUT_SECONDS", seconds)
    size = {"n_workers": workers, "threads_per_worker": threads, "processes": False}
    with distributed.LocalCluster(**size, **LOCAL) as local:
        address = local.scheduler_address
        with pytest.raises(OSError, match=reason), cluster.on_cluster(address, study):
            pass
