"""Propose a recipe for data: one that trains on two CPU cores in some minutes, to be read and
changed.
"""

from __future__ import annotations

import json
import math
import re
from contextlib import suppress
from pathlib import Path

from ...data.layout import find_files, find_pictures
from ...data.source import Column, Source
from ...data.splits import find_splits
from ..build.data import sources
from .parts import NetworkPart, Training
from .propose_motion import motion_lines, motion_table
from .schema import Recipe
from .tables import Data, DataKind

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def kind_of(path: Path) -> DataKind:
    """Return the kind of data that a path holds.

    Raises:
        ValueError: there is nothing there, or nothing known.
    """
    if not path.exists():
        raise ValueError(f"{path}: there is no such file or folder")
    if path.is_file():
        suffixes: dict[str, DataKind] = {
            ".safetensors": "tensors",
            ".npy": "tensors",
            ".parquet": "parquet",
            ".tar": "shards",
        }
        if path.suffix in suffixes:
            return suffixes[path.suffix]
        raise ValueError(
            f"{path}: data are a folder of images or .bvh files, .parquet, .tar (webdataset), "
            ".safetensors or .npy files"
        )
    names = [f.suffix.lower() for f in find_files(path)]
    kinds: dict[str, DataKind] = {
        ".tar": "shards",
        ".bvh": "motion",
        ".parquet": "parquet",
        ".npy": "tensors",
    }
    for suffix, kind in kinds.items():
        if suffix in names:
            return kind
    if not find_pictures(path):
        raise ValueError(
            f"{path}: holds no images ({', '.join(PICTURES)}), .bvh, parquet, webdataset or .npy "
            "files"
        )
    return "images"


