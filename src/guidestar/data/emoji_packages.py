"""The packages of emoji pictures: fetch them, and read the drawings in them."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..io.documents import JSONObject
from ..io.files import make_folder


class Style(NamedTuple):
    """A set of pictures in one style.

    Args:
        name: the style's name in captions.
        package: the package on the npm registry.
        licence: of the pictures.
        origin: project and owner of the pictures.
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
EMOJIBASE = "emojibase-data"
VERSIONS = {
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/fxemoji": "1.2.2",
    "@iconify-json/flat-color-icons": "1.2.3",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    EMOJIBASE: "17.0.0",
}
"""The versions of the shipped model's data; other versions may hold other pictures."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One picture: its concept and style, and its source.

    Args:
        concept: what it shows, e.g. "red apple".
        tags: further words for the concept.
        style: a `Style`'s name.
        svg: its source as SVG; or
        file: an encoded picture.
    """

    concept: str
    tags: tuple[str, ...]
    style: str
    svg: str | None = None
    file: Path | None = None

    @property
    def split(self) -> str:
        """The split that it belongs to: a fixed function of concept and style.

        One concept in twenty is not in the training split at all; of the other concepts, one pair
        of concept and style in twenty is not.
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
        """Its captions; the first is the plainest."""
        new = [t for t in self.tags if t not in self.concept.split()]
        chosen = sorted(new, key=lambda t: _chance(f"{self.concept}/{self.style}/{t}"))[:2]
        article = (
            ""
            if self.concept[0].isupper() or self.concept.endswith("s")
            else "an "
            if self.concept[0] in "aeiou"
            else "a "
        )
        plain = [
            f"{self.concept}, {self.style} style",
            f"{article}{self.concept}, {self.style} style",
            self.concept,
        ]
        return list(
            dict.fromkeys([*plain, ", ".join([self.concept, *chosen, f"{self.style} style"])])
        )


def _chance(text: str) -> float:
    """Return a number in [0, 1) that depends on ``text`` alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


class EmojiNames(NamedTuple):
    """The names of an emoji.

    Args:
        concept: its name.
        tags: further words for it.
    """

    concept: str
    tags: tuple[str, ...]


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
            "npm, which fetches the pictures, is missing; install Node.js, or give the packages "
            "with --packages FOLDER"
        ) from error
    if done.returncode:
        raise RuntimeError(
            f"npm could not fetch {', '.join(missing)}: {' '.join(done.stderr.split())[:300]}; "
            "check the network, or give the packages with --packages FOLDER"
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
    known = _known(_json(folders[EMOJIBASE] / "en" / "data.json"))
    code = {
        style.name: _codes(folders[style.package], folders, known)
        for style in STYLES
        if style.package.startswith("@iconify")
    }
    for style in STYLES:
        folder = folders[style.package]
        found = (
            _webp(folder, style, known)
            if style.name == "3d"
            else _icons(folder, style, code[style.name], known)
        )
        yield from found


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
        raise RuntimeError(
            f"{file.name} of a package cannot be read ({error}); remove the package to fetch it "
            "again"
        ) from error


def _plain(code: str) -> str:
    """Return a code point sequence in lower case, without leading zeros and variation selectors."""
    return "-".join(
        part.lstrip("0") for part in code.lower().split("-") if part not in ("fe0f", "fe0e")
    )


def _known(entries: Sequence[JSONObject]) -> dict[str, EmojiNames]:
    """Return the names by code point sequence."""
    return {
        _plain(e["hexcode"]): EmojiNames(
            e["label"].replace("’", "'"), tuple(str(t) for t in e.get("tags", ()))
        )
        for e in entries
    }


def _codes(
    folder: Path, folders: Mapping[str, Path], known: Mapping[str, EmojiNames]
) -> dict[str, str]:
    """Return the code point sequence of each icon's name.

    It is found in the set's own table, in that of its sister set, or by the name itself.
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
    named = {_letters(names.concept): code for code, names in known.items()}
    named |= {
        _letters(n): code
        for code in known
        if (n := unicodedata.name(chr(int(code, 16)), "") if "-" not in code else "")
    }
    return named | {name: _plain(code) for code, name in table.items()}


def _letters(name: str) -> str:
    """Return a name's letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _icons(
    folder: Path, style: Style, codes: Mapping[str, str], known: Mapping[str, EmojiNames]
) -> Iterator[Drawing]:
    """Yield the icons of a set; icons that are no emoji have their own names as concepts."""
    icons, done = _json(folder / "icons.json"), set()
    for name, icon in icons["icons"].items():
        code = codes.get(name, "" if style.name == "icon" else codes.get(_letters(name), ""))
        own = EmojiNames(name.replace("-", " "), ()) if style.name == "icon" else None
        names = known.get(code) or own
        if names is None or names.concept in done:
            continue
        done.add(names.concept)
        yield Drawing(**names._asdict(), style=style.name, svg=_svg(icon, icons))


def _svg(icon: JSONObject, icons: JSONObject) -> str:
    left, top, width, height = (
        icon.get(k, icons.get(k, default))
        for k, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def _webp(folder: Path, style: Style, known: Mapping[str, EmojiNames]) -> Iterator[Drawing]:
    found: set[str] = set()
    for file in sorted((folder / "assets").glob("*.webp")):
        names = known.get(_plain(file.stem))
        # Some come twice, with a variation selector in the name and without.
        if names and names.concept not in found:
            found.add(names.concept)
            yield Drawing(**names._asdict(), style=style.name, file=file)
