"""Pictures with captions: emoji of seven styles, from packages whose licences allow it."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..io.files import make_folder

OnDrawing = Callable[[int, int], None]
SPLITS = ("train", "unseen-pairs", "unseen-concepts")
BACKGROUND = "#ffffff"


class Style(NamedTuple):
    """A set of pictures in one style.

    Args:
        name: as captions say it.
        package: on the npm registry.
        licence: of the pictures.
        origin: whose they are.
    """

    name: str
    package: str
    licence: str
    origin: str


STYLES = (
    Style("noto", "@iconify-json/noto", "Apache-2.0", "Noto Emoji, Google"),
    Style("blob", "@iconify-json/noto-v1", "Apache-2.0", "Noto Emoji (v1), Google"),
    Style("gradient", "@iconify-json/fluent-emoji", "MIT", "Fluent Emoji, Microsoft"),
    Style("flat", "@iconify-json/fluent-emoji-flat", "MIT", "Fluent Emoji Flat, Microsoft"),
    Style("firefox", "@iconify-json/fxemoji", "Apache-2.0", "FxEmoji, Mozilla"),
    Style("icon", "@iconify-json/flat-color-icons", "MIT", "Flat Color Icons, Icons8"),
    Style("3d", "@lobehub/fluent-emoji-3d", "MIT", "Fluent Emoji 3D, Microsoft"),
)
NAMES = "emojibase-data"
VERSIONS = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/fxemoji": "1.2.2",
    "@iconify-json/flat-color-icons": "1.2.3",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    NAMES: "17.0.0",
}
"""What the shipped model was trained on; another version may hold other pictures."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One picture: what it shows, in which style, and how to draw it.

    Args:
        concept: its name, e.g. "red apple".
        tags: further words for it.
        style: a `Style`'s name.
        svg: its source; or
        file: an encoded picture.
    """

    concept: str
    tags: tuple[str, ...]
    style: str
    svg: str | None = None
    file: Path | None = None

    @property
    def split(self) -> str:
        """Which part it belongs to: a fixed function of concept and style.

        One concept in twenty is in no style of the training part, and one concept and style in
        twenty of the others is not there together.
        """
        if _chance(self.concept) < 0.05:
            return "unseen-concepts"
        return (
            "unseen-pairs"
            if self.style != "icon" and _chance(f"{self.concept}/{self.style}") < 0.05
            else "train"
        )

    @property
    def captions(self) -> list[str]:
        """What may be said of it; the first is the plainest."""
        new = [t for t in self.tags if t not in self.concept.split()]
        chosen = sorted(new, key=lambda t: _chance(f"{self.concept}/{self.style}/{t}"))[:2]
        article = (
            ""
            if self.concept[0].isupper() or self.concept.endswith("s")
            else "an "
            if self.concept[0] in "aeiou"
            else "a "
        )
        said = [
            f"{self.concept}, {self.style} style",
            f"{article}{self.concept}, {self.style} style",
            self.concept,
        ]
        return list(
            dict.fromkeys([*said, ", ".join([self.concept, *chosen, f"{self.style} style"])])
        )


def _chance(text: str) -> float:
    """Return a number in [0, 1) that depends on ``text`` alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


def build_emoji(
    out: Path | str,
    *,
    packages: Path | str | None = None,
    size: int = 64,
    watch: OnDrawing | None = None,
) -> dict[str, int]:
    """Write the pictures as folders with ``metadata.jsonl``: for training, and two to measure on.

    Each row holds ``file_name``, ``text`` (several captions), ``concept`` and ``style``.

    Args:
        out: a new folder.
        packages: folder of npm's packages (``.tgz``), or where to fetch them to; by default one for
            the time being.
        size: pixels of a side.
        watch: called with the pictures done and in all.

    Returns:
        How many pictures each part has.

    Raises:
        FileExistsError: ``out`` holds something already.
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


def fetch_packages(folder: Path) -> Path:
    """Fetch the packages that ``folder`` lacks, by ``npm pack``.

    Raises:
        RuntimeError: npm is missing, or fails.
    """
    make_folder(folder)
    missing = [f"{p}@{v}" for p, v in VERSIONS.items() if not _archive(folder, p).is_file()]
    if not missing:
        return folder
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", *missing],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise RuntimeError(
            "npm is missing, which fetches the pictures; install Node.js, or give the packages "
            "with --packages FOLDER"
        ) from error
    if done.returncode:
        raise RuntimeError(
            f"npm could not fetch {', '.join(missing)}: {' '.join(done.stderr.split())[:300]}"
        )
    return folder


def _archive(folder: Path, package: str) -> Path:
    return folder / f"{package.removeprefix('@').replace('/', '-')}-{VERSIONS[package]}.tgz"


def read_drawings(packages: Path, work: Path) -> Iterator[Drawing]:
    """Yield every picture of the packages, without variants of skin tone.

    Raises:
        RuntimeError: a package is damaged.
    """
    folders = {package: _unpacked(_archive(packages, package), work) for package in VERSIONS}
    known = _known(_json(folders[NAMES] / "en" / "data.json"))
    code = {
        style.name: _codes(folders[style.package], folders, known)
        for style in STYLES
        if style.package.startswith("@iconify")
    }
    for style in STYLES:
        folder = folders[style.package]
        found = (
            _webp(folder, known)
            if style.name == "3d"
            else _icons(folder, style, code[style.name], known)
        )
        yield from (Drawing(style=style.name, **about) for about in found)


def _unpacked(archive: Path, work: Path) -> Path:
    folder = work / archive.stem
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
    except (OSError, tarfile.TarError) as error:
        raise RuntimeError(
            f"{archive}: not readable as a package of npm ({error}); remove it to fetch it again"
        ) from error
    return folder / "package"


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RuntimeError(f"{file.name} of a package cannot be read ({error})") from error


def _plain(code: str) -> str:
    """Bring a code point sequence to one spelling: lower case, without leading zeros and variation
    selectors.
    """
    return "-".join(
        part.lstrip("0") for part in code.lower().split("-") if part not in ("fe0f", "fe0e")
    )


def _known(entries: list[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return name and tags by code point sequence."""
    return {
        _plain(e["hexcode"]): {
            "concept": e["label"].replace("’", "'"),
            "tags": tuple(str(t) for t in e.get("tags", ())),
        }
        for e in entries
    }


