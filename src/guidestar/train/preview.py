"""Follow a training: TensorBoard's curves, and pictures of guided samples from fixed seeds."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.rng import Draw
from ..data.latents import pictures_of
from ..data.source import Source
from ..diffusers.read.vae import Decoder, read_decoder, reconstructed
from ..io.files import name_write_errors
from ..io.images import SheetRow, save_png, sheet, to_drawings
from ..model.model import Model
from ..model.upscaling import with_pictures
from ..networks.conditional import ConditionalModel
from ..networks.low_resolution import LOW, enlarged, reduced
from .build.autoencoders import fresh_autoencoder, vae_folder
from .build.data import standardiser_of
from .build.schedules import process
from .loop.sharded import is_sharded
from .recipe.schema import Recipe

if TYPE_CHECKING:
    from PIL import Image
    from torch.utils.tensorboard import SummaryWriter

    from ..networks.conditions import Conditions
    from .loop.trainer import Trainer
    from .objectives.objective import Progress


class Board:
    """Write a part's curves for TensorBoard, where that is installed; in the main process only.

    Args:
        folder: of the log.
        trainer: whose curves they are.
    """

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        self.folder, self.trainer, self.before = folder, trainer, (0, 0.0)
        self.writer: SummaryWriter | None = None
        self.failed = False

    def _open(self) -> SummaryWriter | None:
        if self.writer is None and not self.failed and self.trainer.accelerator.is_main_process:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return None
            _mute_writers()
            # What an earlier run logged after its last checkpoint is removed.
            with self._or_without():
                self.writer = SummaryWriter(str(self.folder), purge_step=self.trainer.done)
        return self.writer

    def add(self, progress: Progress) -> None:
        """Log one step."""
        writer = self._open()
        if writer is None:
            return
        samples, seconds = self.before
        scalars = {
            "loss": progress.loss,
            "gradient norm": progress.norm,
            "learning rate": progress.rate,
        }
        if progress.seconds > seconds > 0:
            scalars["samples per second"] = (progress.samples - samples) / (
                progress.seconds - seconds
            )
        self.before = (progress.samples, progress.seconds)
        with self._or_without():
            for name, value in scalars.items():
                writer.add_scalar(name, value, progress.step)

    def picture(self, image: Image.Image, step: int) -> None:
        """Log a picture."""
        writer = self._open()
        if writer is not None:
            import numpy

            with self._or_without():
                writer.add_image("samples", numpy.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left, and close the log."""
        if self.writer is not None:
            with self._or_without():
                self.writer.close()

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        """Go on without curves where they cannot be written."""
        try:
            with name_write_errors(self.folder):
                yield
        except OSError as error:
            self.writer, self.failed = None, True
            warnings.warn(f"{error}; the training goes on without its curves", stacklevel=4)


def _mute_writers() -> None:
    """Keep TensorBoard's threads from printing errors that its writer raises too."""
    former = threading.excepthook

    def hook(found: threading.ExceptHookArgs) -> None:
        if not (type(found.thread).__module__ or "").startswith("tensorboard."):
            former(found)

    if getattr(former, "__name__", "") != hook.__name__ or former.__module__ != hook.__module__:
        threading.excepthook = hook


def preview_hook(
    recipe: Recipe, part: str, out: Path, source: Source, board: Board
) -> Callable[[Trainer], None]:
    """Return a hook that draws guided samples of the averaged weights every so many steps, under
    ``out/previews``.

    One row for each guidance, with the same seeds; sample k has class k (of K), the recipe's prompt
    k, or else the conditions of the data's sample k. An unconditional model has one row.
    """
    decode = decoder_of(recipe, source, out)
    return _drawing(
        recipe, part, out, board, lambda module: list(_rows(recipe, module, source, decode))
    )


def reconstruction_hook(
    recipe: Recipe, part: str, out: Path, source: Source, board: Board
) -> Callable[[Trainer], None]:
    """Return a hook that draws pictures, and below them what the autoencoder makes of them."""
    count = min(recipe.preview.seeds, source.size or recipe.preview.seeds)
    x = source.batch(range(count), Draw(range(count)))[0]
    return _drawing(recipe, part, out, board, lambda module: reconstruction_rows(module, x))


@torch.no_grad()
def reconstruction_rows(vae: Any, x: Tensor) -> list[SheetRow]:
    """Return rows of pictures ``[B, C, H, W]`` and of their reconstructions."""
    made = reconstructed(vae, x)
    return [
        SheetRow(label="pictures", images=to_drawings(x)),
        SheetRow(label="reconstructed", images=to_drawings(made)),
    ]


