"""Write pictures with captions: emoji of seven styles, whose licences allow it."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from ..io.files import make_folder
from .emoji_packages import EMOJIBASE, STYLES, VERSIONS, Drawing, fetch_packages, read_drawings

OnDrawing = Callable[[int, int], None]
"""Called after each picture with the number of those done, and of all."""
SPLITS = ("train", "unseen-pairs", "unseen-concepts")
BACKGROUND = "#ffffff"


class EmojiRow(TypedDict):
    """A row of ``metadata.jsonl``."""

    file_name: str
    text: list[str]
    concept: str
    style: str


def build_emoji(
    out: Path | str,
    *,
    packages: Path | str | None = None,
    size: int = 64,
    watch: OnDrawing | None = None,
) -> dict[str, int]:
    """Write the pictures as folders with ``metadata.jsonl``: one to train on, two to measure on.

    Each row holds ``file_name``, ``text`` (several captions), ``concept`` and ``style``.

    Args:
        out: a new folder.
        packages: folder of npm's packages (``.tgz``), which are fetched where they are missing; by
            default a temporary one.
        size: pixels of a side.
        watch: called after each picture with the number of those done, and of all.

    Returns:
        The number of pictures of each split.

    Raises:
        FileExistsError: ``out`` is not empty.
        RuntimeError: npm is missing or cannot fetch a package, or a package is not as expected.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; give another --out")
    make_folder(out)
    with tempfile.TemporaryDirectory() as own:
        drawings = list(
            read_drawings(fetch_packages(Path(packages) if packages else Path(own)), Path(own))
        )
        beside = out.with_name(out.name + ".writing")
        counts = _write(drawings, make_folder(beside), size, watch)
    for part in (*SPLITS, "LICENCES.md"):
        (beside / part).rename(out / part)
    beside.rmdir()
    return counts


def _write(
    drawings: Sequence[Drawing], out: Path, size: int, watch: OnDrawing | None
) -> dict[str, int]:
    rows: dict[str, list[EmojiRow]] = {part: [] for part in SPLITS}
    files = []
    for d in drawings:
        words = re.sub(r"[^a-z0-9]+", "-", d.concept.lower()).strip("-") or "sign"
        digest = hashlib.blake2b(d.concept.encode(), digest_size=3).hexdigest()
        name = f"{d.style}/{words}-{digest}.png"
        files.append(out / d.split / name)
        make_folder(files[-1].parent)
        rows[d.split].append(
            EmojiRow(file_name=name, text=d.captions, concept=d.concept, style=d.style)
        )
    with ThreadPoolExecutor() as pool:
        drawn = pool.map(_draw, drawings, files, [size] * len(files))
        for done, _ in enumerate(drawn, 1):
            if watch:
                watch(done, len(drawings))
    for part, found in rows.items():
        (make_folder(out / part) / "metadata.jsonl").write_text(
            "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in found), encoding="utf-8"
        )
    (out / "LICENCES.md").write_text(_licences(size), encoding="utf-8")
    return {part: len(found) for part, found in rows.items()}


def _draw(drawing: Drawing, file: Path, size: int) -> None:
    """Draw a picture of ``size`` pixels on the background."""
    from io import BytesIO

    from PIL import Image

    if drawing.svg is not None:
        import resvg_py

        picture = Image.open(
            BytesIO(
                bytes(
                    resvg_py.svg_to_bytes(
                        svg_string=drawing.svg, width=size, height=size, skip_system_fonts=True
                    )
                )
            )
        )
    else:
        picture = Image.open(str(drawing.file))
    ground = Image.new("RGBA", picture.size, BACKGROUND)
    Image.alpha_composite(ground, picture.convert("RGBA")).convert("RGB").resize(
        (size, size), Image.Resampling.LANCZOS
    ).save(file)


def _licences(size: int) -> str:
    rows = "\n".join(
        f"| {s.name} | {s.origin} | {s.package} {VERSIONS[s.package]} | {s.licence} |"
        for s in STYLES
    )
    return (
        f"# Emoji with captions\n\n{size} × {size} pixels on {BACKGROUND}. Names and tags: "
        f"{EMOJIBASE} {VERSIONS[EMOJIBASE]} (MIT).\n\n"
        f"| style | pictures | package | licence |\n|---|---|---|---|\n{rows}\n"
    )
