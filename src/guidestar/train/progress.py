"""Show the progress of a training: bars, or lines of figures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .objectives.objective import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

Reporter = Callable[[str, Progress, int], None]
"""Called after each step with the part, its progress, and its number of steps."""


@dataclass
class Smoothed:
    """A running mean of about the last ``1/(1 − keep)`` values, without bias towards its start."""

    keep: float = 0.98
    total: float = 0.0
    mass: float = 0.0

    def add(self, value: float) -> float:
        """Add a value and return the mean."""
        self.total = self.keep * self.total + (1 - self.keep) * value
        self.mass = self.keep * self.mass + (1 - self.keep)
        return self.total / self.mass


def duration(seconds: float) -> str:
    """Return a duration as h:mm:ss, or m:ss below an hour.

    Example:
        >>> duration(59.7), duration(75), duration(3 * 3600 + 5 * 60)
        ('1:00', '1:15', '3:05:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Figures:
    """The figures of one part, from its progress step by step.

    Speed and time left go by the steps since this start, recent ones counting most, so neither a
    pause before a resume nor another machine's speed enters.
    """

    steps: int
    smooth_loss: Smoothed = field(default_factory=Smoothed)
    smooth_seconds: Smoothed = field(default_factory=Smoothed)
    last: Progress | None = None

    def add(self, progress: Progress) -> dict[str, str]:
        """Add a step and return ``loss``, ``speed`` (images a second) and ``left``, in
        words.
        """
        words = {"loss": f"{self.smooth_loss.add(progress.loss):.4f}", "speed": "–", "left": "–"}
        if self.last is not None and progress.seconds > self.last.seconds:
            each = self.smooth_seconds.add(progress.seconds - self.last.seconds)
            words |= {
                "speed": f"{(progress.samples - self.last.samples) / each:.0f}",
                "left": duration((self.steps - progress.step) * each),
            }
        self.last = progress
        return words


def _lines(interval: float, write: Callable[[str], object]) -> Reporter:
    """Report to a file or a pipe, by lines.

    A line is written at each part's first and last step, and every ``interval`` seconds.
    """
    parts: dict[str, Figures] = {}
    last, at = "", 0.0

    def report(part: str, progress: Progress, steps: int) -> None:
        nonlocal last, at
        words = parts.setdefault(part, Figures(steps)).add(progress)
        if part != last or progress.step == steps or time.monotonic() - at >= interval:
            write(
                f"{part} {progress.step}/{steps}  loss {words['loss']}  {words['speed']} "
                f"samples/s  {words['left']} left\n"
            )
            last, at = part, time.monotonic()

    return report


def _bars(bars: Bars) -> Reporter:
    """Report to a terminal: a bar for each part."""
    parts: dict[str, tuple[TaskID, Figures]] = {}

    def report(part: str, progress: Progress, steps: int) -> None:
        if part not in parts:
            parts[part] = (
                bars.add_task(part, total=steps, loss="–", speed="–", left="–"),
                Figures(steps),
            )
        task, figures = parts[part]
        bars.update(task, completed=progress.step, **_fields(figures.add(progress)))

    return report


def _fields(words: dict[str, str]) -> dict[str, Any]:
    """Return the figures as rich takes them; its keywords have several types."""
    return dict(words)


def _rich_bars() -> Bars | None:
    """Return rich's progress display; None without rich or a terminal."""
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bars
    except ImportError:
        return None
    figures = TextColumn(
        "loss {task.fields[loss]}  {task.fields[speed]} samples/s  {task.fields[left]} left"
    )
    return Bars(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        figures,
        console=Console(stderr=True),
    )


@contextmanager
def progress_report(*, interval: float = 30.0) -> Iterator[Reporter]:
    """Show the progress of a training on standard error: part, step, smoothed loss, speed, time
    left.

    Bars on a terminal that has rich, else a line every ``interval`` seconds.

    Example:
        ``with progress_report() as report: train(recipe, out, report)``
    """
    bars = _rich_bars()
    if bars is None:
        yield _lines(interval, lambda line: print(line, end="", file=sys.stderr, flush=True))
        return
    with bars:
        yield _bars(bars)