def _drawing(
    recipe: Recipe, part: str, out: Path, board: Board, rows: Callable[[Any], list[SheetRow]]
) -> Callable[[Trainer], None]:
    """Return a hook that draws the rows of the averaged weights every so many steps.

    Sharded weights (FSDP) are not drawn, as all processes would have to sample with them.
    """

    def preview(trainer: Trainer) -> None:
        if trainer.done % recipe.preview.every or not trainer.accelerator.is_main_process:
            return
        module = trainer.module
        if is_sharded(module):
            warnings.warn(
                f"no previews are drawn of {part!r}: its weights are sharded", stacklevel=2
            )
            return
        was = module.training
        with trainer.ema.applied(module):
            module.eval()
            drawn = rows(module)
            module.train(was)
        image = sheet(drawn, title=f"{recipe.name}: {part} after {trainer.done} steps")
        save_png(image, out / "previews" / f"{part}-{trainer.done:06d}.png")
        board.picture(image, trainer.done)

    return preview


def _rows(
    recipe: Recipe, module: ConditionalModel, source: Source, decode: Callable[[Tensor], Tensor]
) -> Iterator[SheetRow]:
    model, count = live_model(recipe, module, source.shape, decode), recipe.preview.seeds
    names = names_for(recipe, model, module, source, count)
    if recipe.upscale is not None:
        rows = [k % (source.size or count) for k in range(count)]
        x = source.batch(sorted(rows), Draw(sorted(rows)))[0]
        names = write_conditions(module.encoder, source, count) or None
        small = reduced(x, recipe.upscale.size)
        yield SheetRow(label="smaller", images=to_drawings(enlarged(small, x.shape[-1])))
        model = with_pictures(model, small, seeds=range(count))
    for guidance in recipe.preview.guidance if names else ("uncond",):
        x = model.sample(
            names,
            guidance=guidance,
            seeds=range(count),
            steps=recipe.preview.steps,
            solver=recipe.export.solver,
            grid=recipe.export.grid,
        ).images
        yield SheetRow(label=guidance, images=to_drawings(x))


def names_for(
    recipe: Recipe, model: Model, module: ConditionalModel, source: Source, count: int
) -> list[str] | None:
    """Return the conditions of a preview's samples; None of an unconditional model."""
    known = model.classes or (recipe.preview.prompts if model.takes_prompts else ())
    if known:
        return [known[k % len(known)] for k in range(count)]
    return write_conditions(module.encoder, source, count)


def write_conditions(encoder: Conditions, source: Source, count: int) -> list[str] | None:
    """Return the conditions of the first samples as text; None of an unconditional model."""
    parts = [name for name in encoder.parts if name != LOW]
    if not parts:
        return None
    rows = [k % (source.size or count) for k in range(count)]
    known = source.batch(sorted(rows), Draw(sorted(rows)))[1]
    columns = {
        name: [_word(v, source.columns[name].classes) for v in known[name]] for name in parts
    }
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [
        "; ".join(f"{name}={words[k].replace(';', ',')}" for name, words in columns.items())
        for k in range(count)
    ]


def _word(value: str | Tensor, classes: tuple[str, ...]) -> str:
    if isinstance(value, str):
        return value
    return str(int(value)) if classes else ",".join(f"{v:g}" for v in value.reshape(-1).tolist())


def decoder_of(recipe: Recipe, source: Source, out: Path | None) -> Callable[[Tensor], Tensor]:
    """Return the map from the network's samples to the data: by the VAE, or into their units.

    Args:
        recipe: the recipe.
        source: its data.
        out: where the recipe's own autoencoder is; a fresh one stands for it until it is trained.
    """
    folder = vae_folder(recipe, out)
    if folder is not None:
        return read_decoder(folder)
    if recipe.autoencoder is not None:
        return Decoder(fresh_autoencoder(recipe.autoencoder, pictures_of(source).shape).eval())
    scale = standardiser_of(source)
    return scale.undo if scale is not None else lambda x: x


@torch.no_grad()
def live_model(
    recipe: Recipe,
    module: ConditionalModel,
    shape: tuple[int, ...],
    decode: Callable[[Tensor], Tensor],
) -> Model:
    """Make a model of a network in training, for samples now and then."""
    return Model(
        name=recipe.name,
        denoiser=module.denoiser,
        schedule=process(recipe).schedule,
        shape=shape,
        encoder=module.encoder.alone(),
        decode=decode,
    )
