"""Fashion-MNIST: 70,000 real pictures of ten kinds of clothing, 28×28 grey (MIT licence).

References:
    Fashion-MNIST, https://arxiv.org/abs/1708.07747
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ..io.files import Damaged

CLASSES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
_FILES = {"train": "train", "test": "t10k"}


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, gzipped or not, as a uint8 tensor.

    Raises:
        Damaged: the file is not IDX, not of unsigned bytes, or of another length than its header
            gives.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        zero, kind, ndim = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{ndim}I", raw[4 : 4 + 4 * ndim])
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise Damaged(f"{path}: cannot be read as an IDX file ({error}); fetch it again") from error
    body = raw[4 + 4 * ndim :]
    if zero != 0 or kind != 8 or len(body) != math.prod(shape):
        raise Damaged(
            f"{path}: must be an IDX file of unsigned bytes, with {shape} of them by its header, "
            "not "
            f"{len(body)} bytes; fetch it again"
        )
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(shape)


def _find(folder: Path, stem: str) -> Path:
    for path in (folder / f"{stem}.gz", folder / stem):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"Fashion-MNIST's {stem} is not in {folder}; install it with 'apt-get install "
        "dataset-fashion-mnist', or name a folder that holds the four IDX files"
    )


def load_split(split: str = "train", folder: Path | str | None = None) -> tuple[Tensor, Tensor]:
    """Load images ``[N, 1, 28, 28]`` in [−1, 1] (float32) and labels ``[N]`` (int64).

    Args:
        split: "train" (60,000) or "test" (10,000).
        folder: of the IDX files; by default the one of Debian's package dataset-fashion-mnist.

    Raises:
        FileNotFoundError: a file is missing; the message explains how to get it.
        Damaged: a file is damaged.
        ValueError: images and labels differ in number, or are not Fashion-MNIST's.
    """
    where = Path(folder) if folder else INSTALLED
    images = read_idx(_find(where, f"{_FILES[split]}-images-idx3-ubyte"))
    labels = read_idx(_find(where, f"{_FILES[split]}-labels-idx1-ubyte"))
    if (
        images.shape[1:] != (28, 28)
        or labels.ndim != 1
        or not len(labels)
        or int(labels.max()) >= len(CLASSES)
    ):
        raise ValueError(
            f"{where}: must hold images [N, 28, 28] and labels [N] below 10, not "
            f"{tuple(images.shape)} and {tuple(labels.shape)}; name a folder of Fashion-MNIST"
        )
    if len(images) != len(labels):
        raise ValueError(
            f"{where}: holds {len(images)} images but {len(labels)} labels in its {split} split; "
            "fetch "
            "both files again"
        )
    return images[:, None].float() / 127.5 - 1, labels.long()


def write_folders(
    out: Path, *, each: int = 600, split: str = "train", folder: Path | str | None = None
) -> int:
    """Write pictures as PNG files, in a folder for each class; return their number.

    Args:
        out: a new or empty folder, for ``t-shirt/00000.png``, ….
        each: pictures of each class, the first ones of the split.
        split: "train" or "test".
        folder: of the IDX files, as in `load_split`.

    Raises:
        FileExistsError: ``out`` holds something already.
    """
    from PIL import Image

    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty; give a new folder")
    x, y = load_split(split, folder)
    pixels, count = ((x[:, 0] + 1) * 127.5).round().byte().numpy(), 0
    for k, name in enumerate(CLASSES):
        (out / name).mkdir(parents=True)
        for row in (y == k).nonzero()[:each, 0].tolist():
            Image.fromarray(pixels[row]).save(out / name / f"{row:05d}.png")
            count += 1
    return count
