"""Several processes train, sample and measure as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import distributed

pytestmark = pytest.mark.slow


def launch(*command: str, processes: int = 2) -> subprocess.CompletedProcess:
    # On CPUs alone accelerate launches several processes only by MPI, or as if they were GPUs; the
    # processes find out for themselves.
    how = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        str(processes),
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    alone = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("ACCELERATE_", "WORLD_SIZE", "RANK", "LOCAL_RANK"))
    }
    port = ["--main_process_port", "0"]
    done = subprocess.run(
        [*how, *port, *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
        env={**alone, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "losses.json"
    launch(str(Path(distributed.__file__)), str(out))
    found = json.loads(out.read_text())
    assert found["processes"] == 2
    return found


@pytest.fixture(scope="module")
def one():
    """The losses of one process, by its precision."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {precision: distributed.losses(precision) for precision in ("float32", "float64")}
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
def test_two_processes_train_as_one(one, two, precision, tolerance):
    alone = one[precision]
    assert len(alone) == len(two[precision]) == 100
    assert sum(alone[-20:]) < 0.8 * sum(alone[:20])  # it learns
    assert max(abs(a - b) / a for a, b in zip(alone, two[precision], strict=True)) <= tolerance


def test_a_network_spread_over_processes_trains_and_resumes_as_a_whole_one(one, two):
    alone = one["float64"]
    assert len(two["sharded"]) == 100
    assert max(abs(a - b) / a for a, b in zip(alone, two["sharded"], strict=True)) <= 1e-10


def test_accumulating_changes_nothing(one, two):
    alone = one["float64"]
    for other in (two["accumulated"], distributed.losses("float64", 4)):
        assert max(abs(a - b) / a for a, b in zip(alone, other, strict=True)) <= 1e-10
