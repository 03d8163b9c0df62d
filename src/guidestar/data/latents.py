"""Latents to train on: pictures that an autoencoder encoded once, or is going to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..core.rng import Draw
from ..io.files import make_folder, whole_or_not
from .pictures import Pictures
from .source import Column, Held, InMemory, Source, Subset, Targets, pick
from .tensors import read_tensor_file


def latents(
    source: InMemory | Pictures,
    encode: Callable[[Tensor], Tensor],
    cache: Path,
    *,
    key: str,
    batch: int = 16,
) -> Latents:
    """Encode all samples once, by a VAE, and keep the result (float16) in ``cache``.

    Args:
        source: pictures, without random crops or flips.
        encode: ``[B, C, H, W]`` to latents.
        cache: folder; what an earlier run left there under the same key is taken up.
        key: names what the latents depend on.
        batch: samples at a time.
    """
    from safetensors.torch import save

    file = make_folder(cache) / f"latents-{key}.safetensors"
    done = read_tensor_file(file)[0].get("x") if file.is_file() else None
    if done is None or len(done) != source.size:
        every = torch.arange(source.size).split(batch)
        rows = (rows.tolist() for rows in every)
        done = torch.cat([encode(source.batch(r, Draw(r))[0]).half().cpu() for r in rows])
        with whole_or_not(file) as beside:
            beside.write_bytes(save({"x": done.contiguous()}))
    return Latents(x=done.float(), pictures=source)


def check_spread(x: Tensor) -> None:
    """Refuse latents ``[N, C, h, w]`` that tell nothing.

    Raises:
        ValueError: they are not finite, or a channel does not vary.
    """
    flat = x.double().transpose(0, 1).flatten(1)
    if not bool(flat.isfinite().all()):
        raise ValueError("the autoencoder's latents are not finite; train it with a lower rate")
    std, size = flat.std(1, correction=0), flat.abs().amax(1)
    flat_ones = (std <= 1e-5 * size.clamp_min(1e-12)).nonzero().flatten().tolist()
    if flat_ones:
        raise ValueError(
            f"the autoencoder's latents have no spread in channel {flat_ones[0]} (of {len(std)}), "
            "so nothing is in it; train the autoencoder longer, with a lower kl or fewer channels"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents(Source):
    """Latents of pictures, held as a tensor.

    Args:
        x: ``[N, C, h, w]``, float32.
        pictures: what they were encoded from, of which what is known is known of the latents.
    """

    x: Tensor
    pictures: InMemory | Pictures

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return tuple(self.x.shape[1:])

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.x)

    @property
    def targets(self) -> Held:
        """What is known of all samples."""
        return self.pictures.targets

    @property
    def columns(self) -> Mapping[str, Column]:
        """What is known of each sample, by name."""
        return self.pictures.columns

    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return the latents at ``rows``."""
        return self.x[torch.as_tensor(rows)], pick(self.targets, rows, draw)

    def captions(self, column: str, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """Return all captions of the samples at ``rows``."""
        return self.pictures.captions(column, rows)


@dataclass(frozen=True, kw_only=True, eq=False)
class Unencoded(Source):
    """Stands for the latents of pictures before their autoencoder is trained.

    Args:
        pictures: to be encoded.
        encode: ``[B, C, H, W]`` to latents, by what there is of the autoencoder.
        latent_shape: of one latent.
    """

    pictures: InMemory | Pictures
    encode: Callable[[Tensor], Tensor]
    latent_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return self.latent_shape

    @property
    def size(self) -> int:
        """How many samples there are."""
        return self.pictures.size

    @property
    def columns(self) -> Mapping[str, Column]:
        """What is known of each sample."""
        return self.pictures.columns

    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return latents that have the shape of those to come, and what is known of each."""
        x, targets = self.pictures.batch(rows, draw)
        return self.encode(x), targets

    def captions(self, column: str, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """Return all captions of the samples at ``rows``."""
        return self.pictures.captions(column, rows)


def pictures_of(source: Source) -> Source:
    """Return the pictures that a source of latents was encoded from; any other source as it is."""
    if isinstance(source, Subset):
        return Subset(source=pictures_of(source.source), kept=source.kept)
    return source.pictures if isinstance(source, Latents | Unencoded) else source


def is_unencoded(source: Source) -> bool:
    """Tell whether a source stands for latents whose autoencoder is not trained."""
    return isinstance(source.source if isinstance(source, Subset) else source, Unencoded)
