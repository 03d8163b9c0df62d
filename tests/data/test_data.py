"""Reading IDX files: what the test wrote comes back, and damage is named."""

import gzip
import struct

import pytest
import torch

from guidestar.data import fashion_mnist
from guidestar.data.fashion_mnist import load_split, read_idx

STEMS = {"train": "train", "test": "t10k"}


def idx(tensor, kind=8, zero=0):
    return (
        struct.pack(">HBB", zero, kind, tensor.ndim)
        + struct.pack(f">{tensor.ndim}I", *tensor.shape)
        + bytes(tensor.flatten().tolist())
    )


def pixels(*shape):
    return torch.randint(
        0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )


def folder_of(tmp_path, images, labels, split="train", zipped=True):
    for name, tensor in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
        raw = idx(tensor)
        path = tmp_path / f"{STEMS[split]}-{name}{'.gz' if zipped else ''}"
        path.write_bytes(gzip.compress(raw) if zipped else raw)
    return tmp_path


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 28, 28)])
def test_what_was_written_comes_back(tmp_path, shape, zipped):
    path, wanted = tmp_path / "file", pixels(*shape)
    path.write_bytes(gzip.compress(idx(wanted)) if zipped else idx(wanted))
    found = read_idx(path)
    assert found.dtype == torch.uint8 and torch.equal(found, wanted)


GOOD = idx(torch.arange(60, dtype=torch.uint8).reshape(5, 3, 4))
BAD = {
    "empty": b"",
    "half a header": GOOD[:3],
    "no shape": GOOD[:6],
    "truncated": GOOD[:-1],
    "too long": GOOD + b"\0",
    "wrong magic": b"\1\0" + GOOD[2:],
    "not bytes": GOOD[:2] + b"\x0d" + GOOD[3:],
    "text": b"<html>404 Not Found</html>",
    "truncated gzip": gzip.compress(GOOD)[:-12],
    "gzip without content": b"\x1f\x8b",
    "gzip of a truncated file": gzip.compress(GOOD[:-1]),
}


@pytest.mark.parametrize("name", BAD)
def test_damaged_files_are_named_in_one_line(tmp_path, name):
    path = tmp_path / "some-idx3-ubyte"
    path.write_bytes(BAD[name])
    with pytest.raises(ValueError, match=r"some-idx3-ubyte[^\n]*IDX file[^\n]*$"):
        read_idx(path)


def test_damage_inside_gzip_is_named(tmp_path):
    raw = bytearray(gzip.compress(bytes(range(256)) * 40 + GOOD))
    raw[20:60] = b"\xff" * 40
    (tmp_path / "file").write_bytes(bytes(raw))
    with pytest.raises(ValueError, match="cannot be read as an IDX file"):
        read_idx(tmp_path / "file")


def test_a_folder_is_not_a_file(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as an IDX file"):
        read_idx(tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_load_scales_images_to_plus_minus_one(tmp_path, split, zipped):
    images, labels = pixels(6, 28, 28), torch.tensor([0, 9, 3, 3, 1, 5], dtype=torch.uint8)
    images[0, 0, :3] = torch.tensor([0, 255, 51], dtype=torch.uint8)
    x, y = load_split(split, folder_of(tmp_path, images, labels, split, zipped))
    assert x.shape == (6, 1, 28, 28) and x.dtype == torch.float32
    assert x[0, 0, 0, :3].tolist() == pytest.approx([-1.0, 1.0, -0.6])
    assert torch.allclose(x[:, 0].double(), images.double() * 2 / 255 - 1, atol=1e-6)
    assert y.dtype == torch.int64 and y.tolist() == [0, 9, 3, 3, 1, 5]


def test_images_and_labels_must_agree(tmp_path):
    folder = folder_of(tmp_path, pixels(6, 28, 28), torch.zeros(5, dtype=torch.uint8))
    with pytest.raises(ValueError, match="6 images but 5 labels"):
        load_split("train", folder)


def test_files_in_each_others_place_are_refused(tmp_path):
    folder = folder_of(
        tmp_path, torch.zeros(6, dtype=torch.uint8), torch.zeros(6, dtype=torch.uint8)
    )
    with pytest.raises(ValueError, match="28"):
        load_split("train", folder)


def test_a_missing_folder_says_how_to_get_the_data(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"apt-get install dataset-fashion-mnist[^\n]*$"
    ) as caught:
        load_split("train", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_a_folder_that_lacks_labels_says_so(tmp_path):
    folder = folder_of(tmp_path, pixels(6, 28, 28), torch.zeros(6, dtype=torch.uint8))
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="train-labels-idx1-ubyte"):
        load_split("train", folder)


@pytest.mark.skipif(
    not fashion_mnist.INSTALLED.is_dir(), reason="dataset-fashion-mnist is not installed"
)
@pytest.mark.parametrize(("split", "count"), [("train", 60_000), ("test", 10_000)])
def test_the_installed_data_are_whole(split, count):
    x, y = load_split(split)
    assert x.shape == (count, 1, 28, 28) and float(x.min()) == -1 and float(x.max()) == 1
    assert torch.bincount(y).tolist() == [count // 10] * 10
    # the mean grey of all pixels, 0.2860 of 1, is published with every tutorial on the data
    assert float((x.mean(dtype=torch.float64) + 1) / 2) == pytest.approx(0.286, abs=1e-3)
