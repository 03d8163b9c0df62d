"""Break the library in one place at a time, and see whether the tests notice.

    python tests/mutate.py --sample 400 --seed 7   400 mutants of all files, by their lines of code
    python tests/mutate.py tcfg posterior          every mutant of the files that have these in
    their path python tests/mutate.py dps --only displacing   those whose description has this in it
    python tests/mutate.py --again                 those that survived last time
    python tests/mutate.py --map                   only find out which test runs which function

Each mutant is a copy of the library with one change (`helpers/mutants.py`): an operator, a sign, a
bound of a comparison, a constant, a condition, a branch, a dropped statement or argument, a swapped
pair. It is read by a fork of this process, in which torch and the like are loaded already, and
tried on the tests that run the changed function (`helpers/reach.py`), the quickest first, until one
fails. A mutant that no test fails on has survived: either a test is missing, or the mutant means
the same; those are in `equivalent.toml`, by function and change, with the reason.

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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from helpers.mutants import Mutant, Source
from helpers.reach import Only, Reach, Watch, digest

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
UNTRIED = ("distributed", "killed", "documents", "architecture")
"""Tests that start processes of their own, or read the sources."""
HEAVY = ("cli", "pipe", "diffusers", "transformers", "train")
"""What slow tests are about: they are run last, so that the map is of use soon."""
LOADED = (
    "numpy torch PIL.Image diffusers transformers pydantic typer accelerate datasets "
    "safetensors.torch jaxtyping beartype hypothesis rich sklearn"
)
MEMORY = 12 << 30


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


def enter(home: Path, log: Path, *, write: bool) -> None:
    """Make a forked child run in a copy of the tree, saying nothing."""
    os.setsid()
    with open(log, "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
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


def fork(work) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        code = work()
    except BaseException as error:
        print(repr(error))
    finally:
        sys.stdout.flush()
        os._exit(code)


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
    tests = [str(f.relative_to(home)) for f in sorted((home / "tests").rglob("test_*.py"))]
    heavy = {f: sum((home / f).read_text().count(word) for word in HEAVY) for f in tests}
    return sorted(
        (f for f in tests if not any(name in f for name in UNTRIED)), key=heavy.__getitem__
    )


def find_reach(reach: Reach, home: Path, limit: float) -> None:
    """Run the test files that have changed, each in a process of its own."""
    stale = reach.stale(ROOT, test_files(home))
    for n, file in enumerate(stale):
        found, start = home.parent / "found.json", time.monotonic()
        found.unlink(missing_ok=True)

        def work(file: str = file, found: Path = found) -> int:
            enter(home, home.parent / "map.log", write=True)
            watch = Watch(home / PACKAGE)
            pytest.main(
                [*QUIET, file, f"--basetemp={home.parent / 'tmp' / 'map'}"], plugins=[watch]
            )
            found.write_text(json.dumps(watch.kept((home / file).read_text())))
            return 0

        pid = fork(work)
        while not os.waitpid(pid, os.WNOHANG)[0]:
            time.sleep(0.1)
            if time.monotonic() - start > limit:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
        if found.exists():
            kept = json.loads(found.read_text())
            reach.put(file, kept)
            said = f"{len(kept['tests'])} tests" + (
                f", {len(kept['failed'])} fail: {kept['failed'][:3]}" if kept["failed"] else ""
            )
        else:
            said = "NOT RUN"
        print(
            f"[{n + 1}/{len(stale)}] {file}: {said}, {time.monotonic() - start:.0f} s", flush=True
        )


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
    return "killed" if os.WEXITSTATUS(status) else "survived"


def try_all(
    mutants: Sequence[Mutant], reach: Reach, homes: Sequence[Path], budget: float
) -> Iterator[tuple[Mutant, str]]:
    """Try mutants, one in each home at a time, and yield how each ended."""
    known, waiting, running = equivalents(), collections.deque(mutants), []
    seconds, free = reach._seconds(), collections.deque(homes)
    while waiting or running:
        while waiting and free:
            mutant = waiting.popleft()
            if why := reason(mutant, known):
                yield mutant, f"same: {why}"
                continue
            tests = reach.tests_of(str(Path(mutant.file).relative_to("src")), mutant.where, budget)
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
    """Return what the tests load that does not change: each trial would load it again."""
    found = home.parent / "modules.json"
    found.unlink(missing_ok=True)

    def work() -> int:
        enter(home, home.parent / "modules.log", write=True)
        pytest.main([*QUIET, "--collect-only", *test_files(home)])
        places = {
            n: str(getattr(m, "__file__", None) or "") for n, m in list(sys.modules.items()) if m
        }
        found.write_text(
            json.dumps(
                [
                    n
                    for n, f in places.items()
                    if f and not f.startswith(str(home)) and not n.startswith("_pytest")
                ]
            )
        )
        return 0

    os.waitpid(fork(work), 0)
    return [*LOADED.split(), *(json.loads(found.read_text()) if found.exists() else [])]


def prepared(jobs: int, where: Path) -> list[Path]:
    """Make the copies that mutants are tried in, and load what does not change."""
    homes = [copy_of_the_tree(where / str(n) / "tree") for n in range(jobs)]
    for name in modules_of_others(homes[0]):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if leaked := [m for m in sys.modules if m.startswith("guidestar")]:
        raise RuntimeError(f"the library was read before the fork: {leaked}")
    return homes


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
    parser.add_argument("--budget", type=float, default=60, help="seconds of tests for one mutant")
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
        "--keep-map", action="store_true", help="do not run changed test files again first"
    )
    parser.add_argument(
        "--where", type=Path, default=None, help="a folder for the copies (by default .mutants/)"
    )
    given = parser.parse_args()
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
    reach = Reach(KEPT / "reach.json")
    homes = prepared(given.jobs, given.where or KEPT)
    if not given.keep_map:
        find_reach(reach, homes[0], given.limit)
    done = [m for m in mutants if given.resume and before.get(mark[id(m)], "").startswith("killed")]
    results, start = [(m, before[mark[id(m)]]) for m in done], time.monotonic()
    mutants = [m for m in mutants if m not in done]
    for mutant, how in try_all(mutants, reach, homes, given.budget):
        results.append((mutant, how))
        before[mark[id(mutant)]] = how
        done_before.write_text(json.dumps(before))
        if not how.startswith("killed") or how == "killed: no end":
            print(f"[{len(results)}/{len(mutants) + len(done)}] {how}\n    {mutant}", flush=True)
    if results:
        print(table(results))
        print(f"{time.monotonic() - start:.0f} s")
    sys.exit(any(how.startswith("survived") for _, how in results))


if __name__ == "__main__":
    main()
