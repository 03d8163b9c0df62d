"""Stream pictures from webdataset shards, for data larger than a disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.rng import Draw
from ..io.documents import read_text
from ..io.files import Damaged
from .folders import escape_pattern, find_data_files
from .pictures import EncodedPicture, PictureFormat, Say, decode, open_encoded, prepare_pictures
from .source import Column, Source, Targets

if TYPE_CHECKING:
    import datasets

Sample = Mapping[str, object]
"""The files of a sample by their suffix, and ``__key__`` and ``__url__``."""

PICTURE_KEYS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "pgm", "ppm")


class Shards(Source):
    """A stream of samples from webdataset shards.

    A shard (``000.tar``) holds ``key.jpg`` with ``key.cls`` and ``key.txt``. The stream has no end:
    each pass is shuffled anew, in a buffer. The sample at a position depends on the shards and the
    settings alone. So a resumed training goes on with the same samples (it reads up to there), and
    several processes read the same stream, each taking its own positions.

    Args:
        path: a .tar file, a folder of them, or a pattern of addresses, read over the network.
        format: the format that all pictures are brought to; ``channels`` by default 3.
        classes: names of the classes (.cls); by default the lines of ``classes.txt`` beside the
            shards.
        buffer: how many samples are shuffled together.
        seed: of the shuffling.
        max_bad: how many unreadable pictures to skip before giving up; each process counts its own.
            The first readable sample takes their place, so that no later one moves.
        say: called with a line about each picture that is skipped.

    Raises:
        FileNotFoundError: there are no shards.
        Damaged: the shards cannot be read.
        ValueError: the first sample holds no picture, or its class has no name.
    """

    def __init__(
        self,
        path: Path | str,
        format: PictureFormat,
        *,
        classes: Sequence[str] = (),
        buffer: int = 10_000,
        seed: int = 0,
        max_bad: int = 0,
        say: Say | None = None,
    ) -> None:
        self.format, self.buffer, self.seed, self.max_bad, self.say = (
            format,
            buffer,
            seed,
            max_bad,
            say,
        )
        self._bad: dict[str, str] = {}
        self.files = _files(path)
        self.channels = format.channels or 3
        self._at = 0
        self._stream: Iterator[Sample] = iter(self._in_order())
        first = self._next()
        self._picture = next((k for k in first if k.lower() in PICTURE_KEYS), "")
        if not self._picture:
            raise ValueError(
                f"{self.files[0]}: the first sample must hold a picture "
                f"({', '.join('.' + p for p in PICTURE_KEYS)}), not only "
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

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return (self.channels, self.format.size, self.format.size)

    @property
    def size(self) -> None:
        """None: a stream has no size."""
        return None

    def _next(self) -> Sample:
        try:
            return next(self._stream)
        except Exception as error:
            # The reader raises many kinds of exceptions, all of them for the shards' fault.
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> Damaged:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        return Damaged(
            f"{self.files[0]}{' …' if len(self.files) > 1 else ''}: not readable as webdataset "
            f"({reason}); write them again"
        )

    def _in_order(self) -> datasets.IterableDataset:
        """Return the samples in the order of the files."""
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

    def _pass(self, epoch: int) -> Iterator[Sample]:
        stream = self._in_order()
        return iter(
            stream.shuffle(seed=self.seed + epoch, buffer_size=self.buffer)
            if self.buffer > 1
            else stream
        )

    def _endless(self) -> Iterator[Sample]:
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
        return prepare_pictures(torch.stack(pixels), self.format, draw), self._targets(samples)

    def _readable(self, sample: Sample) -> tuple[Tensor, Sample]:
        try:
            return self._decoded(sample), sample
        except Damaged as error:
            self._skip(f"{sample.get('__url__')}/{sample.get('__key__')}", error)
            return self._stand_in

    def _skip(self, name: str, error: Damaged) -> None:
        if name in self._bad:  # of an earlier pass
            return
        self._bad[name] = str(error)
        if len(self._bad) > self.max_bad:
            raise Damaged(
                f"{error}; replace or remove it, or raise data.max_bad (now {self.max_bad})"
            ) from error
        if self.say:
            self.say(f"skipped an image: {error}")

    @cached_property
    def _stand_in(self) -> tuple[Tensor, Sample]:
        for sample in self._in_order():
            with suppress(Damaged):
                return self._decoded(sample), sample
        raise Damaged(f"{self.files[0]}: no image of these shards can be read; write them again")

    def _decoded(self, sample: Sample) -> Tensor:
        try:
            return decode(open_encoded(_picture(sample, self._picture)), self.format, self.channels)
        except (OSError, ValueError, KeyError) as error:
            raise Damaged(
                f"{sample.get('__url__')}: cannot read the image of {sample.get('__key__')!r} "
                f"({' '.join(str(error).split())})"
            ) from error

    def _targets(self, found: Sequence[Sample]) -> Targets:
        targets: dict[str, Tensor | list[str]] = {}
        if "label" in self.columns:
            labels = [_label(s) for s in found]
            names = self.columns["label"].classes
            for sample, label in zip(found, labels, strict=True):
                if not 0 <= label < len(names):
                    raise ValueError(
                        f"{_place(sample)} has the class {label}, but there are {len(names)} "
                        "names; correct it, or name all classes in classes.txt"
                    )
            targets["label"] = torch.tensor(labels)
        if "caption" in self.columns:
            targets["caption"] = [_caption(s) for s in found]
        return targets


def _place(sample: Sample) -> str:
    return f"{sample.get('__url__') or 'a shard'}: {sample.get('__key__')!r}"


def _caption(sample: Sample) -> str:
    text = sample.get("txt")
    try:
        words = text.decode() if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        words = None
    if not isinstance(words, str):
        raise ValueError(f"{_place(sample)} has no caption in UTF-8 (.txt); correct or remove it")
    return words.removeprefix("\ufeff").strip()


def _label(sample: Sample) -> int:
    label = sample.get("cls")
    try:
        return int(label) if isinstance(label, int | float | str | bytes) else int(str(label))
    except ValueError:
        raise ValueError(
            f"{_place(sample)} has the class {label!r} (.cls), which is no number; write the index "
            "of a class"
        ) from None


def _picture(sample: Sample, key: str) -> EncodedPicture:
    """Return a sample's encoded picture.

    Raises:
        KeyError: the sample has none.
    """
    found = sample[key]
    return EncodedPicture(**found) if isinstance(found, dict) else EncodedPicture()


def _files(path: Path | str) -> list[str]:
    if "://" in str(path):
        return [str(path)]
    return [str(f) for f in find_data_files(Path(path), ".tar")]


def _class_names(folder: Path) -> tuple[str, ...]:
    file = folder / "classes.txt"
    lines = read_text(file).split("\n") if file.is_file() else []
    return tuple(line.strip() for line in lines if line.strip())
