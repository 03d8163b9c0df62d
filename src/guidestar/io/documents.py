"""Read text, JSON and TOML files, and check the values in them.

Every fault is a `ValueError` of one line that begins with the file's name: a folder in its place,
no permission, another encoding, broken syntax, a repeated key, nesting without end, a value of
another kind than expected. Exceptions of other libraries are turned into it.
"""

from __future__ import annotations

import json
import reprlib
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

JSONObject = dict[str, Any]
"""A JSON object or TOML table, whose values are checked where they are used (`check_values`)."""

MOST_BYTES = 64 * 2**20
"""Most bytes of a text file; tokenizers of large vocabularies take 35 MB."""
MOST_DEPTH = 64
"""Most levels of objects and lists within each other."""


def read_text(file: Path, *, most: int = MOST_BYTES) -> str:
    """Read a UTF-8 file, with or without a byte-order mark.

    Args:
        file: its path.
        most: bytes that it may have.

    Raises:
        ValueError: the file is missing, no regular file, unreadable, larger than ``most``, or of
            another encoding; the message names it.
    """
    try:
        about = file.stat()
        if stat.S_ISDIR(about.st_mode):
            raise ValueError(f"{file}: should be a file, not a folder; give a file in it")
        if not stat.S_ISREG(about.st_mode):
            raise ValueError(
                f"{file}: should be a file, not a pipe or a device; save it as a file first"
            )
        if about.st_size > most:
            raise ValueError(
                f"{file}: has {about.st_size:,} bytes; at most {most:,} are read, so make it "
                "smaller"
            )
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{file}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 (byte {error.start:,}); save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror or error})") from error


def read_json(file: Path) -> JSONObject:
    """Read a JSON object.

    Raises:
        ValueError: as `read_text`; or the file is no JSON, no object, repeats a key, is nested
            deeper than `MOST_DEPTH`, or holds half a character; the message names it.
    """
    text = read_text(file)
    try:
        content = json.loads(text, object_pairs_hook=_refuse_repeats)
        _check_tree(content)
    except RecursionError:
        raise ValueError(f"{file}: nested more than {MOST_DEPTH} deep") from None
    except ValueError as error:
        raise ValueError(f"{file}: not readable as JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: should hold a JSON object, not a {type(content).__name__}")
    return content


def read_toml(file: Path) -> JSONObject:
    """Read a TOML file.

    Raises:
        ValueError: as `read_text`; or the file is no TOML, or nested deeper than `MOST_DEPTH`; the
            message names it.
    """
    text = read_text(file)
    try:
        content = tomllib.loads(text)
        _check_tree(content)
    except RecursionError:
        raise ValueError(f"{file}: nested more than {MOST_DEPTH} deep") from None
    except ValueError as error:
        raise ValueError(f"{file}: not readable as TOML ({one_line(error)})") from error
    return content


def _refuse_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(k for i, (k, _) in enumerate(pairs) if k in dict(pairs[:i]))
        raise ValueError(f"the key {reprlib.repr(twice)} is repeated")
    return found


def _check_tree(content: object) -> None:
    """Refuse nesting that is too deep, and texts that cannot be written as UTF-8."""
    layer: list[object] = [content]
    for _ in range(MOST_DEPTH):
        for text in (t for t in layer if isinstance(t, str) and not t.isascii()):
            if any("\ud800" <= c <= "\udfff" for c in text):
                raise ValueError(f"the text {text[:40]!a} holds half a character")
        layer = [child for parent in layer for child in _children(parent)]
        if not layer:
            return
    raise ValueError(f"nested more than {MOST_DEPTH} deep")


def _children(parent: object) -> Iterator[object]:
    if isinstance(parent, dict):
        yield from parent
        yield from parent.values()
    elif isinstance(parent, list):
        yield from parent


def one_line(error: BaseException, most: int = 300) -> str:
    """Return an error's message as one line of at most ``most`` characters."""
    line = "".join(c if c.isprintable() else " " for c in str(error)[: 4 * most])
    line = " ".join(line.split()) or type(error).__name__
    return line if len(line) <= most else f"{line[: most - 1]}…"


