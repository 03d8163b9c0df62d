"""Emoji from small packages of the true layout, made here."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile

import pytest
from PIL import Image

from guidestar.data import emoji, emoji_packages
from guidestar.data.emoji import SPLITS, build_emoji
from guidestar.data.emoji_packages import STYLES, VERSIONS, Drawing

pytest.importorskip("resvg_py")

APPLE, RED = "1F34E", "1f34e"
SVG = '<circle cx="8" cy="8" r="8" fill="#{}"/>'


def archive(folder, package, files):
    path = folder / f"{package.removeprefix('@').replace('/', '-')}-{VERSIONS[package]}.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def packages(tmp_path):
    folder = tmp_path / "packages"
    folder.mkdir()
    names = [
        {"label": "red apple", "hexcode": APPLE, "tags": ["apple", "fruit", "ripe"]},
        {"label": "thumbs up", "hexcode": "1F44D-FE0F", "tags": ["+1", "good"]},
        {"label": "beer mug", "hexcode": "1F37A", "tags": ["bar"]},
    ]
    archive(folder, emoji.EMOJIBASE, {"en/data.json": json.dumps(names).encode()})
    for style in STYLES:
        if style.name == "3d":
            picture = io.BytesIO()
            Image.new("RGBA", (32, 32), (0, 0, 255, 128)).save(picture, "WEBP", lossless=True)
            archive(
                folder,
                style.package,
                {
                    f"assets/{RED}.webp": picture.getvalue(),
                    "assets/1f44d-1f3fb.webp": picture.getvalue(),
                },
            )
            continue
        prefix = style.package.split("/")[1]
        icons = (
            {"red-apple": "ff0000", "thumbs-up": "00ff00", "thumbs-up-light-skin-tone": "0000ff"}
            if style.name not in ("icon", "firefox")
            else {"beermug": "ffff00", "whatever": "111111"}
        )
        icons = {"combo-chart": "0000ff"} if style.name == "icon" else icons
        body = {
            "prefix": prefix,
            "width": 16,
            "height": 16,
            "icons": {n: {"body": SVG.format(c)} for n, c in icons.items()},
        }
        files = {
            "icons.json": json.dumps(body).encode(),
            "info.json": json.dumps({"prefix": prefix}).encode(),
        }
        if style.name in ("noto", "flat"):
            files["chars.json"] = json.dumps(
                {RED: "red-apple", "1f44d": "thumbs-up", "1f44d-1f3fb": "thumbs-up-light-skin-tone"}
            ).encode()
        archive(folder, style.package, files)
    return folder


def rows_of(out):
    return [
        json.loads(line) | {"part": part}
        for part in SPLITS
        for line in (out / part / "metadata.jsonl").read_text().splitlines()
    ]


def test_pictures_with_captions(packages, tmp_path):
    counts = build_emoji(tmp_path / "emoji", packages=packages, size=24)
    rows = rows_of(tmp_path / "emoji")
    assert sum(counts.values()) == len(rows) == 11
    found = {(r["concept"], r["style"]) for r in rows}
    four = {
        (c, s) for c in ("red apple", "thumbs up") for s in ("noto", "blob", "gradient", "flat")
    }
    assert found == four | {
        ("red apple", "3d"),
        ("beer mug", "firefox"),
        ("combo chart", "icon"),
    }, "no skin tones, nothing nameless"
    apple = next(r for r in rows if (r["concept"], r["style"]) == ("red apple", "flat"))
    assert apple["text"][:3] == ["red apple, flat style", "a red apple, flat style", "red apple"]
    assert (
        apple["text"][3].startswith("red apple, ")
        and apple["text"][3].endswith(", flat style")
        and "apple, apple" not in apple["text"][3]
    )
    with Image.open(tmp_path / "emoji" / apple["part"] / apple["file_name"]) as picture:
        assert picture.size == (24, 24) and picture.mode == "RGB"
        assert picture.getpixel((12, 12)) == (255, 0, 0) and picture.getpixel((0, 0)) == (
            255,
            255,
            255,
        ), "on white"
    solid = next(r for r in rows if r["style"] == "3d")
    with Image.open(tmp_path / "emoji" / solid["part"] / solid["file_name"]) as picture:
        assert all(
            abs(a - b) <= 1
            for a, b in zip(picture.getpixel((12, 12)), (127, 127, 255), strict=True)
        ), "half see-through on white"
    licences = (tmp_path / "emoji" / "LICENCES.md").read_text()
    assert all(s.licence in licences and s.package in licences for s in STYLES)


def test_the_split_is_a_fixed_function_of_concept_and_style():
    def share(text):
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48

    names = [f"thing {i}" for i in range(4000)]
    parts = [Drawing(concept=n, tags=(), style="flat").split for n in names]
    expected = [
        "unseen-concepts"
        if share(n) < 0.05
        else "unseen-pairs"
        if share(f"{n}/flat") < 0.05
        else "train"
        for n in names
    ]
    assert parts == expected
    assert (
        0.03 < parts.count("unseen-concepts") / 4000 < 0.07
        and 0.03 < parts.count("unseen-pairs") / 4000 < 0.07
    )
    unseen = [n for n, p in zip(names, parts, strict=True) if p == "unseen-concepts"]
    assert all(
        Drawing(concept=n, tags=(), style=s.name).split == "unseen-concepts"
        for n in unseen
        for s in STYLES
    ), "in any style"


def test_what_cannot_be_is_one_line(packages, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not empty"):
        build_emoji(tmp_path / "full", packages=packages)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a").mkdir()  # an empty folder is none too many
    with pytest.raises(RuntimeError, match="npm, which fetches the pictures, is missing"):
        build_emoji(tmp_path / "a", packages=tmp_path / "none")
    next(packages.glob("*noto-1*")).write_bytes(b"not an archive")
    with pytest.raises(RuntimeError, match="not readable as a package"):
        build_emoji(tmp_path / "b", packages=packages)
    assert not (tmp_path / "b" / "train").exists()


def test_an_icon_has_the_box_of_its_set_unless_it_has_its_own():
    body = {"body": "<path/>"}
    svg = emoji_packages._svg
    box = lambda icon, icons: re.search(r'viewBox="(.*?)"', svg(icon, icons)).group(1)
    assert box(body, {}) == "0 0 16 16"
    assert box(body, {"width": 24, "height": 32}) == "0 0 24 32"
    assert box({**body, "left": -1, "top": 2, "width": 8}, {"left": 5, "height": 4}) == "-1 2 8 4"
    assert emoji_packages._svg(body, {}).endswith(">" + "<path/>" + "</svg>")


def test_each_emoji_of_a_set_is_drawn_once(tmp_path):
    apple, mug = (emoji_packages.EmojiNames(n, (n[0],)) for n in ("apple", "mug"))
    known = {"1f34e": apple, "1f37a": mug}
    (tmp_path / "assets").mkdir()
    for name in ("1f34e", "1f34e-fe0f", "1f37a", "1f000"):
        (tmp_path / "assets" / f"{name}.webp").touch()
    style = next(s for s in STYLES if s.name == "3d")
    found = list(emoji_packages._webp(tmp_path, style, known))
    assert [(d.concept, d.tags, d.style) for d in found] == [
        ("apple", ("a",), "3d"),
        ("mug", ("m",), "3d"),
    ]
    assert [d.file.name for d in found] == ["1f34e-fe0f.webp", "1f37a.webp"]
    icons = {"icons": {n: {"body": n} for n in ("red-apple", "again", "Beer-Mug", "odd-one")}}
    (tmp_path / "icons.json").write_text(json.dumps(icons))
    drawn = lambda name, codes: [
        (d.concept, d.svg[d.svg.index(">") + 1 : -6])
        for d in emoji_packages._icons(
            tmp_path, next(s for s in STYLES if s.name == name), codes, known
        )
    ]
    codes = {"red-apple": "1f34e", "again": "1f34e", "beermug": "1f37a", "odd-one": "1f000"}
    assert drawn("noto", codes) == [("apple", "red-apple"), ("mug", "Beer-Mug")]
    # Icons that are no emoji are called what they are; their letters alone say nothing.
    assert drawn("icon", codes) == [
        ("apple", "red-apple"),
        ("Beer Mug", "Beer-Mug"),
        ("odd one", "odd-one"),
    ]


def test_what_is_written_of_drawings(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "_draw", lambda drawing, file, size: file.write_text(str(size)))
    drawings = [
        Drawing(concept=concept, tags=("hot", "drink"), style="fluent-flat", svg="<svg/>")
        for concept in ("café", "tea", "???")
    ]
    heard = []
    counts = emoji._write(drawings, tmp_path, 24, lambda done, of: heard.append((done, of)))
    assert sum(counts.values()) == 3 and heard == [(1, 3), (2, 3), (3, 3)]
    found = {}
    for part, count in counts.items():
        lines = (tmp_path / part / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == count
        for line in lines:
            row = json.loads(line)
            assert (tmp_path / part / row["file_name"]).read_text() == "24"
            found[row["concept"]] = row, line
    for drawing, words in zip(drawings, ("caf", "tea", "sign"), strict=True):
        row, line = found[drawing.concept]
        digest = hashlib.blake2b(drawing.concept.encode(), digest_size=3).hexdigest()
        assert row == {
            "file_name": f"fluent-flat/{words}-{digest}.png",
            "text": drawing.captions,
            "concept": drawing.concept,
            "style": "fluent-flat",
        }
        assert drawing.concept in line  # as it is written, and no escapes
