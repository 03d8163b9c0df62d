"""API keys: read from a file, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

LEAST = 16
"""Characters of a key, at least."""


class Keys:
    """The keys that a server accepts; none: everyone is let in.

    Only their digests are kept.

    Args:
        keys: as clients send them.
    """

    def __init__(self, keys: list[str] | None = None) -> None:
        self._digests = [_digest(key) for key in keys or ()]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def owner(self, key: str) -> str | None:
        """Return a name for the owner of a key; None where it is not accepted.

        The time it takes depends neither on the key nor on which one it equals.
        """
        given = _digest(key)
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(given, digest)
        return f"key-{given.hex()[:12]}" if found else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(file: Path) -> Keys:
    """Read keys, one a line; empty lines and those that begin with # are left out.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no key, or one is too short.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{file} cannot be read: keys are lines of text") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ValueError(f"{file} holds no key; write one a line, e.g. from: openssl rand -hex 24")
    if short := [n for n, key in enumerate(lines, 1) if key in keys and len(key) < LEAST]:
        raise ValueError(
            f"{file}:{short[0]}: a key has at least {LEAST} characters, e.g. from: openssl rand "
            "-hex 24"
        )
    return Keys(keys)