def _side(path: Path) -> int:
    """Return a size that suits the images of a folder: their median shorter side, at most 64, a
    multiple of 4.
    """
    from ...io.decoding import open_picture

    sides = []
    for file in find_pictures(path)[:50]:
        with suppress(OSError):
            sides.append(min(open_picture(file, pixels=False).size))
    return max(8, min(64, sorted(sides)[len(sides) // 2] // 4 * 4)) if sides else 32


def propose(
    path: Path, *, name: str, size: int | None = None, steps: int = 2000
) -> tuple[str, str]:
    """Return a recipe for the data at ``path`` as TOML, and a line on what was found.

    Raises:
        ValueError: the data cannot be read as they are.
    """
    kind = kind_of(path)
    split = find_splits(path, find_pictures(path)) if kind == "images" and path.is_dir() else {}
    train, *others = split.values() or [path]
    side = size or (_side(train) if kind == "images" else 32)
    bare = Training(steps=1)
    data = Data(
        kind=kind,
        path=str(train),
        test=str(others[0]) if others else None,
        size=side,
        max_bad=10,
        holdout=0.0,
        motion=motion_table(path) if kind == "motion" else None,
    )
    source, _ = sources(
        Recipe(name="proposal", data=data, model=NetworkPart(widths=(8,), head=8, train=bare))
    )
    if not data.test and source.size is not None:
        data = data.model_copy(update={"holdout": _share(source.size)})
    count = "a stream"
    if source.size is not None:
        count = f"{source.size - round(data.holdout * source.size):,} samples to train on"
    found = f"{path}: {kind}, {count} of {list(source.shape)}"
    return "\n".join(_lines(name, data, source, steps)) + "\n", f"{found}; {_columns(source)}"


def _share(size: int) -> float:
    """Return the share of so many samples that is held out: a tenth, or one sample if that is none
    (none of one).
    """
    if round(0.1 * size) >= 1:
        return 0.1
    return math.ceil(100 / size) / 100 if size > 1 else 0.0


def quoted(text: str) -> str:
    """Return a text as a TOML string of one line."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _fit(name: str) -> str:
    """Return a recipe's name for a file's name."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".-")[:60] or "model"


def _columns(source: Source) -> str:
    return "columns: " + (
        ", ".join(
            f"{n} ({c.kind}{f', {len(c.classes)} classes' if c.classes else ''})"
            for n, c in source.columns.items()
        )
        or "none"
    )


def _lines(name: str, data: Data, source: Source, steps: int) -> list[str]:
    image = len(source.shape) == 3
    if data.motion is not None:
        return motion_lines(_fit(name), data, source, steps)
    lines = [
        f"name = {quoted(_fit(name))}",
        'licence = "" # of your data',
        "seed = 0",
        "",
        "[data]",
        f'kind = "{data.kind}"',
        f"path = {quoted(data.path or '')}",
    ]
    if data.test:
        lines += [f"test = {quoted(data.test)} # to measure on"]
    if image:
        if any(c.kind == "text" for c in source.columns.values()):
            lines += ["channels = 3 # as CLIP takes them"]
        lines += [
            f"size = {data.size}",
            "flip = false # mirror images left to right",
            "max_bad = 10 # unreadable images to skip before giving up",
        ]
    else:
        lines += ["standardise = true"]
    if not data.test and source.size is not None:
        lines += [f"holdout = {data.holdout:g} # kept aside, to measure on"]
    lines += [""]
    for column, about in source.columns.items():
        lines += _condition(column, about, image)
    lines += [
        "[levels]",
        "mean = -0.3",
        "std = 1.3",
        "",
        "[model]",
        *_network(source),
        "condition_dropout = 0.1",
        "snapshots = [0.25]",
    ]
    lines += [
        f"train = {{ steps = {steps}, batch = 64, rate = 2e-3, warmup = {min(100, steps // 10)}, "
        f'decay = 0.998, precision = "{"bfloat16" if image else "float32"}" }}',
        "",
    ]
    if any(c.kind == "class" for c in source.columns.values()):
        for part in ("classifier # sees noise, and guides", "judge # sees none, and only measures"):
            head, _, remark = part.partition(" ")
            train = (
                f"train = {{ steps = {max(1, steps // 3)}, batch = 64, rate = 1e-3, warmup = "
                f"{min(50, steps // 30)}, decay = 0.99, weight_decay = 0.01 }}"
            )
            lines += [f"[{head}] {remark}", "widths = [16, 32, 64]", "dropout = 0.1", train, ""]
    if image and any(c.kind == "text" for c in source.columns.values()):
        lines += _clips(steps)
    return [*lines, "[preview]", f"every = {max(1, steps // 4)}", ""]


def _condition(name: str, about: Column, image: bool) -> list[str]:
    key = name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else quoted(name)
    if about.kind == "text" and image:
        return [
            f"[conditions.{key}] # a caption",
            'encoder = "clip" # trained here, see [clip]; or a CLIP by name or folder',
            "",
        ]
    if about.kind == "text":
        encoder = (
            'encoder = "openai/clip-vit-base-patch32" # from the Hugging Face hub; or a folder'
        )
        return [f"[conditions.{key}] # a caption", encoder, ""]
    named = " ".join(", ".join(about.classes[:8]).split()) + (
        ", …" if len(about.classes) > 8 else ""
    )
    words = "".join(sign for sign in named if sign.isprintable())
    return [f"[conditions.{key}] # {about.kind}" + (f": {words}" if about.classes else ""), ""]


def _clips(steps: int) -> list[str]:
    """Return the parts that encode captions, guide by them, and measure whether they are met."""
    train = (
        f"train = {{ steps = {max(1, steps // 3)}, batch = 128, rate = 1e-3, warmup = "
        f"{min(50, steps // 30)}, decay = 0.99, weight_decay = 0.05 }}"
    )
    return [
        *(
            "[clip] # encodes the captions",
            "width = 64",
            "layers = 3",
            "text_width = 96",
            "text_layers = 2",
            "vocabulary = 1024",
            train,
            "",
        ),
        "[measuring_clip] # of another size; it guides nothing, and only measures",
        *(
            "width = 96",
            "layers = 2",
            "text_width = 64",
            "text_layers = 2",
            "vocabulary = 768",
            train,
            "",
        ),
        *("[noisy_clip] # sees noise, and guides", "width = 64", "layers = 3", train, ""),
    ]


def _network(source: Source) -> list[str]:
    if len(source.shape) == 3:
        return ["widths = [32, 64, 96]" if source.shape[-1] > 48 else "widths = [24, 48, 72]"]
    return ['network = "sequence"', "width = 96", "layers = 4", "heads = 4"]
