"""The one door for files that say something: text, JSON and TOML, and which values they may hold.

Whatever is wrong with a file is said in one line that begins with its name, as a `ValueError`: a
folder in its place, one that may not be read, another encoding, broken syntax, a key that stands
twice, nesting without end, a value of another kind than is wanted. No other library's exception
passes.
"""

from __future__ import annotations

import json
import math
import reprlib
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_BYTES = 64 * 2**20
"""The largest file of text that is read; tokenizers of large vocabularies take 35 MB."""
MOST_DEPTH = 64
"""How deep objects and lists may lie in each other."""


def read_text(file: Path, *, most: int = MOST_BYTES) -> str:
    """Read a file of UTF-8, with a byte-order mark or without.

    Raises:
        ValueError: it is missing, no regular file, unreadable, above ``most`` bytes, or of
            another encoding; it is named.
    """
    try:
        about = file.stat()
        if stat.S_ISDIR(about.st_mode):
            raise ValueError(f"{file}: a file is expected here, and this is a folder")
        if not stat.S_ISREG(about.st_mode):
            raise ValueError(f"{file}: a file is expected here, not a pipe or a device")
        if about.st_size > most:
            raise ValueError(f"{file}: has {about.st_size:,} bytes; at most {most:,} are read")
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ValueError(f"{file}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 (byte {error.start:,}); save it as UTF-8") from error
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror or error})") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: as `read_text`; it is no JSON, no object, a key stands twice, it is nested
            more than `MOST_DEPTH` deep, or a text in it is half a character; it is named.
    """
    text = read_text(file)
    try:
        content = json.loads(text, object_pairs_hook=_once)
        _check_tree(content)
    except RecursionError:
        raise ValueError(f"{file}: nested more than {MOST_DEPTH} deep") from None
    except ValueError as error:
        raise ValueError(f"{file}: not readable as JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: should hold a JSON object, not a {type(content).__name__}")
    return content


def read_toml(file: Path) -> dict[str, Any]:
    """Read TOML.

    Raises:
        ValueError: as `read_text`; it is no TOML, or nested more than `MOST_DEPTH` deep; it is
            named.
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


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(k for i, (k, _) in enumerate(pairs) if k in dict(pairs[:i]))
        raise ValueError(f"the key {reprlib.repr(twice)} stands twice")
    return found


def _check_tree(content: Any) -> None:
    """Refuse what nests too deep, and texts that cannot be written as UTF-8 again."""
    layer = [content]
    for _ in range(MOST_DEPTH):
        for text in (t for t in layer if isinstance(t, str) and not t.isascii()):
            if any("\ud800" <= c <= "\udfff" for c in text):
                raise ValueError(f"the text {text[:40]!a} holds half a character")
        layer = [child for parent in layer for child in _children(parent)]
        if not layer:
            return
    raise ValueError(f"nested more than {MOST_DEPTH} deep")


def _children(parent: Any) -> Iterator[Any]:
    if isinstance(parent, dict):
        yield from parent
        yield from parent.values()
    elif isinstance(parent, list):
        yield from parent


def one_line(error: BaseException, most: int = 300) -> str:
    """Say what went wrong in one line of at most so many characters."""
    said = "".join(c if c.isprintable() else " " for c in str(error)[: 4 * most])
    said = " ".join(said.split()) or type(error).__name__
    return said if len(said) <= most else f"{said[: most - 1]}…"


@contextmanager
def as_value_error(what: str) -> Iterator[None]:
    """Turn whatever another library raises into ``ValueError("what (why)")``, one line.

    Libraries written in Rust end in a panic that is no `Exception`; it is turned too.
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
    """Which values are wanted.

    Args:
        words: how they are called in a message: "must be {words}".
        fits: returns whether a value is one of them.
    """

    words: str
    fits: Callable[[Any], bool]


def whole(low: int, high: int) -> ValueKind:
    """Whole numbers from ``low`` to ``high``."""
    return ValueKind(
        words=f"a whole number from {low:,} to {high:,}",
        fits=lambda v: _is_whole(v) and low <= v <= high,
    )


def number(low: float = -1e38, high: float = 1e38, *, above: bool = False) -> ValueKind:
    """Finite numbers from ``low`` (or ``above`` it) to ``high``; by default what float32 holds."""
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


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= 1e38 and math.isfinite(value)


text = ValueKind(words="a text", fits=lambda v: isinstance(v, str))
flag = ValueKind(words="true or false", fits=lambda v: isinstance(v, bool))
json_object = ValueKind(words="an object", fits=lambda v: isinstance(v, dict))


def choice(*names: str) -> ValueKind:
    """One of some texts."""
    return ValueKind(
        words=" or ".join(f'"{n}"' for n in names), fits=lambda v: isinstance(v, str) and v in names
    )


def many(kind: ValueKind, least: int = 0, most: int = 1_000_000) -> ValueKind:
    """Lists of ``least`` to ``most`` such values."""
    count = f" {least:,} to {most:,}" if least or most < 1_000_000 else ""
    words = f"a list of{count} values, each {kind.words}"
    return ValueKind(
        words=words,
        fits=lambda v: (
            isinstance(v, list | tuple) and least <= len(v) <= most and all(map(kind.fits, v))
        ),
    )


def maybe(kind: ValueKind) -> ValueKind:
    """Such values, or null."""
    return ValueKind(words=f"{kind.words}, or null", fits=lambda v: v is None or kind.fits(v))


def is_name(value: Any) -> bool:
    """Return whether a text names something in a folder: no path, and none out of it."""
    if not isinstance(value, str) or value in ("", ".", ".."):
        return False
    return value.isprintable() and not set('/\\:*?"<>|') & set(value) and len(value.encode()) <= 255


def check_values(
    where: object,
    content: Mapping[str, Any],
    schema: Mapping[str, ValueKind],
    needed: Sequence[str] = (),
) -> None:
    """Hold the values of a file against what they may be; keys without a kind pass.

    Raises:
        ValueError: one is missing or of another kind; ``where`` and the key are named.
    """
    for key in needed:
        if key not in content:
            raise ValueError(f"{where}: {key} is missing; it must be {schema[key].words}")
    for key, kind in schema.items():
        if key in content and not kind.fits(content[key]):
            raise ValueError(f"{where}: {key} must be {kind.words}, not {shown(content[key])}")


def shown(value: Any) -> str:
    """Show a value in a message: on one line, and short."""
    try:
        return "".join(c if c.isprintable() else "?" for c in reprlib.repr(value))
    except Exception:
        return f"a {type(value).__name__}"


def one_word(name: str) -> str:
    """Show a name without marks, as `shown` otherwise."""
    return shown(name)[1:-1]
