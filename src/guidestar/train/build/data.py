"""Read the data of a recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...data import fashion_mnist
from ...data.folders import image_folder, parquet
from ...data.latents import Latents, Unencoded, check_spread, latents
from ...data.motions import Motions, MotionSettings, motion_folder
from ...data.pictures import PictureFormat, Pictures
from ...data.reduced import Reduced
from ...data.shards import Shards
from ...data.source import Column, InMemory, Source, Subset, split
from ...data.tensors import Standardised, Standardiser, tensors
from ...diffusers.objects import DiffusersNetwork
from ...diffusers.read.safetensors_io import read_module
from ...diffusers.read.vae import encoded as into_latents
from ...io.documents import read_json
from ...motion.body import Body
from ..recipe.schema import Recipe
from ..recipe.tables import OWN_VAE, Data, MotionTable
from .autoencoders import fresh_autoencoder, latent_shape, vae_folder


def sources(
    recipe: Recipe,
    bad: Callable[[str], None] | None = None,
    out: Path | None = None,
    *,
    vae: DiffusersNetwork | None = None,
) -> tuple[Source, Source | None]:
    """Return the data to train on, and those held out to measure on (None of a stream).

    Args:
        recipe: the recipe.
        bad: called with a line about each picture that is skipped.

    Args:
        recipe: whose ``data`` to read.
        bad: called with a line on each picture that is skipped.
        out: where the recipe's own autoencoder is, once it is trained; until then its latents are
            `Unencoded`.
        vae: encodes in the place of the recipe's own autoencoder, e.g. that of a finished model.

    Raises:
        FileNotFoundError: the data are missing.
        ValueError: the data do not fit the recipe.
    """
    found = _sources(recipe, bad, out, vae)
    side = recipe.data.reduced
    if side is None:
        return found
    return Reduced(source=found[0], side=side), found[1] and Reduced(source=found[1], side=side)


def _sources(
    recipe: Recipe,
    bad: Callable[[str], None] | None,
    out: Path | None,
    vae: DiffusersNetwork | None,
) -> tuple[Source, Source | None]:
    spec = recipe.data
    if spec.kind == "fashion-mnist":
        return _fashion("train", spec.path), _fashion("test", spec.test or spec.path)
    whole = _read(recipe, spec, spec.path or "", bad)
    test = _to_test(recipe, whole, bad) if spec.test else None
    if spec.vae:
        whole = in_latents(recipe, whole, out, vae=vae)
        test = None if test is None else in_latents(recipe, test, out, vae=vae)
    if spec.test:
        return whole, test
    return split(whole, 0.0 if whole.size is None else spec.holdout, recipe.seed)


def in_latents(
    recipe: Recipe, source: Source, out: Path | None, *, vae: DiffusersNetwork | None = None
) -> Source:
    """Return the latents of pictures, or of what stands for them, by the recipe's autoencoder.

    Args:
        recipe: whose ``data.vae`` encodes.
        source: pictures; or latents and what stands for them, which are encoded anew.
        out, vae: as of `sources`.

    Raises:
        ValueError: the latents have no spread.
    """
    if isinstance(source, Subset):
        return Subset(source=in_latents(recipe, source.source, out, vae=vae), kept=source.kept)
    pictures: Any = source.pictures if isinstance(source, Latents | Unencoded) else source
    folder, spec = vae_folder(recipe, out), recipe.data
    own = spec.vae == OWN_VAE
    if folder is not None or (own and vae is not None):
        beside = out if own and out else Path(spec.path or "").parent
        encoder = vae if own and vae is not None else read_module(str(folder))
        cache = Path(spec.cache) if spec.cache else beside / ".latents"
        return encode_pictures(pictures, encoder, cache)
    assert recipe.autoencoder is not None  # the recipe was checked
    fresh = fresh_autoencoder(recipe.autoencoder, pictures.shape).eval().requires_grad_(False)
    shape = latent_shape(recipe.autoencoder, pictures.shape)
    return Unencoded(pictures=pictures, encode=lambda x: into_latents(fresh, x), latent_shape=shape)


def _fashion(which: str, folder: str | None) -> Source:
    x, y = fashion_mnist.load_split(which, folder)
    return InMemory(
        x=x,
        targets={"label": y},
        columns={"label": Column(kind="class", classes=fashion_mnist.CLASSES)},
    )


def _to_test(recipe: Recipe, whole: Source, bad: Callable[[str], None] | None) -> Source:
    """Read the data to measure on, in the units of those to train on."""
    spec = recipe.data
    still = spec.model_copy(
        update={
            "flip": False,
            "crop": "center",
            "standardise": False,
            "classes": spec.classes or _classes(whole),
        }
    )
    motions = whole if isinstance(whole, Motions) else None
    test = _read(recipe, still, str(spec.test), bad, motions)
    scale = None if motions else standardiser_of(whole)
    one, other = (
        f"samples of {list(source.shape)} with {', '.join(source.columns) or 'no columns'}"
        for source in (whole, test)
    )
    if one != other:
        raise ValueError(f"{spec.test} holds {other}, but {spec.path} {one}; they should be alike")
    strange = [name for name, column in whole.columns.items() if column != test.columns[name]]
    if strange:  # else an index would mean one class here and another there
        raise ValueError(
            f"{spec.test} has other classes of {strange[0]!r} than {spec.path}, or another "
            "width; they should be alike"
        )
    return Standardised(source=test, scale=scale) if scale else test


def _classes(source: Source) -> tuple[str, ...]:
    """Return the classes of the only column of classes."""
    found = [c.classes for c in source.columns.values() if c.kind == "class"]
    return found[0] if len(found) == 1 else ()


def standardiser_of(source: Source | None) -> Standardiser | None:
    """Return the mean and standard deviation by which a source is standardised, if it is."""
    while source is not None and not isinstance(source, Standardised | Motions):
        source = getattr(source, "source", None)
    return source.scale if source is not None else None


def body_of(source: Source | None) -> Body | None:
    """Return the skeleton of motions; None of other data."""
    while source is not None and not isinstance(source, Motions):
        source = getattr(source, "source", None)
    return source.body if source is not None else None


def _motion_settings(spec: Data) -> MotionSettings:
    return MotionSettings(crop=spec.crop, **(spec.motion or MotionTable()).model_dump())


def _read(
    recipe: Recipe,
    spec: Data,
    path: str,
    bad: Callable[[str], None] | None,
    like: Motions | None = None,
) -> Source:
    channels = (
        read_json(Path(spec.vae) / "config.json").get("in_channels", 3)
        if spec.vae and spec.vae != OWN_VAE
        else spec.channels
    )
    format = PictureFormat(
        size=spec.size,
        channels=channels,
        crop=spec.crop,
        flip=spec.flip,
        enlarge=recipe.autoencoder is None and recipe.upscale is None,
    )
    cache = Path(spec.cache) if spec.cache else None
    if spec.kind == "tensors":
        held = tensors(path, columns=spec.columns, classes=spec.classes)
        return (
            Standardised(source=held, scale=Standardiser.of(held.x)) if spec.standardise else held
        )
    if spec.kind == "motion":
        return motion_folder(
            path,
            _motion_settings(spec),
            columns=spec.columns,
            classes=spec.classes,
            max_bad=spec.max_bad,
            say=bad,
            like=like,
        )
    if spec.kind == "shards":
        return Shards(
            path,
            format,
            classes=spec.classes,
            buffer=spec.shuffle,
            seed=recipe.seed,
            max_bad=spec.max_bad,
            say=bad,
        )
    read = image_folder if spec.kind == "images" else parquet
    found = read(
        path,
        format,
        columns=spec.columns,
        classes=spec.classes,
        max_bad=spec.max_bad,
        cache=cache,
        say=bad,
    )
    return found


@torch.no_grad()
def encode_pictures(source: Pictures, vae: DiffusersNetwork, cache: Path) -> Source:
    """Return the latents of pictures (`guidestar.diffusers.read.vae.encoded`), kept in ``cache``.

    Raises:
        ValueError: they have no spread.
    """
    where = "cuda" if torch.cuda.is_available() else "cpu"
    nn.Module.to(vae, where)
    digest = hashlib.blake2b(repr(sorted(vae.config.items())).encode(), digest_size=12)
    for tensor in vae.state_dict().values():
        digest.update(tensor.cpu().flatten().view(torch.uint8).numpy())
    # By what they are made of, not where that lies: files may change in place.
    digest.update(source.pixels.numpy().data)
    found = latents(source, lambda x: into_latents(vae, x.to(where)), cache, key=digest.hexdigest())
    check_spread(found.x)
    return found
