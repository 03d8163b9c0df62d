"""See a training: TensorBoard's curves, and pictures of guided samples from fixed seeds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..data._core import Source
from ..model import Model
from ..pictures import Row, save_png, sheet, to_drawings
from .build import process
from .recipe import Recipe


class Board:
    """Write a part's curves for TensorBoard, where that is installed; in the main process only.

    Args:
        folder: of the log.
        trainer: whose curves they are.
    """

    def __init__(self, folder: Path, trainer: Any) -> None:
        self.folder, self.trainer, self.writer, self.before = folder, trainer, None, (0, 0.0)

    def _open(self) -> Any:
        if self.writer is None and self.trainer.accelerator.is_main_process:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return None
            # What an earlier run logged after its last checkpoint is taken back.
            self.writer = SummaryWriter(str(self.folder), purge_step=self.trainer.done)
        return self.writer

    def add(self, progress: Any) -> None:
        """Log one step."""
        writer = self._open()
        if writer is None:
            return
        samples, seconds = self.before
        scalars = {"loss": progress.loss, "gradient norm": progress.norm, "learning rate": progress.rate}
        if progress.seconds > seconds > 0:
            scalars["samples per second"] = (progress.samples - samples) / (progress.seconds - seconds)
        self.before = (progress.samples, progress.seconds)
        for name, value in scalars.items():
            writer.add_scalar(name, value, progress.step)

    def picture(self, image: Any, step: int) -> None:
        """Log a picture."""
        writer = self._open()
        if writer is not None:
            import numpy

            writer.add_image("samples", numpy.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Write out what is left."""
        if self.writer is not None:
            self.writer.close()


def previewing(recipe: Recipe, part: str, folder: Path, source: Source, board: Board) -> Callable[[Any], None]:
    """Return a hook that draws guided samples of the averaged weights every so many steps.

    One row for each guidance, the same seeds in every row; sample k is of class k (of K) or of
    prompt k (of the recipe's), or unconditional where there are neither.
    """
    spec = recipe.preview

    def preview(trainer: Any) -> None:
        if trainer.done % spec.every or not trainer.accelerator.is_main_process:
            return
        module = trainer.module
        was = module.training
        with trainer.ema.applied(module):
            module.eval()
            rows = list(_rows(recipe, module, source))
            module.train(was)
        image = sheet(rows, title=f"{recipe.name}: {part} after {trainer.done} steps")
        save_png(image, folder / f"{part}-{trainer.done:06d}.png")
        board.picture(image, trainer.done)

    return preview


def _rows(recipe: Recipe, module: Any, source: Source) -> Any:
    model = live_model(recipe, module, source.shape)
    count = recipe.preview.seeds
    known = model.classes or (recipe.preview.prompts if model.told_by_text else ())
    names = [known[k % len(known)] for k in range(count)] if known else None
    for guidance in recipe.preview.guidance if names else ("uncond",):
        x = model.sample(names, guidance=guidance, seeds=range(count), steps=recipe.preview.steps, solver=recipe.export.solver, grid=recipe.export.grid).images
        yield Row(label=guidance, images=to_drawings(x))


@torch.no_grad()
def live_model(recipe: Recipe, module: Any, shape: tuple[int, ...]) -> Model:
    """Make a model of a network in training, for samples now and then."""
    return Model(name=recipe.name, denoiser=module.denoiser, schedule=process(recipe).schedule, shape=shape, encoder=module.encoder.alone(), decode=lambda x: x)
