"""Break the library in one place at a time, and see whether the tests notice.

    python tests/mutate.py --sample 400 --seed 7   400 mutants of all files, by their lines of code
    python tests/mutate.py tcfg posterior          every mutant of the files that have these in
    their path python tests/mutate.py dps --only displacing   those whose description has this in it
    python tests/mutate.py --again                 those that survived last time
    python tests/mutate.py --map                   only find out which test runs which function

Each mutant is a copy of the library with one change (`helpers/mutants.py`): an operator, a sign, a
bound of a comparison, a constant, a condition, a branch, a dropped statement or argument, a swapped
pair. It is tried in a fork of a pytest session that is held once all tests are read, so that no
trial reads them again (`helpers/held.py`); a change outside functions, or of what ran while the
tests were read, is tried in a process of its own. Both run the tests that run the changed function
(`helpers/reach.py`), the quickest first, until one fails. A mutant that no test fails on has
survived: either a test is missing, or the mutant means the same; those are in `equivalent.toml`, by
function and change, with the reason.

A test of one function with values written by hand kills its mutants in milliseconds; one that runs
a whole pipeline may be out of the budget.

What is kept between runs is in `.mutants/`. Two jobs halve the time on a quiet machine with two
cores.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from helpers.held import Held, Marked, NotHere, fork
from helpers.mutants import Mutant, Source
from helpers.reach import Only, Reach, Watch, digest
from helpers.seconds import read_table

TESTS = Path(__file__).parent
ROOT = TESTS.parent
KEPT = ROOT / ".mutants"
PACKAGE = Path("src/guidestar")
SPARED = (
    "cli",
    "apps",
    "demo",
    "measure",
    "strip",
    "card",
    "about",
    "__main__",
    "__init__",
    "assets",
    "weights",
)
"""Commands and demonstrations, which print; and files that only export."""
UNTRIED = ("distributed", "killed", "documents", "architecture", "test_ray")
"""Tests that start processes of their own, or read the sources."""
LOADED = (
    "numpy torch PIL.Image diffusers transformers pydantic typer accelerate datasets "
    "safetensors.torch jaxtyping beartype hypothesis rich sklearn gradio"
)
TABLES = (
    "tests/test_defaults.py",
    "tests/test_field_bounds.py",
    "tests/test_numbers.py",
    "tests/train/test_recipe_numbers.py",
    "tests/checkpoints/test_published_flags.py",
)
"""What reads numbers that are written outside functions, and so calls none."""
MEMORY = 12 << 30
UNSURE = 77
Say = Callable[..., None]


@dataclass
class Child:
    """A mutant in trial."""

    mutant: Mutant
    home: Path
    pid: int
    limit: float
    start: float = field(default_factory=time.monotonic)


def equivalents() -> list[dict[str, str]]:
    """Return the mutants that are known to mean the same: the function, what the change has in it,
    and why.
    """
    return tomllib.loads((TESTS / "equivalent.toml").read_text())["same"]


def reason(mutant: Mutant, known: Sequence[dict[str, str]]) -> str:
    """Return why a mutant means the same, or "" if it does not. Files are not named: they may
    move.
    """
    return next(
        (k["why"] for k in known if mutant.where == k["where"] and k["change"] in mutant.what), ""
    )


def stale_reasons() -> list[dict[str, str]]:
    """Return the entries of `equivalent.toml` that match no mutant: their code has changed."""
    known = equivalents()
    left = {id(k): k for k in known}
    names = {k["where"] for k in known}
    for source in sources([]):
        for mutant in source.within(names):
            for k in known:
                if k["where"] == mutant.where and k["change"] in mutant.what:
                    left.pop(id(k), None)
    return list(left.values())


def spared(path: Path) -> bool:
    return any(
        part.removesuffix(".py").startswith(SPARED) for part in path.relative_to(PACKAGE).parts
    )


def sources(names: Sequence[str]) -> list[Source]:
    files = [f.relative_to(ROOT) for f in sorted((ROOT / PACKAGE).rglob("*.py"))]
    chosen = (
        [f for f in files if any(name in str(f) for name in names)]
        if names
        else [f for f in files if not spared(f)]
    )
    return [Source(str(f), (ROOT / f).read_text()) for f in chosen]


def drawn(among: Sequence[Source], number: int, seed: int) -> Iterator[Mutant]:
    """Draw mutants: a file by its lines of code, then any place in it, none twice."""
    rng, seen = random.Random(seed), set()
    among = [s for s in among if s.sites]
    weights = [s.lines for s in among]
    while len(seen) < min(number, sum(len(s.sites) for s in among)):
        source = rng.choices(among, weights)[0]
        site = rng.choice(source.sites)
        if (source.file, site) not in seen:
            seen.add((source.file, site))
            yield source.mutant(site)


def copy_of_the_tree(home: Path) -> Path:
    """Make a copy of the files under version control, and of what is new beside them."""
    shutil.rmtree(home, ignore_errors=True)
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = (
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        .stdout.decode()
        .split("\0")
    )
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, home / name)
    subprocess.run(
        [sys.executable, "-m", "compileall", "-q", str(home / "src"), str(home / "tests")],
        check=False,
    )
    return home


def quiet(log: Path) -> None:
    """Write what this process says to a file, and let it be ended with all that it starts."""
    os.setsid()
    with open(log, "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)


def enter(home: Path, log: Path, *, write: bool) -> None:
    """Make a forked child run in a copy of the tree, saying nothing."""
    quiet(log)
    # A shell ignores these for what it starts in the background, and the tests send them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sys.dont_write_bytecode = not write
    os.chdir(home)
    os.environ["PYTHONPATH"] = str(home / "src")
    os.environ["TMPDIR"] = str(home.parent / "tmp")
    Path(os.environ["TMPDIR"]).mkdir(exist_ok=True)
    sys.path[:] = [
        str(home / "src"),
        *(p for p in sys.path if not p.startswith(str(ROOT)) or ".venv" in p),
    ]
    importlib.invalidate_caches()


QUIET = (
    "-q",
    "-p",
    "no:cacheprovider",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
    "--no-header",
    "--tb=line",
)


def test_files(home: Path) -> list[str]:
    """Return the test files, those that take long last, so that the map is of use soon."""
    tests = [str(f.relative_to(home)) for f in sorted((home / "tests").rglob("test_*.py"))]
    seconds = read_table()
    return sorted(
        (f for f in tests if not any(name in f for name in UNTRIED)),
        key=lambda f: seconds.get(f, 0.0),
    )


def watched(held: Held, reach: Reach, home: Path, limit: float, say: Say) -> None:
    """Run the test files that have changed, each in a fork of the held session; those that take
    long last, whatever the order in which the session would run them.
    """
    there = {test.partition("::")[0] for test in held.items}
    stale = reach.stale(ROOT, [file for file in test_files(home) if file in there])
    for n, file in enumerate(stale):
        found, start = home.parent / "found.json", time.monotonic()
        found.unlink(missing_ok=True)

        def work(file: str = file, found: Path = found) -> int:
            quiet(home.parent / "map.log")
            watch = Watch()
            held.session.config.pluginmanager.register(watch)
            tests = [test for test in held.items if test.partition("::")[0] == file]
            held.run(tests, home.parent / "tmp" / "map")
            found.write_text(json.dumps(watch.kept(home / file)))
            return 0

        pid = fork(work)
        while not os.waitpid(pid, os.WNOHANG)[0]:
            time.sleep(0.05)
            if time.monotonic() - start > limit:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
        if found.exists():
            kept = json.loads(found.read_text())
            reach.put(file, kept)
            words = f"{len(kept['tests'])} tests" + (
                f", {len(kept['failed'])} fail: {kept['failed'][:3]}" if kept["failed"] else ""
            )
        else:
            words = "NOT RUN"
        say(words=f"[{n + 1}/{len(stale)}] {file}: {words}, {time.monotonic() - start:.0f} s")


def tests_of(mutant: Mutant, reach: Reach, budget: float) -> list[str]:
    """Return the tests to try a mutant on."""
    file = str(Path(mutant.file).relative_to("src"))
    # Of an argument, which no call of the function reads:
    default = any(f" in {start}" in mutant.what for start in ("def ", "@"))
    within = (
        mutant.where
        and not default
        and not mutant.where.rpartition(".")[2].lstrip("_")[:1].isupper()
    )
    found = reach.tests_of(file, mutant.where, budget, () if within else TABLES)
    return found or reach.tests_of(file, mutant.where, budget, TABLES)


def attempt(held: Held, mutant: Mutant, tests: Sequence[str], reach: Reach, home: Path) -> Child:
    """Start the trial of a mutant in a fork of the held session."""
    seconds = reach.seconds

    def at(test: str) -> None:
        used = resource.getrusage(resource.RUSAGE_SELF)
        cpu = int(used.ru_utime + used.ru_stime + 10 + 8 * seconds.get(test, 1))
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.RLIM_INFINITY))

    def work() -> int:
        place = home.parent / "tmp" / f"run{os.getpid()}"
        quiet(home.parent / "trial.log")
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        path = home / mutant.file
        try:
            final = held.live.broken(str(path), path.read_text(), mutant.text, mutant.where)
        except NotHere as why:
            print(why)
            return UNSURE
        passed = held.run(tests, place, at=at)
        shutil.rmtree(place, ignore_errors=True)
        return (0 if final else UNSURE) if passed else 1

    limit = 120 + 10 * sum(map(seconds.__getitem__, tests))
    return Child(mutant, home, fork(work), limit=limit)


def try_held(
    held: Held, mutants: Sequence[Mutant], reach: Reach, home: Path, jobs: int, budget: float
) -> Iterator[tuple[Mutant, str]]:
    """Try mutants in forks, and yield how each ended ("unsure": only a fresh process can tell)."""
    known, waiting, running = equivalents(), collections.deque(mutants), []
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.popleft()
            if why := reason(mutant, known):
                yield mutant, f"same: {why}"
                continue
            tests = tests_of(mutant, reach, budget)
            if not tests:
                yield mutant, "survived: no test runs it"
                continue
            running.append(attempt(held, mutant, tests, reach, home))
        time.sleep(0.01)
        for child in list(running):
            if how := ended(child):
                running.remove(child)
                yield child.mutant, how


def hold(home: Path, given: argparse.Namespace, mutants: Sequence[Mutant]) -> Iterator[dict]:
    """Collect all tests in a fork, find out there what they call, try the mutants, and yield what
    it says of that, line by line.
    """
    reader, writer = os.pipe()

    def say(**words: Any) -> None:
        os.write(writer, (json.dumps(words) + "\n").encode())

    def use(held: Held) -> None:
        say(words=f"{len(held.items)} tests are read")
        say(modules=modules_of_others(home))
        reach = Reach(KEPT / "reach.json")
        reach.follow(ROOT / PACKAGE)
        if not given.keep_map:
            watched(held, reach, home, given.limit, say)
        number = {id(m): n for n, m in enumerate(mutants)}
        for mutant, how in try_held(held, mutants, reach, home, given.jobs, given.budget):
            say(number=number[id(mutant)], how=how)

    def work() -> int:
        os.close(reader)
        enter(home, home.parent / "held.log", write=True)
        Marked.install(home / PACKAGE)
        return int(pytest.main([*QUIET, "-s", *test_files(home)], plugins=[Held(use)]))

    pid = fork(work)
    os.close(writer)
    with os.fdopen(reader) as lines:
        yield from map(json.loads, lines)
    _, status = os.waitpid(pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"the tests could not be read: see {home.parent / 'held.log'}")


def begin(mutant: Mutant, tests: Sequence[str], home: Path, seconds: float) -> Child:
    """Start the trial of a mutant."""
    target = home / mutant.file
    target.unlink()
    target.write_text(mutant.text)
    for old in (target.parent / "__pycache__").glob(f"{target.stem}.*.pyc"):
        old.unlink()
    cpu = int(60 + 4 * seconds)

    def work() -> int:
        enter(home, home.parent / "mutant.log", write=False)
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
        for chosen in stages(tests):
            files = list(dict.fromkeys(test.partition("::")[0] for test in chosen))
            code = pytest.main(
                [*QUIET, "-x", *files, f"--basetemp={home.parent / 'tmp' / 'run'}"],
                plugins=[Only(chosen)],
            )
            if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
                return 1
        return 0

    return Child(mutant, home, fork(work), limit=4 * cpu)


def stages(tests: Sequence[str]) -> Iterator[list[str]]:
    """Cut the tests in two: those of the files that tell soonest, and the rest, so that few files
    are read at first.
    """
    files = list(dict.fromkeys(test.partition("::")[0] for test in tests))
    first = [t for t in tests if t.partition("::")[0] in files[:3]]
    yield from filter(None, (first, [t for t in tests if t.partition("::")[0] not in files[:3]]))


def ended(child: Child) -> str:
    """Return how a trial ended ("" while it goes on)."""
    pid, status = os.waitpid(child.pid, os.WNOHANG)
    if not pid and time.monotonic() - child.start < child.limit:
        return ""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    if not pid:
        os.waitpid(child.pid, 0)
        return "killed: no end"
    if os.WIFSIGNALED(status):
        return (
            "killed: no end"
            if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
            else "killed: crash"
        )
    code = os.WEXITSTATUS(status)
    return {0: "survived", UNSURE: "unsure"}.get(code, "killed")


def try_all(
    mutants: Sequence[Mutant], reach: Reach, homes: Sequence[Path], budget: float
) -> Iterator[tuple[Mutant, str]]:
    """Try mutants, one in each home at a time, and yield how each ended."""
    known, waiting, running = equivalents(), collections.deque(mutants), []
    seconds, free = reach.seconds, collections.deque(homes)
    while waiting or running:
        while waiting and free:
            mutant = waiting.popleft()
            if why := reason(mutant, known):
                yield mutant, f"same: {why}"
                continue
            tests = tests_of(mutant, reach, budget)
            if not tests:
                yield mutant, "survived: no test runs it"
                continue
            running.append(
                begin(mutant, tests, free.popleft(), sum(map(seconds.__getitem__, tests)))
            )
        time.sleep(0.05)
        for child in list(running):
            if how := ended(child):
                running.remove(child)
                shutil.copy2(ROOT / child.mutant.file, child.home / child.mutant.file)
                free.append(child.home)
                yield child.mutant, how


def table(results: Sequence[tuple[Mutant, str]]) -> str:
    """Return how many were tried and killed, by folder."""
    count: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for mutant, how in results:
        parts = Path(mutant.file).relative_to(PACKAGE).parts
        for row in (parts[0], "all"):
            count[row][how.partition(":")[0]] += 1
            count[row]["no end"] += how == "killed: no end"
    rows = [f"{'':20}{'tried':>8}{'killed':>8}{'no end':>8}{'survived':>10}{'same':>6}{'share':>8}"]
    for name in sorted(count, key=lambda n: (n == "all", n)):
        c = count[name]
        tried = c["killed"] + c["survived"]
        share = f"{c['killed'] / tried:.1%}" if tried else "-"
        rows.append(
            f"{name:20}{tried:8}{c['killed']:8}{c['no end']:8}{c['survived']:10}"
            f"{c['same']:6}{share:>8}"
        )
    return "\n".join(rows)


def modules_of_others(home: Path) -> list[str]:
    """Return what the tests load that does not change: each fresh process would load it again."""
    places = {n: str(getattr(m, "__file__", None) or "") for n, m in list(sys.modules.items())}
    return [
        n
        for n, file in places.items()
        if file
        and not file.startswith((str(home), str(TESTS)))
        and not n.startswith(("_pytest", "guidestar"))
    ]


def load(modules: Sequence[str]) -> None:
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if leaked := [m for m in sys.modules if m.startswith("guidestar")]:
        raise RuntimeError(f"the library was read before the fork: {leaked}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", help="what the paths of the files have in them; by default all files"
    )
    parser.add_argument(
        "--sample", type=int, default=0, help="how many mutants to draw (by default every one)"
    )
    parser.add_argument("--seed", type=int, default=7, help="of the draw")
    parser.add_argument(
        "--only", default="", help="only the mutants whose description has this in it"
    )
    parser.add_argument(
        "--again", action="store_true", help="only those that survived when they were tried last"
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument(
        "--budget", type=float, default=60, help="CPU seconds of tests for one mutant"
    )
    parser.add_argument(
        "--limit", type=float, default=600, help="seconds for one test file when the map is made"
    )
    parser.add_argument(
        "--map", action="store_true", help="only find out which test runs which function"
    )
    parser.add_argument(
        "--resume", action="store_true", help="do not try again what was killed before"
    )
    parser.add_argument("--list", action="store_true", help="only show the mutants")
    parser.add_argument(
        "--stale", action="store_true", help="only list the equivalents whose code has changed"
    )
    parser.add_argument(
        "--keep-map", action="store_true", help="do not run changed test files again first"
    )
    parser.add_argument(
        "--where", type=Path, default=None, help="a folder for the copies (by default .mutants/)"
    )
    given = parser.parse_args()
    stale = [] if given.names else stale_reasons()
    for k in stale:
        print(f"equivalent.toml: no mutant of {k['where']!r} has {k['change']!r}", flush=True)
    if given.stale:
        sys.exit(bool(stale))
    KEPT.mkdir(exist_ok=True)
    among = sources(given.names)
    if not among:
        parser.error(f"no file has any of {', '.join(given.names)} in its path")
    every = sum(len(s.sites) for s in among)
    mutants = (
        [m for m in drawn(among, given.sample or every, given.seed) if given.only in str(m)]
        if not given.map
        else []
    )
    done_before = KEPT / "results.json"
    before: dict[str, str] = json.loads(done_before.read_text()) if done_before.exists() else {}
    mark = {id(m): digest(str(m) + m.text) for m in mutants}
    if given.again:
        mutants = [m for m in mutants if before.get(mark[id(m)], "killed").startswith("survived")]
    if given.list:
        print(*mutants, sep="\n")
        print(f"{len(mutants)} mutants of {every}")
        return
    done = [m for m in mutants if given.resume and before.get(mark[id(m)], "").startswith("killed")]
    results, start = [(m, before[mark[id(m)]]) for m in done], time.monotonic()
    kept = {id(m) for m in done}
    mutants, total = [m for m in mutants if id(m) not in kept], len(mutants)

    def note(mutant: Mutant, how: str) -> None:
        results.append((mutant, how))
        before[mark[id(mutant)]] = how
        done_before.write_text(json.dumps(before))
        if not how.startswith("killed") or how == "killed: no end":
            print(f"[{len(results)}/{total}] {how}\n    {mutant}", flush=True)

    for name, how in tried(given, mutants):
        note(name, how)
    if results:
        print(table(results))
        print(f"{time.monotonic() - start:.0f} s")
    sys.exit(any(how.startswith("survived") for _, how in results))


def tried(given: argparse.Namespace, mutants: Sequence[Mutant]) -> Iterator[tuple[Mutant, str]]:
    """Try mutants, first in forks of one held session, then in processes of their own what that
    cannot tell.
    """
    where = given.where or KEPT
    homes = [copy_of_the_tree(where / str(n) / "tree") for n in range(given.jobs)]
    load(LOADED.split())
    unsure, modules = [], []
    for line in hold(homes[0], given, mutants):
        if "words" in line:
            print(line["words"], flush=True)
        elif "modules" in line:
            modules = line["modules"]
        elif line["how"] == "unsure":
            unsure.append(mutants[line["number"]])
        else:
            yield mutants[line["number"]], line["how"]
    if unsure:
        print(f"{len(unsure)} need processes of their own", flush=True)
        load(modules)
        reach = Reach(KEPT / "reach.json")
        reach.follow(ROOT / PACKAGE)
        yield from try_all(unsure, reach, homes, given.budget)


if __name__ == "__main__":
    main()
