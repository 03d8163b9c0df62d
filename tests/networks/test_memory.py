"""The memory that there is: the least of what limits it, or what the environment says."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from guidestar.networks import memory
from guidestar.networks.memory import MEMORY, available_memory


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Sets the machine's and the container's memory (None: not known)."""
    monkeypatch.delenv(MEMORY, raising=False)
    file = tmp_path / "memory.max"
    places = {"/sys/fs/cgroup/memory.max": file}
    monkeypatch.setattr(memory, "Path", lambda name: places[name])

    def give(pages: int | None, container: str | None) -> None:
        def sysconf(name: str) -> int:
            if pages is None:
                raise ValueError("unrecognized configuration name")
            return {"SC_PHYS_PAGES": pages, "SC_PAGE_SIZE": 100}[name]

        monkeypatch.setattr(memory.os, "sysconf", sysconf)
        file.unlink(missing_ok=True)
        if container is not None:
            file.write_text(container)

    return give


@pytest.mark.parametrize(
    ("pages", "container", "found"),
    [
        (7, None, 700),
        (7, "max\n", 700),
        (7, "650\n", 650),
        (7, "750\n", 700),
        (None, "650", 650),
        (None, "max", None),
        (None, None, None),
        (0, "0", None),
    ],
)
def test_the_least_limit_that_is_known(machine, pages, container, found):
    machine(pages, container)
    assert available_memory() == found


@pytest.mark.parametrize(
    ("gpu", "there", "found"),
    [(True, True, 300), (False, True, 650), (True, False, 650)],
)
def test_what_is_moved_to_a_gpu_must_fit_there_too(machine, monkeypatch, gpu, there, found):
    machine(7, "650")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    first: Any = {0: SimpleNamespace(total_memory=300), 1: SimpleNamespace(total_memory=100)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", first.__getitem__)
    assert available_memory(gpu=gpu) == found


@pytest.mark.parametrize(("given", "found"), [("2", 2_000_000_000), ("1e-9", 1), ("1.5e-8", 15)])
def test_the_environment_goes_before_the_machine(machine, monkeypatch, given, found):
    machine(7, "650")
    monkeypatch.setenv(MEMORY, given)
    assert available_memory() == found
    monkeypatch.setenv(MEMORY, "")
    assert available_memory() == 650


@pytest.mark.parametrize("given", ["0", "-1", "1e9", "nan", "inf", "many"])
def test_what_is_no_number_of_gigabytes_is_refused(monkeypatch, given):
    monkeypatch.setenv(MEMORY, given)
    with pytest.raises(ValueError, match=f"{MEMORY} must be a number of GB above 0, not '{given}'"):
        available_memory()
