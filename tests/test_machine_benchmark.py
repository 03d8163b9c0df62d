"""The table of ``make machine``: how it is written, and a run of two rows at a tiny size."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("machine")
    sys.modules.pop("machine", None)


def test_medians_are_compared_with_the_first_row_that_runs(machine):
    found = {"a": "ImportError: no", "b": [4.0, 1.0, 2.0], "c": [1.0, 1.0, 9.0]}
    assert machine.table(found).splitlines()[2:] == [
        "| a | does not run: ImportError: no | |",
        "| b | 2.000 | 1.00 |",
        "| c | 1.000 | 0.50 |",
    ]


def test_the_document_has_a_place_for_it(machine, tmp_path, monkeypatch):
    text = machine.DOCUMENT.read_text(encoding="utf-8")
    copy = tmp_path / "performance.md"
    copy.write_text(text, encoding="utf-8")
    monkeypatch.setattr(machine, "DOCUMENT", copy)
    for _ in range(2):
        machine.write("| figures |")
    before, after = text.split(machine.START)[0], text.split(machine.END)[1]
    placed = f"{before}{machine.START}\n| figures |\n{machine.END}{after}"
    assert copy.read_text(encoding="utf-8") == placed


@pytest.mark.slow
def test_rows_take_turns(machine):
    rows = [r for r in machine.ROWS if r.name in ("as it comes", "its passes alone")]
    found = machine.measured(rows, rounds=2, steps=2, batch=2)
    assert [*found] == [r.name for r in rows]
    assert all(len(v) == 2 and min(v) > 0 for v in found.values())
