"""The data of a distillation: its own, or those that its teacher was trained on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...data.latents import Unencoded
from ...data.source import Source, Subset
from ...diffusers.read.vae import Decoder
from ...model.model import Model
from ..build.data import encode_pictures, sources
from ..recipe.parts import NetworkPart, Training
from ..recipe.schema import Recipe
from ..recipe.tables import OWN_VAE, Data
from .recipe import Distillation


def data_of(recipe: Distillation, model: Model) -> Data:
    """Return the data of a distillation: the recipe's, or those the teacher was trained on.

    Where the recipe gives no more than their kind and place, all else is as in the teacher's card.

    Raises:
        ValueError: neither is known.
    """
    found = model.card.get("recipe", {}).get("data")
    known = found if isinstance(found, dict) else None
    own = recipe.data
    if own is None and known is None:
        raise ValueError(
            f"the card of {model.name!r} does not name its training data; give them (--data, or a "
            "table [data])"
        )
    if own is not None and (known is None or own.model_fields_set - {"kind", "path"}):
        return own
    settings = {k: v for k, v in (known or {}).items() if k in Data.model_fields}
    if own is not None and settings.get("kind", own.kind) != own.kind:
        return own
    if settings.pop("test", None):  # nothing is measured here, so nothing needs to be held out
        settings["holdout"] = 0.0
    return Data.model_validate({**settings, **({} if own is None else {"path": own.path})})


def student_source(
    recipe: Distillation, model: Model, say: Callable[[str], None] | None = None
) -> Source:
    """Read the data; of pictures for a model of latents, the latents of its own autoencoder.

    Runs are of captions and classes alone (`data.paths.Paths`), so nothing is encoded for them.

    Args:
        recipe: of the distillation.
        model: the teacher.
        say: called with a line about each picture that is skipped.

    Raises:
        FileNotFoundError: the data are missing.
        ValueError: they are not known, or do not fit their settings.
    """
    data, decode = data_of(recipe, model), model.decode
    if not isinstance(decode, Decoder) or data.vae not in (None, OWN_VAE):
        return _read(data, say)
    pictures = _read(data.model_copy(update={"vae": None}), say)
    if tuple(pictures.shape) == tuple(model.shape):  # tensors that are latents already
        return pictures
    if recipe.student.method == "trajectory":
        encode, shape = decode.encode, tuple(model.shape)
        return _each(pictures, lambda p: Unencoded(pictures=p, encode=encode, latent_shape=shape))
    cache = Path(data.cache) if data.cache else Path(data.path or "").parent / ".latents"
    return _each(pictures, lambda p: encode_pictures(p, decode.vae, cache))


def _each(source: Any, make: Callable[[Any], Source]) -> Source:
    if isinstance(source, Subset):
        return Subset(source=_each(source.source, make), kept=source.kept)
    return make(source)


def _read(data: Data, say: Callable[[str], None] | None) -> Source:
    unused = NetworkPart(widths=(8,), head=8, train=Training(steps=1))  # nothing is trained by it
    return sources(Recipe(name="data", data=data, model=unused), say)[0]
