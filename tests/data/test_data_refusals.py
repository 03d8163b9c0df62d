"""What data are refused, and by which words."""

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from guidestar.data import emoji_packages, folders, layout, shards
from guidestar.data.latents import check_spread
from guidestar.data.pictures import PictureFormat, decode
from guidestar.io.files import Damaged


def test_latents_without_spread():
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    check_spread(x)
    flat = x.clone()
    flat[:, 1] = 5.0
    with pytest.raises(ValueError, match=r"no spread in channel 1 \(of 3\), so nothing is in it"):
        check_spread(flat)
    # A millionth of its size is no spread, a thousandth is; of zeros there is none.
    for size, refused in ((1e-6, True), (1e-3, False)):
        flat[:, 1] = 5.0 + 5.0 * size * x[:, 1]
        if refused:
            with pytest.raises(ValueError, match="no spread in channel 1"):
                check_spread(flat)
        else:
            check_spread(flat)
    flat[:, 1] = 0.0
    with pytest.raises(ValueError, match="no spread in channel 1"):
        check_spread(flat)
    for odd in (torch.nan, torch.inf):
        flat[0, 2, 0, 0] = odd
        with pytest.raises(ValueError, match="latents are not finite; train it with a lower rate"):
            check_spread(flat)


@pytest.mark.parametrize(("size", "fits"), [((8, 8), True), ((7, 8), False), ((9, 7), False)])
def test_pictures_that_are_not_to_be_enlarged(size, fits):
    form = PictureFormat(size=8, channels=1, enlarge=False)
    picture = Image.new("L", size)
    if fits:
        assert decode(picture, form, 1).shape == (1, 8, 8)
        return
    line = f"it has {size[0]} × {size[1]} pixels, fewer than data.size, 8, and an autoencoder"
    with pytest.raises(ValueError, match=line):
        decode(picture, form, 1)
    assert decode(picture, PictureFormat(size=8, channels=1), 1).shape == (1, 8, 8)


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"cannot be read \(Permission denied\); check its permi"):
        list(layout.find_files(tmp_path))


def test_tables_that_are_none(tmp_path):
    file = tmp_path / "metadata.jsonl"
    for text, line in (
        ('{"file_name": "a"}\n[1]\n', r"line 2 must be an object, \{\"file_name\": …, …\}"),
        ('\n"a"\n', "line 2 must be an object"), ("{\n", "line 1 is not JSON"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ValueError, match=line):
            list(layout._rows(file))
    table = tmp_path / "metadata.csv"
    table.write_text("file_name,text\na.png," + "x" * 200_000 + "\n")
    with pytest.raises(ValueError, match=r"cannot be read as a table \(.*\); save it as CSV again"):
        list(layout._rows(table))


def test_parquet_that_is_none(tmp_path, monkeypatch):
    import datasets

    def fail(*given, **more):
        raise RuntimeError("outer") from ValueError("the\nreal   one")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(
        Damaged, match=r"a.parquet: not readable as parquet \(the real one\); write"
    ):
        folders._load([tmp_path / "a.parquet", tmp_path / "b.parquet"])


# Shards


SAMPLE = {"__url__": "u", "__key__": "k"}


def test_captions_and_classes_of_shards():
    assert shards._caption({"txt": b"\xef\xbb\xbf a b "}) == "a b"
    assert shards._caption({"txt": "a"}) == "a"
    for bad in (b"\xff", None, 3):
        with pytest.raises(ValueError, match=r"u: 'k' has no caption in UTF-8 \(.txt\); correct"):
            shards._caption({**SAMPLE, "txt": bad})
    for good in (3, 3.0, "3", b"3", " 3 "):
        assert shards._label({"cls": good}) == 3
    for bad in ("x", None, b"", [1]):
        with pytest.raises(ValueError, match=r"u: 'k' has the class .* \(.cls\), which is no numb"):
            shards._label({**SAMPLE, "cls": bad})
    assert shards._place({"__key__": "k"}) == "a shard: 'k'"


def stream(samples) -> Any:
    made: Any = object.__new__(shards.Shards)
    made.files, made.max_bad, made._bad, made.say = ["a.tar", "b.tar"], 1, {}, None
    made.format, made.channels, made._picture = PictureFormat(size=4), 3, "png"
    made._in_order = lambda: iter(samples)
    return made


def test_shards_of_which_nothing_can_be_read():
    bad = {**SAMPLE, "png": {"bytes": b"x", "path": None}}
    made = stream([bad, bad])
    with pytest.raises(
        Damaged, match=r"a.tar: no image of these shards can be read; write them ag"
    ):
        made._stand_in
    with pytest.raises(Damaged, match=r"u: cannot read the image of 'k' \(.*not a picture"):
        made._decoded(bad)
    with pytest.raises(Damaged, match=r"u: cannot read the image of 'k'"):
        made._decoded(SAMPLE)
    said: list[str] = []
    made.say = said.append
    first, again = Damaged("one"), Damaged("two")
    made._skip("u/k", first)
    made._skip("u/k", again)  # of a later pass
    assert said == ["skipped an image: one"]
    with pytest.raises(
        Damaged, match=r"two; replace or remove it, or raise data.max_bad \(now 1\)"
    ):
        made._skip("u/l", again)
    made._stream = iter(())
    with pytest.raises(
        Damaged, match=r"a.tar …: not readable as webdataset \(.*\); write them aga"
    ):
        made._next()
    made.files = ["a.tar"]
    assert str(made._damaged(ValueError("x"))).startswith("a.tar: not readable as webdataset (x)")


# Packages


def test_packages_that_cannot_be_fetched(tmp_path, monkeypatch):
    def run(command, **more):
        assert command[:3] == ["npm", "pack", "--silent"] and more["cwd"] == tmp_path
        return SimpleNamespace(returncode=1, stderr="no\n network")

    monkeypatch.setattr(emoji_packages.subprocess, "run", run)
    with pytest.raises(
        RuntimeError, match=r"npm could not fetch .*@.*: no network; check the netw"
    ):
        emoji_packages.fetch_packages(tmp_path)
    for write in (None, "{"):
        file = tmp_path / "p.json"
        if write:
            file.write_text(write)
        with pytest.raises(
            RuntimeError, match=r"p.json of a package cannot be read \(.*\); remove"
        ):
            emoji_packages._json(file)
