"""Values of files and their messages, at the ends of every range, and text that is no document."""

import math
import os

import pytest

from guidestar.io import documents
from guidestar.io.documents import (
    MOST_DEPTH,
    as_value_error,
    check_values,
    choice,
    flag,
    is_name,
    json_object,
    many,
    maybe,
    number,
    one_line,
    one_word,
    read_json,
    read_text,
    read_toml,
    shown,
    text,
    whole,
)

KINDS = {
    "whole": (whole(2, 1500), "a whole number from 2 to 1,500", [2, 1500], [1, 1501, 2.0, True]),
    "low": (whole(0, 5), "a whole number from 0 to 5", [0, 5], [True, False, -1, "1", None]),
    "number": (number(), "a number", [-1e38, 1e38, 0, 2.5], [2e38, -2e38, True, "1", None]),
    "from": (number(0.5), "a number from 0.5", [0.5, 1e38], [0.4, math.inf, math.nan, 10**400]),
    "to": (number(-1, 3), "a number from -1 to 3", [-1, 3], [-1.5, 3.5]),
    "below": (number(high=2), "a number from -1e+38 to 2", [-1e38, 2], [2.5]),
    "above": (number(0, above=True), "a number above 0", [1e-9], [0, -1]),
    "both": (number(0, 2, above=True), "a number above 0 to 2", [1, 2], [0, 2.5]),
    "text": (text, "a text", ["", "a"], [1, None, ["a"]]),
    "flag": (flag, "true or false", [True, False], [0, 1, "true", None]),
    "object": (json_object, "an object", [{}, {"a": 1}], [[], None, "a"]),
    "choice": (choice("a", "b"), '"a" or "b"', ["a", "b"], ["c", "", None, ["a"]]),
    "list": (
        many(flag),
        "a list of values, each true or false",
        [[], (True,)],
        [True, [1], [True, 1]],
    ),
    "three": (
        many(text, 1, 3),
        "a list of 1 to 3 values, each a text",
        [["a"], ["a"] * 3],
        [[], ["a"] * 4, "abc", ["a", 1]],
    ),
    "most": (
        many(text, most=1500),
        "a list of 0 to 1,500 values, each a text",
        [[], ["a"] * 1500],
        [["a"] * 1501],
    ),
    "least": (many(text, 1), "a list of 1 to 1,000,000 values, each a text", [["a"]], [[]]),
    "maybe": (maybe(flag), "true or false, or null", [None, True], [0, "a"]),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_which_values_a_kind_has(name):
    kind, words, good, bad = KINDS[name]
    assert kind.words == words
    assert [v for v in good if not kind.fits(v)] == [] == [v for v in bad if kind.fits(v)]


def test_values_are_checked_by_their_keys():
    schema = {"a": flag, "b": maybe(text)}
    check_values("f.json", {"b": None, "c": object()}, schema)
    check_values("f.json", {"a": True}, schema, ["a"])
    for content, needed, words in (
        ({"b": None}, ["b", "a"], "a is missing; it must be true or false"),
        ({"a": 1}, (), "a must be true or false, not 1"),
        ({"a": True, "b": [2]}, ["a"], r"b must be a text, or null, not \[2\]"),
    ):
        with pytest.raises(ValueError, match=f"^f.json: {words}$"):
            check_values("f.json", content, schema, needed)


@pytest.mark.parametrize("name", ["a", "a b", "é" * 127 + "a", "...", "-a"])
def test_names_of_entries(name):
    assert is_name(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "a:b", "a\nb", "é" * 128, None, 3, *'*?"<>|']
)
def test_what_is_no_name_of_an_entry(name):
    assert not is_name(name)


def test_values_in_messages():
    assert shown("a\nb") == r"'a\nb'" and shown(5) == "5" and one_word("a b") == "a b"
    assert len(shown("x" * 999)) < 40 and one_word("x" * 999).startswith("xxx")

    class Odd:
        def __repr__(self):
            raise TypeError

    class Tab:
        def __repr__(self):
            return "a\tb"

    assert shown(Tab()) == "a?b" and "Odd" in shown(Odd())


