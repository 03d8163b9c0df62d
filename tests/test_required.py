"""In continuous integration nothing is skipped because it is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TEST = """
import pytest

def test_there():
    assert pytest.importorskip("json").dumps(1) == "1"

def test_missing():
    pytest.importorskip("no_such_module_as_this")
"""


@pytest.mark.parametrize(
    ("environment", "outcome"),
    [
        ({}, "1 passed, 1 skipped"),
        ({"GUIDESTAR_CI": "0"}, "1 passed, 1 skipped"),
        ({"GUIDESTAR_CI": "1"}, "1 failed, 1 passed"),
        ({"CI": "true"}, "1 failed, 1 passed"),
    ],
    ids=str,
)
def test_what_is_missing_fails_in_ci_and_is_skipped_elsewhere(tmp_path, environment, outcome):
    (tmp_path / "test_it.py").write_text(TEST)
    (tmp_path / "conftest.py").write_text("from helpers import required\n\nrequired.install()\n")
    bare = {k: v for k, v in os.environ.items() if k not in ("CI", "GUIDESTAR_CI")}
    path = {"PYTHONPATH": str(Path(__file__).parent)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    out = subprocess.run(
        command, env=bare | path | environment, capture_output=True, text=True, check=False
    ).stdout
    assert outcome in out, out


def test_ci_says_that_it_is_ci():
    assert "export GUIDESTAR_CI=1" in (Path(__file__).parents[1] / ".ci" / "run").read_text()
