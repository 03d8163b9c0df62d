"""A folder of motions: BVH files, their classes and captions, as sequences of one length."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ..core.rng import Draw
from ..io.files import Damaged
from ..motion import read_bvh
from ..motion.body import Body
from .columns import column_values, describe_columns
from .folders import as_table
from .layout import read_layout
from .source import Column, ColumnKind, Held, Source, Targets, pick, split_captions
from .tensors import Standardiser

LENGTH = "length"
"""The column of how many frames of a sample are the motion's."""


@dataclass(frozen=True, kw_only=True)
class MotionSettings:
    """How the files of a folder become samples.

    Args:
        rate: frames a second that all motions are brought to.
        frames: of a sample; shorter motions are padded, longer ones cut.
        crop: which frames of a longer motion: "center", or "random" each time.
        names: how the files are called, as ``"{action}_{style}_{}"``: a word in braces is a column
            of classes, ``{}`` stands for anything.
        caption: a caption made of these columns, as ``"a person: {action}, {style}"``.
        up: the axis that points upwards in the files, "Y" or "Z".
        root: the joint that moves through space; by default the first one with several children.
    """

    rate: float = 20.0
    frames: int = 80
    crop: Literal["center", "random"] = "center"
    names: str | None = None
    caption: str | None = None
    up: Literal["Y", "Z"] = "Y"
    root: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Motions(Source):
    """Motions as standardised numbers of each frame (`MotionFormat`), padded with zeros.

    Args:
        numbers: of all frames of all motions, one after the other ``[Σ T, C]``, in their units.
        counts: frames of each motion.
        targets: values of the further columns.
        columns: what each column holds, `LENGTH` among them.
        body: the skeleton.
        scale: mean and standard deviation by which numbers are standardised.
        frames: of a sample.
        crop: which frames of a longer motion: "center", or "random" (the draw's "crop").
    """

    numbers: Tensor
    counts: tuple[int, ...]
    targets: Held
    columns: Mapping[str, Column]
    body: Body
    scale: Standardiser
    frames: int
    crop: Literal["center", "random"] = "center"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample: (frames, C)."""
        return self.frames, self.numbers.shape[1]

    @property
    def size(self) -> int:
        """Number of motions."""
        return len(self.counts)

    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Return the motions at ``rows``; frames beyond a motion's length are 0."""
        counts = torch.tensor(self.counts)
        first = (counts.cumsum(0) - counts)[list(rows)]
        counts = counts[list(rows)]
        spare = (counts - self.frames).clamp_min(0)
        share = draw.uniform("crop") if self.crop == "random" else torch.full((len(rows),), 0.5)
        start = (share * (spare + 1)).long()
        length = counts.clamp_max(self.frames)
        at = torch.arange(self.frames)
        within = at < length[:, None]
        where = (first + start)[:, None] + at
        x = self.scale.apply(self.numbers[where.clamp_max(len(self.numbers) - 1)])
        return x * within[..., None], {**pick(self.targets, rows, draw), LENGTH: length}

    def captions(self, column: str, rows: Sequence[int]) -> list[tuple[str, ...]]:
        """Return all captions of the motions at ``rows``."""
        return split_captions(self.targets, column, rows)


def motion_folder(
    folder: Path | str,
    settings: MotionSettings,
    *,
    columns: Mapping[str, ColumnKind] | None = None,
    classes: Sequence[str] = (),
    max_bad: int = 0,
    say: Callable[[str], None] | None = None,
    like: Motions | None = None,
) -> Motions:
    """Read a folder of BVH files of one skeleton.

    Classes and captions come from sub-folders, a table (``metadata.jsonl``, ``.csv``), captions
    beside the files (``1.txt`` beside ``1.bvh``), or the files' names (`MotionSettings.names`).

    Args:
        folder: the folder.
        settings: how files become samples.
        columns: the kind of each column; by default text is a caption, numbers are a vector, and
            sub-folders and words of names are classes.
        classes: names of the classes in the order of their indices, where one column has classes.
        max_bad: how many unreadable files to skip before giving up.
        say: called with a line about each file that is skipped.
        like: other data whose skeleton and standardisation these get.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
        Damaged: more than ``max_bad`` files cannot be read.
        ValueError: a file has another skeleton or too few frames, the pattern of names or the
            caption does not fit, or a column holds values of another kind.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; check data.path")
    text = [name for name, kind in (columns or {}).items() if kind == "text"]
    found = read_layout(folder, text=text, classes=classes, suffix=".bvh")
    words = _words(found.files, settings.names)
    labels = dict(words) if found.labels is None else {"label": found.labels, **words}
    twice = sorted(({LENGTH} & {*labels, *found.columns}) | ({*labels} & {*found.columns}))
    if twice:
        raise ValueError(f"{folder}: two columns would be called {twice[0]!r}; rename one")
    captions = _captions(settings.caption, words)
    table = as_table(folder, {**found.columns, **captions}, labels)
    described = {} if table is None else describe_columns(table, folder, columns, set(), classes)
    numbers, kept, body = _encode_all(found.files, settings, max_bad, say, like)
    targets: Held = {}
    if table is not None:
        targets = {n: column_values(table, n, c, kept, folder) for n, c in described.items()}
    every = torch.cat(numbers)
    return Motions(
        numbers=every,
        counts=tuple(len(n) for n in numbers),
        targets=targets,
        columns={**described, LENGTH: Column(kind="length", width=settings.frames)},
        body=body,
        scale=standardiser(every, body) if like is None else like.scale,
        frames=settings.frames,
        crop=settings.crop,
    )


def standardiser(numbers: Tensor, body: Body) -> Standardiser:
    """Return the mean of each number, and one standard deviation for each part of a frame.

    With one of its own, a number that hardly changes, as of a joint that never turns, would count
    as much as all others; HumanML3D shares them by parts too.

    Args:
        numbers: ``[N, C]``.
        body: whose numbers they are.
    """
    x = numbers.double()
    variance = x.var(0, correction=0)
    for where in body.format.parts.values():
        variance[where] = variance[where].mean()
    std = torch.where(variance > 0, variance.sqrt(), torch.ones_like(variance))
    return Standardiser(mean=x.mean(0).float(), std=std.float())


def _encode_all(
    files: Sequence[Path],
    settings: MotionSettings,
    max_bad: int,
    say: Callable[[str], None] | None,
    like: Motions | None,
) -> tuple[list[Tensor], list[int], Body]:
    """Return the numbers of each file that can be read, which files these are, and their body."""
    numbers: list[Tensor] = []
    kept: list[int] = []
    body, bad = None if like is None else like.body, 0
    for k, file in enumerate(files):
        try:
            motion = read_bvh(file)
        except Damaged as error:
            bad += 1
            if bad > max_bad:
                more = f"; {max_bad} were skipped before (data.max_bad)" if max_bad else ""
                raise Damaged(f"{error}{more}") from error
            if say is not None:
                say(f"skipped {error}")
            continue
        try:
            if body is None:
                body = Body.of(motion, rate=settings.rate, up=settings.up, root=settings.root)
            numbers.append(body.encode(motion))
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        kept.append(k)
    if body is None or not numbers:
        raise Damaged(f"{files[0].parent}: none of its {len(files)} files can be read")
    return numbers, kept, body


def _words(files: Sequence[Path], names: str | None) -> dict[str, list[str]]:
    """Return the words of the files' names by column."""
    if names is None:
        return {}
    pattern = _pattern(names)
    found = [pattern.fullmatch(file.stem) for file in files]
    if not any(found):
        raise ValueError(
            f"data.motion.names = {names!r} fits no file, e.g. not {files[0].name!r}; write their "
            "names (without .bvh) with {column} or {} in the places that differ"
        )
    if not all(found):
        file = files[found.index(None)].name
        raise ValueError(
            f"data.motion.names = {names!r} fits {sum(map(bool, found))} of {len(files)} files, "
            f"but not {file!r}; rename it, or change the pattern"
        )
    return {name: [m[name] for m in found if m] for name in pattern.groupindex}


def _pattern(names: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w*)\}", names)
    columns = [c for c in pieces[1::2] if c]
    odd = next((c for c in columns if c[0].isdigit() or columns.count(c) > 1), None)
    if odd is not None or not columns:
        what = f"{odd!r} is not one" if odd is not None else "there is none"
        raise ValueError(
            f"data.motion.names = {names!r} needs words in braces, each once, as {{action}}; {what}"
        )
    parts = [
        re.escape(piece) if k % 2 == 0 else f"(?P<{piece}>.+?)" if piece else ".+?"
        for k, piece in enumerate(pieces)
    ]
    return re.compile("".join(parts))


def _captions(caption: str | None, words: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the column of captions made of the words of names; empty without a pattern."""
    if caption is None:
        return {}
    used = re.findall(r"\{(\w*)\}", caption)
    strange = next((c for c in used if c not in words), None)
    if strange is not None or not used:
        known = ", ".join(words) or "none, as data.motion.names is missing"
        raise ValueError(
            f"data.motion.caption = {caption!r} should hold words of the files' names in braces; "
            f"there is {known}"
        )
    rows = zip(*(words[c] for c in used), strict=True)
    plain = [dict(zip(used, (v.replace("-", " ") for v in row), strict=True)) for row in rows]
    return {"text": [re.sub(r"\{(\w+)\}", lambda m, r=r: r[m[1]], caption) for r in plain]}