def test_messages_of_one_line():
    assert one_line(ValueError("a\n\tb \x00 c")) == "a b c"
    assert one_line(ValueError("")) == one_line(ValueError("\n")) == "ValueError"
    assert one_line(ValueError("x" * 300)) == "x" * 300
    assert one_line(ValueError("x" * 301)) == "x" * 299 + "…"
    assert (
        one_line(ValueError("abcdef"), 5) == "abcd…" and one_line(ValueError("abcde"), 5) == "abcde"
    )
    # No more than four times as many characters are looked at.
    assert one_line(ValueError(" " * 80 + "a"), 20) == "ValueError"
    assert one_line(ValueError(" " * 79 + "a"), 20) == "a"


def test_errors_of_other_libraries_are_named():
    class PanicException(BaseException):
        pass

    for error in (KeyError("a"), PanicException("a")):
        with pytest.raises(ValueError, match=r"^it fails \('?a'?\)$"), as_value_error("it fails"):
            raise error
    with pytest.raises(KeyboardInterrupt), as_value_error("it fails"):
        raise KeyboardInterrupt
    with as_value_error("it fails"):
        pass


def nested(depth: int) -> str:
    """Lists within each other, in an object: so many levels with the number in the last."""
    return '{"a": ' + "[" * (depth - 2) + "1" + "]" * (depth - 2) + "}"


def test_documents_are_nested_up_to_a_depth(tmp_path):
    """The object, what is in it, …: the number is at the depth 64."""
    file = tmp_path / "f.json"
    assert MOST_DEPTH == 64
    file.write_text(nested(64))
    assert read_json(file)["a"][0]
    toml = tmp_path / "f.toml"
    toml.write_text(f"a = {nested(64)[6:-1]}")
    assert read_toml(toml)["a"][0]
    file.write_text(nested(65))
    toml.write_text(f"a = {nested(65)[6:-1]}")
    for read, at, kind in ((read_json, file, "JSON"), (read_toml, toml, "TOML")):
        with pytest.raises(
            ValueError, match=rf"^{at}: not readable as {kind} \(nested more than 64"
        ):
            read(at)
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"^{file}: nested more than 64 deep$"):
        read_json(file)


def test_what_is_no_json_object(tmp_path):
    file = tmp_path / "f.json"
    for content, words in (
        ("[1]", "should hold a JSON object, not a list"),
        ('{"a": 1, "b": 2, "a": 3}', r"not readable as JSON \(the key 'a' is repeated\)"),
        ('{"b": {"a": 1, "c": 1, "c": 1}}', r"not readable as JSON \(the key 'c' is repeated\)"),
        ('{"a": "\\\\ud800"}', r"not readable as JSON \(the text .* holds half a character\)"),
        ('{"\\\\udfff": 1}', r"not readable as JSON \(the text .* holds half a character\)"),
        ("{", r"not readable as JSON \(Expecting"),
    ):
        file.write_text(content.replace("\\\\", "\\"))
        with pytest.raises(ValueError, match=f"^{file}: {words}"):
            read_json(file)
    file.write_text('{"a": "é 日本 \ue000", "é": 1}', encoding="utf-8")
    assert read_json(file) == {"a": "é 日本 \ue000", "é": 1}


def test_texts_are_read_up_to_a_size(tmp_path, monkeypatch):
    file = tmp_path / "f.txt"
    file.write_bytes(b"\xef\xbb\xbfab")
    assert read_text(file) == "ab" and read_text(file, most=5) == "ab"
    with pytest.raises(ValueError, match=f"^{file}: has 5 bytes; at most 4 are read"):
        read_text(file, most=4)
    assert documents.MOST_BYTES == 64 * 1024 * 1024
    file.write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match=rf"^{file}: not UTF-8 \(byte 3\)"):
        read_text(file)
    with pytest.raises(ValueError, match=f"^{tmp_path}: should be a file, not a folder"):
        read_text(tmp_path)
    with pytest.raises(ValueError, match=f"^{tmp_path}/none: there is no such file$"):
        read_text(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a pipe or a device"):
        read_text(tmp_path / "pipe")