@contextmanager
def as_value_error(what: str) -> Iterator[None]:
    """Turn every exception of the block into ``ValueError("what (why)")``, of one line.

    A panic of a library in Rust, which is no `Exception`, is turned too.
    """
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} ({one_line(error)})") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what} ({one_line(error)})") from error


@dataclass(frozen=True, kw_only=True)
class ValueKind:
    """A set of values that a key of a file may have.

    Args:
        words: their description in a message: "must be {words}".
        fits: returns whether a value is one of them.
    """

    words: str
    fits: Callable[[object], bool]


def whole(low: int, high: int) -> ValueKind:
    """Return the whole numbers from ``low`` to ``high``."""
    return ValueKind(
        words=f"a whole number from {low:,} to {high:,}",
        fits=lambda v: _is_whole(v) and low <= v <= high,
    )


def number(low: float = -1e38, high: float = 1e38, *, above: bool = False) -> ValueKind:
    """Return the finite numbers from ``low`` to ``high``; by default those of float32.

    Args:
        low: the least.
        high: the largest.
        above: ``low`` itself is not one of them.
    """
    words = (
        "a number"
        if (low, high) == (-1e38, 1e38)
        else (
            f"a number {'above' if above else 'from'} "
            f"{low:g}{f' to {high:g}' if high < 1e38 else ''}"
        )
    )
    return ValueKind(
        words=words, fits=lambda v: _is_number(v) and (low < v if above else low <= v) and v <= high
    )


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= 1e38  # false for NaN too


text = ValueKind(words="a text", fits=lambda v: isinstance(v, str))
flag = ValueKind(words="true or false", fits=lambda v: isinstance(v, bool))
json_object = ValueKind(words="an object", fits=lambda v: isinstance(v, dict))


def choice(*names: str) -> ValueKind:
    """Return the set of some texts."""
    return ValueKind(words=" or ".join(f'"{n}"' for n in names), fits=lambda v: v in names)


def many(kind: ValueKind, least: int = 0, most: int = 1_000_000) -> ValueKind:
    """Return the lists of ``least`` to ``most`` values of a kind."""
    count = f" {least:,} to {most:,}" if least or most < 1_000_000 else ""
    words = f"a list of{count} values, each {kind.words}"
    return ValueKind(
        words=words,
        fits=lambda v: (
            isinstance(v, list | tuple) and least <= len(v) <= most and all(map(kind.fits, v))
        ),
    )


def maybe(kind: ValueKind) -> ValueKind:
    """Return the values of a kind, and null."""
    return ValueKind(words=f"{kind.words}, or null", fits=lambda v: v is None or kind.fits(v))


def is_name(value: object) -> TypeGuard[str]:
    """Return whether a value is the name of an entry in a folder, and no path."""
    if not isinstance(value, str) or value in ("", ".", ".."):
        return False
    return value.isprintable() and not set('/\\:*?"<>|') & set(value) and len(value.encode()) <= 255


def check_values(
    where: object,
    content: Mapping[str, object],
    schema: Mapping[str, ValueKind],
    needed: Sequence[str] = (),
) -> None:
    """Check the values of a file; keys that the schema lacks may have any value.

    Args:
        where: the file, for the message.
        content: its values by key.
        schema: the kind of each key's values.
        needed: keys that must be there.

    Raises:
        ValueError: a value is missing or of another kind; the message names ``where`` and the key.
    """
    for key in needed:
        if key not in content:
            raise ValueError(f"{where}: {key} is missing; it must be {schema[key].words}")
    for key, kind in schema.items():
        if key in content and not kind.fits(content[key]):
            raise ValueError(f"{where}: {key} must be {kind.words}, not {shown(content[key])}")


def shown(value: object) -> str:
    """Return a value as a short text of one line, for a message."""
    try:
        return "".join(c if c.isprintable() else "?" for c in reprlib.repr(value))
    except Exception:
        return f"a {type(value).__name__}"


def one_word(name: str) -> str:
    """Return a name for a message, as `shown` does but without quotation marks."""
    return shown(name)[1:-1]
