"""Propose a recipe for a folder of motions: their rate, length, and what their names say."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ...data.layout import find_files
from ...data.source import Source
from ...io.files import Damaged
from ...motion import Bvh, read_bvh
from .tables import Data, MotionTable

MOST_RATE = 20.0
"""Frames a second of a proposal, at most: HumanML3D's rate."""
MOST_SECONDS = 10.0
"""Length of a sample of a proposal, at most: HumanML3D's longest motions."""
_LOOKED_AT = 50
_NAMES = ("action", "style")


def motion_table(folder: Path) -> MotionTable:
    """Return how the BVH files of a folder may become samples.

    The rate is the files' own, or the largest share of it ``1/k`` that is at most `MOST_RATE`; the
    length is the median of the files' in even frames, at most `MOST_SECONDS`; classes are the words
    of the names that differ (`guess_names`), where no sub-folders and no table name them.

    Raises:
        ValueError: no file can be read.
    """
    files = [f for f in find_files(folder) if f.suffix.lower() == ".bvh"]
    motions = _readable(files[:: max(1, len(files) // _LOOKED_AT)])
    if not motions:
        raise ValueError(f"{folder}: none of its {len(files)} BVH files can be read")
    full = statistics.median(m.rate for m in motions)
    rate = full / max(1, -int(-full // (MOST_RATE * 1.001)))
    seconds = min(MOST_SECONDS, statistics.median(len(m.values) / m.rate for m in motions))
    flat = all(f.parent == folder for f in files)
    table = any(folder.glob("metadata.*"))
    return MotionTable(
        rate=round(rate, 2),
        frames=max(4, int(seconds * rate / 2 + 1e-3) * 2),
        names=guess_names([f.stem for f in files]) if flat and not table else None,
    )


def _readable(files: Sequence[Path]) -> list[Bvh]:
    found = []
    for file in files:
        with suppress(Damaged):
            found.append(read_bvh(file))
    return found


def guess_names(stems: Sequence[str]) -> str | None:
    """Return a pattern of files' names, as ``"set_{action}_{style}_{}"``; None where there is none.

    Names are parted at underscores. A word that all share stays as it is, one that is a number in
    all of them is ``{}``, and one that hardly any share too; the others are classes, called action,
    style, part3, and so on.
    """
    rows = [stem.split("_") for stem in stems]
    if len({len(row) for row in rows}) != 1:
        return None
    words, found = [], 0
    for place in zip(*rows, strict=True):
        kinds = set(place)
        if len(kinds) == 1 and not re.search(r"[{}]", place[0]):
            words.append(place[0])
        elif all(word.isdecimal() for word in kinds) or 2 * len(kinds) > len(stems) or "" in kinds:
            words.append("{}")
        else:
            words.append(f"{{{_NAMES[found] if found < 2 else f'part{found + 1}'}}}")
            found += 1
    return "_".join(words) if found else None


_MDM_LINES = (
    "[schedule] # MDM's: betas by a cosine",
    'kind = "vp"',
    'beta_schedule = "squaredcos_cap_v2"',
    "num_train_timesteps = 50",
    "",
    "[levels]",
    'kind = "uniform"',
    "",
    "[objective]",
    'predicts = "x0"',
    "",
    "[objective.motion]",
    "positions = 0.5",
    "velocities = 0.5",
    "contacts = 0.5",
    "",
    "[model]",
    'network = "motion"',
    "width = 192",
    "layers = 6",
    "heads = 6",
)
"""MDM's schedule, levels, objective and network, up to what depends on the data."""


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _condition_lines(source: Source) -> list[str]:
    """Return a table for each column that is a condition."""
    lines: list[str] = []
    for column, about in source.columns.items():
        if about.kind == "length":
            continue
        key = column if re.fullmatch(r"[A-Za-z0-9_-]+", column) else _quoted(column)
        named = ", ".join(about.classes[:8]) + (", …" if len(about.classes) > 8 else "")
        note = "".join(c for c in f"{about.kind}: {named}" if c.isprintable())
        lines += [f"[conditions.{key}] # {note if about.classes else about.kind}"]
        if about.kind == "text":
            lines += ['encoder = "openai/clip-vit-base-patch32"', 'output = "projected"']
        lines += ["dropout = 0.1", ""]
    return lines


def motion_lines(name: str, data: Data, source: Source, steps: int) -> list[str]:
    """Return the lines of a recipe for motions: MDM's network and objective.

    Args:
        name: of the recipe.
        data: the proposal's.
        source: what was read.
        steps: of the training.
    """
    table = data.motion
    assert table is not None
    lines = [
        f"name = {_quoted(name)}",
        'licence = "" # of your data',
        "seed = 0",
        "",
        "[data]",
        'kind = "motion"',
        f"path = {_quoted(data.path or '')}",
        'crop = "random" # another part of a longer motion each time',
        "max_bad = 10 # unreadable files to skip before giving up",
        f"holdout = {data.holdout:g} # kept aside, to measure on",
        "",
        "[data.motion]",
        f"rate = {table.rate:g} # frames a second",
        f"frames = {table.frames} # of a sample: {table.frames / table.rate:.3g} seconds",
    ]
    if table.names is not None:
        lines += [f"names = {_quoted(table.names)} # words in braces are columns of classes"]
    lines += [""]
    lines += _condition_lines(source)
    lines += _MDM_LINES
    lines += [
        f"train = {{ steps = {steps}, batch = 32, rate = 8e-4, warmup = {min(200, steps // 10)}, "
        "decay = 0.998 }",
        "",
    ]
    classes = [n for n, c in source.columns.items() if c.kind == "class"]
    if classes:
        lines += [
            "[judge] # only measures",
            f"column = {_quoted(classes[0])}",
            "widths = [64, 128]",
            "dropout = 0.1",
            f"train = {{ steps = {max(1, steps // 3)}, batch = 32, rate = 1e-3, warmup = "
            f"{min(50, steps // 30)}, decay = 0.99, weight_decay = 0.01 }}",
            "",
        ]
    return [*lines, "[export]", 'guidance = "cfg(1.5)"', 'grid = "uniform"', "steps = 20", ""]
