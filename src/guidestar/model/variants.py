"""Variants of a model: further networks for it, in its folder, each with a card of its own.

variants/NAME/guidestar.json     defaults (guidance, steps, solver, grid), recipe, figures
variants/NAME/unet/, …           the network; its conditions where they are not the model's
variants/NAME/difference.safetensors
                                 in place of the network: its difference to the model's, of low rank

All else (schedule, classifiers, judge, decoder) is the model's. A variant is loaded by
``load(model, variant=NAME)``, or by the name ``"model:NAME"``.
"""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path

from ..io.documents import read_json
from ..io.files import check_name, whole_or_not
from .shipped import NAME

FOLDER = "variants"
_SHARED = frozenset(
    {"judge", "classifier", "scheduler", "vae", "model_index.json", ".gitattributes"}
)
_NETWORKS = ("unet", "transformer", "network")
_DIFFERENCE = "difference.safetensors"  # as `networks.low_rank`, which imports torch
_CONDITIONS = ("condition", "text_encoder", "tokenizer")


class UnknownVariantError(ValueError):
    """A model's folder has no such variant."""


def variants_of(folder: Path) -> dict[str, str]:
    """List the variants in a model's folder, with a line on each; read without torch."""
    found = sorted((folder / FOLDER).glob(f"*/{NAME}"))
    return {file.parent.name: str(read_json(file).get("summary", "")) for file in found}


def variant_folder(folder: Path, variant: str) -> Path:
    """Return the folder of a variant.

    Raises:
        UnknownVariantError: there is none of that name; those there are are named.
    """
    known = variants_of(folder)
    if variant not in known:
        there = f"its variants are {', '.join(known)}" if known else "it has no variants"
        raise UnknownVariantError(f"{folder.name} has no variant {variant!r}; {there}")
    home = folder / FOLDER / variant
    # Files may be missing, e.g. of a download that was cut off.
    if not any((home / n).exists() for n in (_DIFFERENCE, *_NETWORKS)):
        raise ValueError(
            f"{home / _DIFFERENCE} is missing, and the variant has no network of its own in its "
            "place; fetch or distil it again"
        )
    return home


def check_variant(folder: Path, name: str) -> None:
    """Check that a model's folder can get a variant of this name.

    Raises:
        ValueError: the name cannot be a folder's, or ``folder`` holds no model of guidestar's own.
    """
    check_name(name, "the name of a variant")
    if not (folder / NAME).is_file():
        raise ValueError(
            f"{folder} is no model of guidestar's own ({NAME} is missing), so it keeps no variants"
        )


def keep_variant(folder: Path, student: Path, name: str) -> Path:
    """Copy the network and the card of a model into another model's folder, as a variant of it.

    Conditions are left out where they are, number by number, those of the other model; the network,
    where the student holds its difference to the other model's.

    Args:
        folder: of the model that gets the variant.
        student: of the model that becomes one.
        name: of the variant.

    Raises:
        ValueError: the name cannot be a folder's, or ``folder`` holds no model.
        OSError: it cannot be written.
    """
    check_variant(folder, name)
    about = read_json(student / NAME)
    left = {*_SHARED, *about.get("classifiers", ()), *about.get("clips", ())}
    if all(_same(folder / part, student / part, _skipped(part)) for part in _CONDITIONS):
        left |= {*_CONDITIONS}
    if (student / _DIFFERENCE).is_file():
        left |= {*_NETWORKS}
    target = folder / FOLDER / name
    with whole_or_not(target) as beside:
        shutil.copytree(
            student, beside, ignore=lambda at, names: _left(Path(at), names, student, left)
        )
        if target.is_dir():
            shutil.rmtree(target)
    return target


def _left(at: Path, names: list[str], student: Path, left: set[str]) -> list[str]:
    return [n for n in names if n in left] if at == student else []


def _skipped(part: str) -> frozenset[str]:
    """Return the files that may differ: transformers writes a tokenizer's padding as its last call
    left it, and all else in its settings is fixed by the text encoder beside it.
    """
    return frozenset({"tokenizer_config.json"} if part == "tokenizer" else ())


def _same(one: Path, other: Path, skipped: frozenset[str]) -> bool:
    files = [sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in (one, other)]
    return files[0] == files[1] and all(
        _alike(one / f, other / f) for f in files[0] if f.name not in skipped
    )


def _alike(one: Path, other: Path) -> bool:
    """Compare files: weights by their numbers, whatever their order in the file; a tokenizer
    without the padding and truncation of its last call.
    """
    if filecmp.cmp(one, other, shallow=False):
        return True
    if one.suffix == ".safetensors":
        return _same_weights(one, other)
    if one.name != "tokenizer.json":
        return False
    last = ("padding", "truncation")
    kept = [{k: v for k, v in read_json(f).items() if k not in last} for f in (one, other)]
    return kept[0] == kept[1]


def _same_weights(one: Path, other: Path) -> bool:
    import torch
    from safetensors.torch import load_file

    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )
