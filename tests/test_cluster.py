import json
import os
import signal
import socket
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from helpers.data import load_dataset
from helpers.model import load_pretrained
from helpers.studies import ablation, runs
from helpers.training import TrainConfig

distributed = pytest.importorskip("dask.distributed", reason="needs dask[distributed]")
dask = pytest.importorskip("dask")
OPTIONS = "--data shapes10 --train-size 60 --validation-size 20 --epochs 1 --image-sizes 16 --seeds 2 --variants".split()
OPTIONS += ["the recipe", "without flip"]
LOCAL = {"protocol": "tcp", "dashboard_address": ":0"}  # on a port that is free


@pytest.fixture(scope="module")
def scheduler():
    """The address of a cluster of two processes, which sum up in the order in which `--jobs 2` does: with one thread."""
    # Dask sets variables for its workers here and leaves them: one makes all that later tests start half as fast.
    kept = dask.config.set({"distributed.nanny.pre-spawn-environ": {}})
    with pytest.MonkeyPatch.context() as patch, kept:
        patch.setenv("OMP_NUM_THREADS", "1")
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **LOCAL) as cluster:
            yield cluster.scheduler_address


@pytest.fixture
def study(tmp_path):
    data = load_dataset("shapes10", train_size=60, test_size=20)
    return runs.Study(data.train, data.test, data.test, tmp_path / "table.csv", TrainConfig(epochs=1, image_sizes=(16,)), 16, 1)


def test_runs_on_a_cluster_give_the_table_of_runs_here(tmp_path, monkeypatch, capsys, scheduler):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)  # where the workers are not: a path from here must reach them whole
    tables = []
    for name, how in {"here.csv": ["--jobs", "2"], "there.csv": ["--scheduler", scheduler]}.items():
        ablation.main([*OPTIONS, *how, "--output", name])
        tables.append(pd.read_csv(name).sort_values(["seed", "variant"], ignore_index=True))
        assert len(capsys.readouterr().out.splitlines()) == 4 + 4  # rows as they came, then the summary with its two heads
    pd.testing.assert_frame_equal(*tables)
    assert list(tables[1]["seed"]) == [0, 0, 1, 1]
    twins = [load_pretrained(str(tmp_path / f"{name}-narrow-1.pt")).state_dict() for name in ("here", "there")]
    assert all(torch.equal(*weights) for weights in zip(*(twin.values() for twin in twins)))


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


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows cannot kill")
def test_run_whose_worker_is_killed_is_made_by_another(tmp_path, study, scheduler):
    mark = tmp_path / "killed"
    with runs.on_cluster(scheduler, study):
        table = study.fill({(seed, "a"): (killed_once, seed, mark, os.getpid()) for seed in range(4)})
    assert sorted(table["seed"]) == [0, 1, 2, 3] and pd.read_csv(study.path).equals(table)
    assert int(mark.read_text()) not in table["process"].tolist()


def count(study):
    """How many runs this process has made with this very object."""
    vars(study)["runs"] = vars(study).get("runs", 0) + 1
    return {"process": os.getpid(), "runs": vars(study)["runs"]}


def test_images_go_to_a_worker_once(study, scheduler):
    with runs.on_cluster(scheduler, study):
        table = study.fill({(seed, "a"): (count,) for seed in range(8)})
    for _, rows in table.groupby("process"):
        assert sorted(rows["runs"]) == list(range(1, len(rows) + 1))


def refused(scheduler, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        ablation.main([*OPTIONS, "--output", str(tmp_path / "t.csv"), "--scheduler", scheduler])
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{}", "127.0.0.1:{}", "nonsense", "tcp://:port"])
def test_scheduler_that_is_not_there_is_one_line_within_seconds(tmp_path, capsys, address):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address, began = address.format(taken.getsockname()[1]), time.monotonic()
        assert refused(address, tmp_path, capsys).startswith(f"no cluster to use at {address} (")
    assert time.monotonic() - began < 5 and not (tmp_path / "t.csv").exists()


def test_scheduler_that_cannot_import_the_project_is_refused(tmp_path, capsys):
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--port=0", "--scheduler-file=s.json", "--no-dashboard"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "s.json").exists():
            time.sleep(0.1)
        address = json.loads((tmp_path / "s.json").read_text())["address"]
        assert "No module named 'helpers'" in refused(address, tmp_path, capsys)
        process.terminate()


def test_missing_dask_is_named_with_the_command_that_gets_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask.distributed", None)
    line = refused("tcp://127.0.0.1:1", tmp_path, capsys)
    assert "dask.distributed" in line and 'pip install "dask[distributed]"' in line


@pytest.mark.parametrize(("workers", "threads", "patience", "reason"), [(1, 1, 2, "1/2 workers"), (2, 2, 10, "one thread each")])
def test_workers_that_would_spoil_the_runs_are_refused(study, monkeypatch, workers, threads, patience, reason):
    monkeypatch.setattr(runs, "PATIENCE", patience)
    with distributed.LocalCluster(n_workers=workers, threads_per_worker=threads, processes=False, **LOCAL) as cluster:
        with pytest.raises(OSError, match=reason), runs.on_cluster(cluster.scheduler_address, study):
            pass
