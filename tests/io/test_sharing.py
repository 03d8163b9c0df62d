"""Which process draws which samples, and how they are brought together."""

from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch

from guidestar.io import distributed as processes
from helpers.noting import noted


@pytest.fixture
def three(monkeypatch):
    """The second of three processes."""
    state = SimpleNamespace(process_index=1, num_processes=3, is_main_process=False)
    monkeypatch.setattr(processes, "several", lambda: state)
    return state


@pytest.mark.parametrize(("world", "alone"), [(None, True), ("1", True), ("2", False)])
def test_several_processes_are_those_of_a_launcher(monkeypatch, world, alone):
    made = noted(monkeypatch, accelerate, "PartialState", "state")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if world is None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("WORLD_SIZE", world)
    assert processes.several() == (None if alone else "state")
    assert made == ([] if alone else [((), {"cpu": True})])


def test_a_process_alone_has_all(monkeypatch):
    monkeypatch.setattr(processes, "several", lambda: None)
    assert processes.own_indices(3) == [0, 1, 2] and processes.is_main() and processes.count(7) == 7
    x = torch.zeros(1)
    assert processes.gather([(2, x), (0, x), (1, x)]) == [(0, x), (1, x), (2, x)]


def test_every_third_sample_of_three_processes(three, monkeypatch):
    assert processes.own_indices(8) == [1, 4, 7] and processes.own_indices(1) == []
    assert not processes.is_main()
    three.is_main_process = True
    assert processes.is_main()
    asked: list[Any] = []
    rows = [[(3, "d"), (0, "a")], [(1, "b")], [(2, "c")]]

    def of_all(own, count):
        asked.append((own, count))
        return rows

    monkeypatch.setattr(processes, "_of_all", of_all)
    found = processes.gather([(1, torch.ones(1))])
    assert [x for _, x in found] == ["a", "b", "c", "d"] and [i for i, _ in found] == [0, 1, 2, 3]
    ((number, x),), count = asked[0]
    assert number == 1 and x.tolist() == [1.0] and count == 3
    monkeypatch.setattr(processes, "_of_all", lambda own, count: [own, 10, 20][:count])
    assert processes.count(3) == 33


def test_values_of_all_processes_are_gathered(monkeypatch):
    def gather(everyone, own):
        assert everyone == [own] * 3
        everyone[:] = ["x", own, "z"]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    assert processes._of_all("y", 3) == ["x", "y", "z"]
