"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from ..objectives.objective import NotFinite, Progress
from .sharded import is_sharded
from .signals import Stop, defer_interrupt
from .trainer import Trainer


def fit(
    trainer: Trainer,
    checkpoint: Path | None = None,
    *,
    every: float = 60.0,
    keep: int = 1,
    after: Sequence[Callable[[Trainer], None]] = (),
    stop: Stop | None = None,
) -> Generator[Progress, None, None]:
    """Train to the end, yielding after each step; closing the generator stops and saves.

    An interrupt waits for the end of the step (with ``stop``, its owner handles interrupts). A step
    that fails is not saved: the last checkpoint stays, and a training goes on from there.

    Args:
        trainer: the trainer; it goes on from ``checkpoint`` where that exists.
        checkpoint: file to write, every ``every`` seconds and at the end.
        every: seconds between checkpoints.
        keep: how many checkpoints to keep, the former ones beside the last.
        after: called after each step, as part of it: if one fails, the step is repeated when the
            training goes on, so that no snapshot is skipped.
        stop: if any process receives a request to stop, all stop after the same step, and save.

    Raises:
        NotFinite: a loss is not finite.
        OSError: a file cannot be written, e.g. as the disk is full. Both messages name the last
            intact checkpoint.
    """
    if checkpoint and checkpoint.exists():
        trainer.load(checkpoint)
    trainer.module.train()
    with _name_checkpoint(checkpoint):
        yield from _fit(trainer, checkpoint, every, keep, after, stop)


@contextmanager
def _name_checkpoint(checkpoint: Path | None) -> Iterator[None]:
    """Add to an error that stops a training whether there is an intact checkpoint."""
    try:
        yield
    except (NotFinite, OSError) as error:
        kind = NotFinite if isinstance(error, NotFinite) else OSError
        there = checkpoint is not None and checkpoint.exists()
        kept = f"the last good checkpoint is intact, {checkpoint}"
        raise kind(f"{error}; {kept if there else 'no checkpoint had been written yet'}") from error


def _fit(
    trainer: Trainer,
    checkpoint: Path | None,
    every: float,
    keep: int,
    after: Sequence[Callable[[Trainer], None]],
    stop: Stop | None,
) -> Generator[Progress, None, None]:
    saved_at, saved_step, complete = time.monotonic(), trainer.done, True
    try:
        while trainer.done < trainer.settings.steps and not (stop and stop.agreed):
            trainer.due = checkpoint is not None and time.monotonic() - saved_at > every
            with defer_interrupt() if stop is None else nullcontext():
                start, complete, rate = time.monotonic(), False, trainer.rate()
                loss = trainer.step(stop)
                trainer.seconds += time.monotonic() - start
                for hook in after:
                    hook(trainer)
                complete = True
            yield Progress(
                step=trainer.done,
                loss=loss,
                norm=trainer.norm,
                rate=rate,
                seconds=trainer.seconds,
                samples=trainer.done * trainer.settings.batch,
            )
            if checkpoint and trainer.due:
                trainer.save(checkpoint, keep=keep)
                saved_at, saved_step = time.monotonic(), trainer.done
    finally:
        together = trainer.done >= trainer.settings.steps or (stop is not None and stop.agreed)
        if (
            checkpoint
            and complete
            and trainer.done > saved_step
            and (together or not is_sharded(trainer.module))
        ):
            trainer.save(checkpoint, keep=keep)
