"""The checks of ``make gpu``: at tiny sizes on the CPU, and on a GPU where there is one."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="module")
def gpu():
    names = ("gpu", "newer_pipelines", "pipelines", "against_diffusers")
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield importlib.import_module("gpu")
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in names:
            sys.modules.pop(name, None)


def test_without_a_gpu_it_says_so(gpu, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "there is no CUDA device here; --device cpu --small runs the same checks on the CPU"
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("part", ["devices", "precision", "steps"])
def test_a_part_holds(gpu, part, device):
    checks = list(gpu.PARTS[part](gpu.SMALL, device))
    assert checks and all(c.holds for c in checks), gpu.table(checks)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("part", ["pipelines", "compiled"])
def test_a_long_part_holds(gpu, part, device):
    checks = list(gpu.PARTS[part](gpu.SMALL, device))
    assert checks and all(c.holds for c in checks), gpu.table(checks)


def test_a_wait_in_every_step_is_found(gpu, monkeypatch):
    plain = gpu.Network.forward

    def waiting(self, x, level, cond):
        assert x.sum().item() == x.sum().item()
        return plain(self, x, level, cond)

    monkeypatch.setattr(gpu.Network, "forward", waiting)
    found = list(gpu.steps(gpu.SMALL, "cpu"))
    assert found[0].value >= 2 and not found[0].holds


def test_half_precision_is_not_equal_by_accident(gpu):
    assert all(c.value > 0 for c in gpu.precision(gpu.SMALL, "cpu"))


def test_a_failing_check_fails_the_command(gpu, capsys, monkeypatch):
    bad = lambda sizes, device: iter([gpu.Check("steps: waits", 2.0, 0.0), gpu.Check("time", 3.0)])
    monkeypatch.setitem(gpu.PARTS, "steps", bad)
    assert gpu.main(["--device", "cpu", "--small", "--only", "steps"]) == 2
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| steps: waits | 2 | 0 | FAILS |",
        "| time | 3 |  |  |",
    ]