def _codes(folder: Path, folders: Mapping[str, Path], known: Mapping[str, Any]) -> dict[str, str]:
    """Return the code point sequence of each icon's name: from its own table, or its sister's, or
    the name itself.
    """
    sister = {
        "noto-v1": "@iconify-json/noto",
        "fluent-emoji": "@iconify-json/fluent-emoji-flat",
    }.get(_json(folder / "info.json")["prefix"])
    table = (
        _json((folders[sister] if sister else folder) / "chars.json")
        if sister or (folder / "chars.json").is_file()
        else {}
    )
    named = {_pressed(about["concept"]): code for code, about in known.items()}
    named |= {
        _pressed(n): code
        for code in known
        if (n := unicodedata.name(chr(int(code, 16)), "") if "-" not in code else "")
    }
    return named | {name: _plain(code) for code, name in table.items()}


def _pressed(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _icons(
    folder: Path, style: Style, codes: Mapping[str, str], known: Mapping[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield the icons of a set; those that are no emoji go by their own names, where these are
    words.
    """
    icons, seen = _json(folder / "icons.json"), set()
    for name, icon in icons["icons"].items():
        code = codes.get(name, "" if style.name == "icon" else codes.get(_pressed(name), ""))
        about = known.get(code) or (
            {"concept": name.replace("-", " "), "tags": ()} if style.name == "icon" else None
        )
        if about is None or about["concept"] in seen:
            continue
        seen.add(about["concept"])
        yield {**about, "svg": _svg(icon, icons)}


def _svg(icon: Mapping[str, Any], icons: Mapping[str, Any]) -> str:
    left, top, width, height = (
        icon.get(k, icons.get(k, default))
        for k, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def _webp(folder: Path, known: Mapping[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    seen = set()
    for file in sorted((folder / "assets").glob("*.webp")):
        about = known.get(_plain(file.stem))
        # Some come twice, with a variation selector in the name and without.
        if about is not None and about["concept"] not in seen:
            seen.add(about["concept"])
            yield {**about, "file": file}


def _write(
    drawings: list[Drawing], out: Path, size: int, watch: OnDrawing | None
) -> dict[str, int]:
    rows: dict[str, list[dict[str, Any]]] = {part: [] for part in SPLITS}
    for d in drawings:
        words = re.sub(r"[^a-z0-9]+", "-", d.concept.lower()).strip("-") or "sign"
        digest = hashlib.blake2b(d.concept.encode(), digest_size=3).hexdigest()
        name = f"{d.style}/{words}-{digest}.png"
        make_folder((out / d.split / name).parent)
        rows[d.split].append(
            {"file_name": name, "text": d.captions, "concept": d.concept, "style": d.style}
        )
    with ThreadPoolExecutor() as pool:
        names = [out / d.split / r["file_name"] for d, r in _zipped(drawings, rows)]
        for done, _ in enumerate(
            pool.map(lambda pair: _draw(*pair, size), zip(drawings, names, strict=True)),  # type: ignore[reportCallIssue]
            1,  # type: ignore[reportCallIssue]
        ):
            if watch:
                watch(done, len(drawings))
    for part, about in rows.items():
        (make_folder(out / part) / "metadata.jsonl").write_text(
            "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in about), encoding="utf-8"
        )
    (out / "LICENCES.md").write_text(_licences(size), encoding="utf-8")
    return {part: len(about) for part, about in rows.items()}


def _zipped(
    drawings: list[Drawing], rows: Mapping[str, list[dict[str, Any]]]
) -> Iterator[tuple[Drawing, dict[str, Any]]]:
    ahead = {part: iter(about) for part, about in rows.items()}
    return ((d, next(ahead[d.split])) for d in drawings)


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
        f"{NAMES} {VERSIONS[NAMES]} (MIT).\n\n"
        f"| style | pictures | package | licence |\n|---|---|---|---|\n{rows}\n"
    )
