"""Messages of readers that are cut to a length, and put in one line."""

from __future__ import annotations

import pyarrow.parquet
import pytest

from guidestar.data.layout import _parquet
from guidestar.data.shards import Shards


def long_text() -> str:
    return "\n".join(f"word{k:03d}" for k in range(100))  # of 7 signs each


def test_why_a_table_cannot_be_read(monkeypatch, tmp_path):
    def refuse(path):
        raise OSError(long_text())

    monkeypatch.setattr(pyarrow.parquet, "read_table", refuse)
    with pytest.raises(ValueError, match=r"not readable as parquet") as caught:
        _parquet(tmp_path / "t.parquet")
    whole = " ".join(long_text().split())
    assert str(caught.value).endswith(f"parquet ({whole[:200]}); write it again")


def test_why_shards_cannot_be_read():
    shards = object.__new__(Shards)
    shards.files = ["a/0.tar"]
    whole = " ".join(long_text().split())
    assert str(shards._damaged(OSError(long_text()))) == (
        f"a/0.tar: not readable as webdataset ({whole[:300]}); write them again"
    )
    shards.files = ["a/0.tar", "a/1.tar"]
    error = OSError("outer")
    error.__cause__ = ValueError("inner\n words")
    assert str(shards._damaged(error)) == (
        "a/0.tar …: not readable as webdataset (inner words); write them again"
    )
