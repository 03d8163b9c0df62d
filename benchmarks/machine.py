"""One table of what the machine underneath does to a guided run: allocator, threads, size of calls,
bfloat16, compiled networks, reuse and few steps.

    make machine                                     (on a quiet machine; 7 rounds)
    python benchmarks/machine.py --rounds 3 --steps 4 --batch 4 --only "as it comes" --profile

Every row is a process of its own with its own settings, that loads the shipped class model, runs
once untimed and then waits; they take turns, one at a time, and medians are compared with the first
row's. ``--profile`` adds where the time of a step goes, by operator; ``--write`` puts the tables
into docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).parents[1] / "docs/performance.md"
START, END = "<!-- machine -->", "<!-- end of machine -->"
KEPT = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


@dataclass(frozen=True)
class Row:
    """A way to make the same samples, or some like them."""

    name: str
    guidance: str | None = "cfg(3)"
    steps: int | None = None
    threads: int | None = None
    max_rows: int | None = None
    bfloat16: bool = False
    compiled: bool = False
    diffusers: bool = False
    alone: bool = False
    environment: dict[str, str] = field(default_factory=lambda: dict(KEPT))


ROWS = (
    Row("Diffusers' own loop, DDIM", diffusers=True, environment={}),
    Row("Diffusers' own loop, allocator keeps its pages", diffusers=True),
    Row("as it comes", environment={}),
    Row("allocator keeps its pages"),
    Row("its passes alone", alone=True),
    Row("one thread", threads=1),
    Row("calls of at most half the rows", max_rows=-2),
    Row("bfloat16", bfloat16=True),
    Row("compiled", compiled=True),
    Row("compiled, bfloat16", compiled=True, bfloat16=True),
    Row("cfg(3, every=2)", guidance="cfg(3, every=2)"),
    Row("the card's setting", guidance=None, steps=-1),
    Row("the card's setting of 5 steps", guidance=None, steps=5),
)


def prepared(row: Row, steps: int, batch: int) -> Callable[[], Any]:
    """Load the model as a row wants it, and return its run."""
    import torch

    from guidestar import Draw, load

    if row.threads:
        torch.set_num_threads(row.threads)
    model = load("fashion-mnist")
    names = [model.classes[k % len(model.classes)] for k in range(batch)]
    if row.diffusers:
        from against_diffusers import diffusers_loop, diffusers_parts

        parts, grid = diffusers_parts(model), model.grid(steps, "leading")
        rows = [e["class_labels"] for e in (model.encoder.encode(names), model.encoder.null(batch))]
        x = Draw(range(batch)).at(-1).normal("start", model.shape) * float(grid[0].sigma)
        return lambda: diffusers_loop(*parts, *rows, x, steps=steps, scale=3.0)
    network: Any = model.denoiser
    if row.bfloat16:
        network.to(torch.bfloat16)
    if row.compiled:
        inner = network.net  # the denoiser's time is a Python number: each would be compiled
        inner.forward = torch.compile(inner.forward, dynamic=False)
    if row.alone:
        grid, two = model.grid(steps, "log_snr"), [*names, *names]
        x, cond = torch.randn(2 * batch, *model.shape), model.encoder.encode(two)

        @torch.inference_mode()
        def passes() -> None:
            for level in grid[:-1]:
                network(x, level, cond)

        return passes
    usual = {"steps": steps, "solver": "dpmpp-2m", "grid": "log_snr"}
    given = usual if row.steps is None else {} if row.steps < 0 else {"steps": row.steps}
    rows = batch * -2 // row.max_rows if row.max_rows and row.max_rows < 0 else row.max_rows
    return lambda: model.sample(
        names, seeds=range(batch), guidance=row.guidance, max_rows=rows, **given
    )


def serve(row: Row, steps: int, batch: int, line: Connection) -> None:
    """Run once for each word of the parent, and answer with the seconds."""
    try:
        run = prepared(row, steps, batch)
        run()
    except Exception as error:  # a row that this machine cannot run is named, the others go on
        line.send(f"{type(error).__name__}: {str(error).splitlines()[0]}")
        return
    line.send(None)
    while line.recv():
        start = time.perf_counter()
        run()
        line.send(time.perf_counter() - start)


def measured(rows: list[Row], rounds: int, steps: int, batch: int) -> dict[str, list[float] | str]:
    """Return the seconds of each round by row, or why a row cannot run."""
    context, lines, found = get_context("spawn"), {}, {}
    for row in rows:
        here, there = context.Pipe()
        before = dict(os.environ)
        os.environ.update(row.environment)
        worker = context.Process(target=serve, args=(row, steps, batch, there), daemon=True)
        worker.start()
        there.close()
        os.environ.clear()
        os.environ.update(before)
        try:
            failed = here.recv()
        except EOFError:
            failed = "its process ended"
        if failed:
            found[row.name] = failed
        else:
            lines[row.name], found[row.name] = here, []
    for _ in range(rounds):
        for name, line in lines.items():
            line.send(True)
            found[name].append(line.recv())
    for line in lines.values():
        line.send(False)
    return found


def table(found: dict[str, list[float] | str]) -> str:
    """Write the figures as a table."""
    base = next((statistics.median(v) for v in found.values() if not isinstance(v, str)), None)
    lines = ["| run | seconds | of the first |", "| --- | --- | --- |"]
    for name, values in found.items():
        if isinstance(values, str):
            lines.append(f"| {name} | does not run: {values} | |")
        else:
            middle = statistics.median(values)
            lines.append(f"| {name} | {middle:.3f} | {middle / base:.2f} |")
    return "\n".join(lines)


KINDS = {
    "convolutions": ("conv",),
    "products of matrices": ("addmm", "mm", "bmm", "linear", "matmul"),
    "attention": ("scaled_dot_product", "softmax", "flash"),
    "norms": ("norm",),
    "activations": ("silu", "gelu", "sigmoid"),
    "copies and joins": ("copy", "cat", "contiguous", "clone", "_to_copy", "fill"),
    "sums and products": ("add", "mul", "sub", "div", "lerp"),
}


def profile(steps: int, batch: int) -> str:
    """Return the shares of the time of a run, by kind of operator."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    run = prepared(Row("profiled"), steps, batch)
    run()
    with record(activities=[ProfilerActivity.CPU]) as recorded:
        run()
    shares = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for event in recorded.key_averages():
        name = event.key.removeprefix("aten::").lower()
        kind = next((k for k, words in KINDS.items() if any(w in name for w in words)), "the rest")
        shares[kind] += event.self_cpu_time_total
    total = sum(shares.values())
    rows = [f"| {kind} | {100 * value / total:.0f} % |" for kind, value in shares.items()]
    return "\n".join(["| a step's time | share |", "| --- | --- |", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", action="append", help="names of rows; all by default")
    parser.add_argument("--profile", action="store_true", help="also where a step's time goes")
    parser.add_argument("--write", action="store_true", help="into docs/performance.md")
    arguments = parser.parse_args()
    rows = [replace(r) for r in ROWS if not arguments.only or r.name in arguments.only]
    if not rows:
        raise SystemExit(f"the rows are {', '.join(repr(r.name) for r in ROWS)}")
    found = measured(rows, arguments.rounds, arguments.steps, arguments.batch)
    texts = [f"{environment(arguments)}\n\n{table(found)}"]
    texts += [profile(arguments.steps, arguments.batch)] if arguments.profile else []
    print("\n\n".join(texts))
    if arguments.write:
        write("\n\n".join(texts))


def environment(arguments: argparse.Namespace) -> str:
    """Describe the machine and the run."""
    import torch

    return (
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, batch {arguments.batch}, "
        f"{arguments.steps} steps, medians of {arguments.rounds} rounds in turn."
    )


def write(text: str) -> None:
    """Put a text between the marks in the document."""
    from guidestar.io.images import write_text

    before, rest = DOCUMENT.read_text(encoding="utf-8").split(START)
    after = rest.split(END)[1]
    write_text(f"{before}{START}\n{text}\n{END}{after}", DOCUMENT)


if __name__ == "__main__":
    main()
