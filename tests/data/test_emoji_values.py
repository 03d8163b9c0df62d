"""What emoji are called: captions of their words, codes of their files, sets and their sisters."""

from __future__ import annotations

import hashlib
import json

import pytest

from guidestar.data import emoji_packages as packages
from guidestar.data.emoji_packages import Drawing, EmojiNames


def share(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48


@pytest.mark.parametrize(
    ("concept", "plain"),
    [
        ("mug", ["mug, flat style", "a mug, flat style", "mug"]),
        ("apple", ["apple, flat style", "an apple, flat style", "apple"]),
        ("hourglass", ["hourglass, flat style", "hourglass"]),
        ("Libra", ["Libra, flat style", "Libra"]),
    ],
)
def test_captions_begin_with_the_plainest(concept, plain):
    assert Drawing(concept=concept, tags=(), style="flat").captions == plain
    tagged = Drawing(concept=concept, tags=("x", "y", "z", "w"), style="flat").captions
    chosen = sorted("xyzw", key=lambda t: share(f"{concept}/flat/{t}"))[:2]
    assert tagged == [*plain, f"{concept}, {', '.join(chosen)}, flat style"]


def test_words_of_the_concept_are_no_tags():
    one = Drawing(concept="red apple", tags=("apple", "fruit", "red"), style="noto")
    assert one.captions[3] == "red apple, fruit, noto style" and len(one.captions) == 4
    none = Drawing(concept="red apple", tags=("apple", "red"), style="noto")
    assert len(none.captions) == 3


def test_codes_are_written_in_one_way():
    for code, plain in {
        "1F44D-FE0F": "1f44d", "00A9-fe0f": "a9", "0031-FE0E-20E3": "31-20e3", "1f1e6": "1f1e6",
        "1F468-200D-2764": "1f468-200d-2764",
    }.items():  # fmt: skip
        assert packages._plain(code) == plain
    entries = [
        {"label": "man’s shoe", "hexcode": "1F45E-FE0F", "tags": ["shoe", 1]},
        {"label": "x", "hexcode": "0041"},
    ]
    assert packages._known(entries) == {
        "1f45e": EmojiNames("man's shoe", ("shoe", "1")), "41": EmojiNames("x", ())
    }  # fmt: skip
    assert packages._letters("Man's Shoe-2!") == "mansshoe2"


def test_codes_of_icons_by_the_table_of_the_set_or_its_sister(tmp_path):
    def made(name, prefix, table=None):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "info.json").write_text(json.dumps({"prefix": prefix}))
        if table is not None:
            (folder / "chars.json").write_text(json.dumps(table))
        return folder

    known = {"1f34e": EmojiNames("red apple", ()), "1f1e6-1f1e7": EmojiNames("a flag", ())}
    names = {"redapple": "1f34e", "aflag": "1f1e6-1f1e7"}  # and Unicode's own name, the same here
    sisters = {
        "@iconify-json/noto": made("n", "noto", {"1F34E-FE0F": "apple"}),
        "@iconify-json/fluent-emoji-flat": made("f", "fluent-emoji-flat", {"1f34e": "obst"}),
    }
    codes = lambda folder: packages._codes(folder, sisters, known)
    assert codes(sisters["@iconify-json/noto"]) == {**names, "apple": "1f34e"}
    assert codes(made("v1", "noto-v1")) == {**names, "apple": "1f34e"}
    assert codes(made("e", "fluent-emoji", {"1f1e6": "own"})) == {**names, "obst": "1f34e"}
    assert codes(made("p", "fxemoji")) == names
    other = {"1f37a": EmojiNames("pint", ())}
    assert packages._codes(tmp_path / "p", sisters, other) == {
        "pint": "1f37a", "beermug": "1f37a"
    }  # fmt: skip
    own = made("own", "fluent-emoji-flat", {"1f37a": "krug"})
    assert packages._codes(own, {}, other)["krug"] == "1f37a"
