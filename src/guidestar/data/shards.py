"""Streams of pictures from webdataset shards, for data larger than a disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.rng import Draw
from ..io.documents import read_text
from ..io.files import Damaged
from .folders import escape_pattern, find_data_files
from .pictures import PictureFormat, Say, decode, open_encoded, prepare
from .source import Column, Source, Targets

PICTURE_KEYS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "pgm", "ppm")


class Shards(Source):
    """Read webdataset shards (``000.tar``: ``key.jpg`` with ``key.cls``, ``key.txt``) one sample
    after the other.

    The stream has no end: each pass is mixed anew, in a buffer. Which sample is at which position
    depends on the shards and the settings alone, so a resumed training goes on with the same ones
    (by walking there), and several processes read the same stream, each taking its own positions.

    Args:
        path: a .tar file, or a folder of them; or a pattern of addresses, read over the network.
        look: how pictures are made alike; ``channels`` by default 3.
        classes: names of the classes (.cls); by default the lines of ``classes.txt`` beside the
            shards.
        buffer: how many samples are mixed.
        seed: of the mixing.
        max_bad: how many unreadable pictures to skip before giving up (each process counts those it
            meets). The first readable sample is seen in their place, so that no later one moves.
        say: told of each picture that was skipped.

    Raises:
        FileNotFoundError: there are no shards.
        ValueError: the first sample holds no picture, or its class no name.
    """

    size = None

    def __init__(
        self,
        path: Path | str,
        look: PictureFormat,
        *,
        classes: Sequence[str] = (),
        buffer: int = 10_000,
        seed: int = 0,
        max_bad: int = 0,
        say: Say | None = None,
    ) -> None:
        self.look, self.buffer, self.seed, self.max_bad, self.say = look, buffer, seed, max_bad, say
        self._bad: dict[str, str] = {}
        self.files = _files(path)
        self.channels = look.channels or 3
        self.shape = (self.channels, look.size, look.size)
        self._at, self._stream = 0, iter(())
        self._stream = iter(self._as_they_lie())
        first = self._next()
        self._picture = next((k for k in first if k.lower() in PICTURE_KEYS), "")
        if not self._picture:
            raise ValueError(
                f"{self.files[0]}: its first sample holds no picture "
                f"({', '.join('.' + p for p in PICTURE_KEYS)}), but "
                f"{', '.join(k for k in first if not k.startswith('__'))}"
            )
        names = tuple(classes) or _class_names(Path(self.files[0]).parent)
        self.columns = {
            **({"label": Column(kind="class", classes=names)} if "cls" in first else {}),
            **({"caption": Column(kind="text")} if "txt" in first else {}),
        }
        if "cls" in first and not names:
            raise ValueError(
                f"{self.files[0]}: holds classes without names; give them as data.classes, or in "
                "classes.txt beside the shards, one a line"
            )

    def _next(self) -> Mapping[str, Any]:
        try:
            return next(self._stream)
        except Exception as error:
            # Whatever the reader trips over, it is the shards that are not as it expects.
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> Damaged:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        return Damaged(
            f"{self.files[0]}{' …' if len(self.files) > 1 else ''}: not readable as webdataset "
            f"({reason})"
        )

    def _as_they_lie(self) -> Any:
        import datasets

        try:
            stream = datasets.load_dataset(
                "webdataset",
                data_files=[f if "://" in f else escape_pattern(Path(f)) for f in self.files],
                split="train",
                streaming=True,
            )
        except Exception as error:
            raise self._damaged(error) from error
        for name in list(stream.features or {}):
            if name.lower() in PICTURE_KEYS:
                stream = stream.cast_column(name, datasets.Image(decode=False))
        return stream

    def _pass(self, epoch: int) -> Iterator[Mapping[str, Any]]:
        stream = self._as_they_lie()
        return iter(
            stream.shuffle(seed=self.seed + epoch, buffer_size=self.buffer)
            if self.buffer > 1
            else stream
        )

    def _endless(self) -> Iterator[Mapping[str, Any]]:
        epoch = 0
        while True:
            yield from self._pass(epoch)
            epoch += 1

    def batch(self, rows: Sequence[int], draw: Draw) -> tuple[Tensor, Targets]:
        """Walk to the positions ``rows`` and return what is there.

        Raises:
            Damaged: more pictures than ``max_bad`` cannot be read.
            ValueError: a sample's class has no name.
        """
        if self._at > rows[0] or self._at == 0:
            self._at, self._stream = 0, self._endless()
        found = []
        for row in rows:
            while self._at <= row:
                sample = self._next()
                self._at += 1
            found.append(sample)
        pixels, samples = zip(*[self._readable(sample) for sample in found], strict=True)
        return prepare(torch.stack(pixels), self.look, draw), self._targets(samples)

    def _readable(self, sample: Mapping[str, Any]) -> tuple[Tensor, Mapping[str, Any]]:
        try:
            return self._decoded(sample), sample
        except Damaged as error:
            self._skip(f"{sample.get('__url__')}/{sample.get('__key__')}", error)
            return self._stand_in

    def _skip(self, name: str, error: Damaged) -> None:
        if name in self._bad:  # met in an earlier pass
            return
        self._bad[name] = str(error)
        if len(self._bad) > self.max_bad:
            raise Damaged(
                f"{error}; mend or remove it, or set data.max_bad (now {self.max_bad})"
            ) from error
        if self.say:
            self.say(f"skipped an image: {error}")

    @cached_property
    def _stand_in(self) -> tuple[Tensor, Mapping[str, Any]]:
        for sample in self._as_they_lie():
            try:
                return self._decoded(sample), sample
            except Damaged:
                continue
        raise Damaged(f"{self.files[0]}: no image of these shards can be read")

    def _decoded(self, sample: Mapping[str, Any]) -> Tensor:
        try:
            return decode(open_encoded(sample[self._picture]), self.look, self.channels)
        except (OSError, ValueError, KeyError) as error:
            raise Damaged(
                f"{sample.get('__url__')}: cannot read the image of {sample.get('__key__')!r} "
                f"({' '.join(str(error).split())})"
            ) from error

    def _targets(self, found: Sequence[Mapping[str, Any]]) -> Targets:
        targets: dict[str, Tensor | list[str]] = {}
        if "label" in self.columns:
            labels = [_label(s) for s in found]
            names = self.columns["label"].classes
            for sample, label in zip(found, labels, strict=True):
                if not 0 <= label < len(names):
                    where = f"{sample.get('__url__') or 'a shard'}: {sample.get('__key__')!r}"
                    raise ValueError(
                        f"{where} has the class {label}, but there are {len(names)} names; mend "
                        "it, or name all classes in classes.txt"
                    )
            targets["label"] = torch.tensor(labels)
        if "caption" in self.columns:
            targets["caption"] = [_caption(s) for s in found]
        return targets


def _place(sample: Mapping[str, Any]) -> str:
    return f"{sample.get('__url__') or 'a shard'}: {sample.get('__key__')!r}"


def _caption(sample: Mapping[str, Any]) -> str:
    text = sample.get("txt")
    try:
        words = text if isinstance(text, str) else bytes(text).decode()  # type: ignore[arg-type]
        return words.removeprefix("\ufeff").strip()
    except (TypeError, UnicodeDecodeError):
        raise ValueError(
            f"{_place(sample)} has no caption in UTF-8 (.txt); mend or remove it"
        ) from None


def _label(sample: Mapping[str, Any]) -> int:
    try:
        return int(sample["cls"])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{_place(sample)} has the class {sample.get('cls')!r}, which is no number (.cls)"
        ) from None


def _files(path: Path | str) -> list[str]:
    if "://" in str(path):
        return [str(path)]
    return [str(f) for f in find_data_files(Path(path), ".tar")]


def _class_names(folder: Path) -> tuple[str, ...]:
    file = folder / "classes.txt"
    lines = read_text(file).split("\n") if file.is_file() else []
    return tuple(line.strip() for line in lines if line.strip())
