"""What each test file takes of a processor: long files begin first, so that no worker is left with
one when the others are done.

    GUIDESTAR_SECONDS=/tmp/seconds make test-all
    python tests/helpers/seconds.py /tmp/seconds

measures every test and writes the table anew (``tests/seconds.txt``); it names the tests that take
seconds and are not marked slow. The time is a processor's, of the test and of the processes that it
started and awaited: a machine that does other work too changes nothing of it.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[1] / "seconds.txt"
SLOW = 2.0  # seconds of a test that is marked slow
WORTH = 1.0  # seconds of a file that is worth a line


def read_table() -> dict[str, float]:
    """Return the seconds of each file that takes long."""
    rows = (line.split() for line in TABLE.read_text().splitlines())
    return {file: float(seconds) for seconds, file in rows}


def longest_first(items: list[pytest.Item]) -> None:
    """Sort tests by the seconds of their files; within a file they keep their order."""
    seconds = read_table()
    items.sort(key=lambda item: -seconds.get(item.nodeid.partition("::")[0], 0.0))


class Stopwatch:
    """A pytest plugin that writes down the seconds of each test, one line a test, in a file of
    each worker.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"{os.environ.get('PYTEST_XDIST_WORKER', 'alone')}.jsonl"
        self.file.unlink(missing_ok=True)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item):
        before = sum(os.times()[:4])
        yield
        row = (item.nodeid, sum(os.times()[:4]) - before, bool(item.get_closest_marker("slow")))
        with self.file.open("a") as out:
            out.write(json.dumps(row) + "\n")


def main(folder: Path) -> None:
    """Write the table from what was measured, and name what is to be marked slow."""
    rows = [json.loads(line) for f in folder.glob("*.jsonl") for line in f.open()]
    files, tests = Counter(), Counter()
    for name, seconds, slow in rows:
        files[name.partition("::")[0]] += seconds
        if not slow:
            tests[name] = seconds
    lines = [f"{s:.1f} {file}" for file, s in files.most_common() if s >= WORTH]
    TABLE.write_text("\n".join(lines) + "\n")
    quick = sum(tests.values())
    print(f"{len(rows)} tests take {sum(files.values()):.0f} s, {quick:.0f} s of them not slow")
    for name, seconds in tests.most_common():
        if seconds < SLOW:
            break
        print(f"{seconds:.1f} s, and not marked slow: {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
