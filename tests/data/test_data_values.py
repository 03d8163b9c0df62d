"""Single values of data: densities, pictures on disk, tensors, and how a file is known again."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from guidestar.core.levels import Level
from guidestar.core.rng import Draw
from guidestar.data import fashion_mnist, tensors
from guidestar.data.columns import _is_text, _is_vector
from guidestar.data.latents import Latents, Unencoded, is_unencoded, pictures_of
from guidestar.data.mixtures import Mixture, blobs, moons
from guidestar.data.noised_mixture import NoisedMixture
from guidestar.data.pictures import (
    PictureFormat,
    _decode_readable,
    _key,
    all_grey,
    prepare_pictures,
)
from guidestar.data.source import Column, InMemory, Subset, split, split_captions
from guidestar.evaluate.calibration import expected_calibration_error
from guidestar.io.files import Damaged


def two(level):
    x = torch.tensor([[1.0, 2.0], [0.5, -1.0], [3.0, 0.0]], dtype=torch.float64)
    return NoisedMixture(
        x, level, log_weights=torch.log(torch.tensor([0.25, 0.75])),
        means=torch.tensor([[0.0, 1.0], [2.0, -1.0]]),
        variances=torch.tensor([[0.5, 1.5], [1.0, 3.0]]), axes=torch.eye(2).expand(2, 2, 2),
    )  # fmt: skip


def normal(x, mean, variance):
    return math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)


def test_the_common_gaussian_of_a_mixture():
    found = two(Level(0.8, 0.6, 0.5))
    v = 0.64 * 1.5 + 0.36  # the mean of all variances is 1.5; the mean of the means is (1, 0)
    assert found.reference.flatten().tolist() == pytest.approx([v])
    wanted = [
        math.log(normal(a, 0.8, v) * normal(b, 0.0, v)) for a, b in ((1, 2), (0.5, -1), (3, 0))
    ]
    assert found.log_reference.tolist() == pytest.approx(wanted)
    each = torch.tensor([0.8, 0.6, 1.0], dtype=torch.float64)
    by_sample = two(Level(each, torch.sqrt(1 - each**2), 0.5))
    assert by_sample.log_reference[0].item() == pytest.approx(wanted[0])
    assert by_sample.log_reference[2].item() == pytest.approx(
        math.log(normal(3, 1, 1.5) * normal(0, 0, 1.5))
    )
    first = [0.25 * normal(a, 0, 0.64 * 0.5 + 0.36) * normal(b, 0.8, 0.64 * 1.5 + 0.36)
             for a, b in ((1, 2), (0.5, -1), (3, 0))]  # fmt: skip
    ratios = (found.log_ratios[:, 0] + found.log_reference).exp()
    assert ratios.tolist() == pytest.approx(first)
    with pytest.raises(
        ValueError, match=r"in 2 dimensions takes x of shape \[B, 2\], not \(2, 3\)"
    ):
        NoisedMixture(
            torch.zeros(2, 3),
            Level(1, 0, 0),
            log_weights=torch.zeros(1),
            means=torch.zeros(1, 2),
            variances=torch.zeros(1, 2),
            axes=torch.zeros(1, 2, 2),
        )


def test_fashion_mnist_as_pictures(monkeypatch, tmp_path):
    x = torch.linspace(-1, 1, 28 * 28).reshape(1, 1, 28, 28).repeat(25, 1, 1, 1)
    x[3] = 1.0
    y = torch.arange(25) % 10
    asked = []
    monkeypatch.setattr(fashion_mnist, "load_split", lambda *given: asked.append(given) or (x, y))
    out = tmp_path / "new"
    assert fashion_mnist.write_folders(out, each=2, split="test", folder="f") == 20
    assert asked == [("test", "f")]
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*.png"))
    classes = fashion_mnist.CLASSES
    assert names == sorted(f"{classes[k % 10]}/{k:05d}.png" for k in range(20))
    assert np.asarray(Image.open(out / classes[3] / "00003.png")).min() == 255
    plain = np.asarray(Image.open(out / classes[0] / "00010.png"))
    assert plain.shape == (28, 28) and (plain[0, 0], plain[-1, -1]) == (0, 255)
    assert plain[0, 1] == round(2 / 783 * 127.5)
    with pytest.raises(FileExistsError, match="is not empty; give a new folder"):
        fashion_mnist.write_folders(out)
    assert fashion_mnist.write_folders(tmp_path / "all", each=3) == 25


def test_tensors_from_files(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6.0).reshape(3, 2))
    np.save(tmp_path / "y.npy", np.array([0, 1, 2]))
    assert set(tensors._read(tmp_path)[0]) == {"x", "y"}
    (tmp_path / "y.npy").rename(tmp_path / "z.npy")
    alone, metadata = tensors._read(tmp_path / "z.npy")
    assert list(alone) == ["x"] and alone["x"].tolist() == [0, 1, 2] and metadata == {}
    for path, text in (
        (tmp_path / "no", "there is no such file"),
        (tmp_path / "e", "holds no .npy"),
    ):
        if path.name == "e":
            path.mkdir()
        with pytest.raises(FileNotFoundError, match=text):
            tensors._read(path)
    (tmp_path / "bad.npy").write_bytes(b"x")
    with pytest.raises(Damaged, match="not readable as a NumPy array of numbers"):
        tensors._read(tmp_path / "bad.npy")


def saved(image: Image.Image, path: Any) -> Any:
    image.save(path)
    return {"path": str(path), "bytes": None}


def test_pictures_are_grey_only_if_all_are(tmp_path):
    grey = saved(Image.new("L", (2, 2)), tmp_path / "a.png")
    colour = saved(Image.new("RGB", (2, 2)), tmp_path / "b.png")
    broken: Any = {"path": str(tmp_path / "none.png"), "bytes": None}
    assert all_grey([grey, grey]) and all_grey([grey, broken])
    assert not all_grey([grey, colour]) and not all_grey([colour])


def test_a_cache_is_of_the_same_files_and_format(tmp_path):
    path = tmp_path / "a.png"
    picture, form = saved(Image.new("L", (2, 2)), path), PictureFormat(size=4, channels=1)
    held: Any = {"path": None, "bytes": b"1"}
    other: Any = {"path": None, "bytes": b"2"}
    keys = [
        _key([picture], form, 1), _key([picture], form, 3), _key([picture, picture], form, 1),
        _key([picture], PictureFormat(size=5, channels=1), 1), _key([held], form, 1),
        _key([picture], PictureFormat(size=4, channels=1, enlarge=False), 1),
        _key([other], form, 1), _key([None], form, 1), _key([None, None], form, 1),
        _key([], form, 1),
    ]  # fmt: skip
    path.write_bytes(path.read_bytes() + b" ")
    keys.append(_key([picture], form, 1))
    assert len(set(keys)) == len(keys) and all(len(k) == 24 for k in keys)
    assert _key([held], form, 1) == keys[4]


def test_unreadable_pictures_up_to_a_number(tmp_path):
    good = saved(Image.new("L", (4, 4)), tmp_path / "a.png")
    bad: list[Any] = [{"path": f"{n}.png", "bytes": b"x"} for n in "bcdef"]
    form, said = PictureFormat(size=4, channels=1), []
    rows = [
        k for k, _ in _decode_readable([bad[0], good, None, good], form, 1, 2, "p", said.append)
    ]
    assert rows == [1, 3] and len(said) == 2
    assert said[0].startswith("skipped an image that cannot be read: b.png (")
    assert "row 2 (" in said[1]
    for most, text in [
        (
            0,
            r"p: cannot read the image b\.png \([^)]*\); replace or remove it, or raise "
            r"data.max_bad \(now 0\)",
        ),
        (1, r"the image c\.png \(.*\), after b\.png; replace"),
        (4, r"the image f\.png \(.*\), after b\.png, c\.png, d\.png; replace"),
    ]:  # fmt: skip
        with pytest.raises(Damaged, match=text):
            list(_decode_readable([*bad, good], form, 1, most, "p", None))


def test_crops_and_flips_of_odd_pictures():
    form = PictureFormat(size=24, channels=3, crop="random", flip=True)
    spare, draw = form.side - 24, Draw([3, 4])
    assert spare > 0
    count = 2 * 3 * form.side**2
    whole = torch.arange(count).remainder(251).to(torch.uint8)
    whole = whole.reshape(2, 3, form.side, form.side)
    found = prepare_pictures(whole, form, draw)
    for k in range(2):
        down, right = (int(draw.uniform(t)[k] * (spare + 1)) for t in ("down", "right"))
        wanted = whole[k, :, down : down + 24, right : right + 24].float() / 127.5 - 1
        wanted = wanted.flip(-1) if draw.uniform("flip")[k] < 0.5 else wanted
        assert torch.equal(found[k], wanted)


@pytest.mark.parametrize(
    ("value", "text", "vector"),
    [("a", True, False), (["a", "b"], True, False), ([], False, True), (["a", 1], False, False),
     (1, False, True), (0.5, False, True), (True, False, False), ([1, 0.5], False, True),
     (None, False, False)],
)  # fmt: skip
def test_kinds_of_columns_by_their_first_value(value, text, vector):
    assert (_is_text(value), _is_vector(value)) == (text, vector)


def test_a_part_of_a_source_and_its_captions():
    x = torch.arange(10.0)[:, None]
    held = InMemory(
        x=x, targets={"t": [f"c{i}" for i in range(10)]}, columns={"t": Column(kind="text")}
    )
    part = Subset(source=held, kept=(7, 2, 5))
    assert part.size == 3 and part.shape == (1,)
    assert part.batch([2, 0], Draw([0, 1]))[0].flatten().tolist() == [5, 7]
    assert part.captions("t", [1]) == [("c2",)]
    assert split_captions({"t": [("a", "b"), "c"]}, "t", [1, 0]) == [("c",), ("a", "b")]
    with pytest.raises(ValueError, match="the column 'n' holds numbers; name a column of captions"):
        split_captions({"n": torch.ones(2)}, "n", [0])
    rest, aside = split(held, 0.25, seed=3)
    mixed = torch.randperm(10, generator=torch.Generator().manual_seed(3)).tolist()
    assert isinstance(rest, Subset) and aside is not None
    assert (aside.kept, rest.kept) == (tuple(sorted(mixed[:2])), tuple(sorted(mixed[2:])))
    assert split(held, 0.0) == (held, None)
    for share in (0.04, 0.96):
        with pytest.raises(ValueError, match="of 10 samples leaves one part empty"):
            split(held, share)
    assert len(split(held, 0.06)[1].kept) == 1 and len(split(held, 0.94)[1].kept) == 9  # type: ignore[union-attr]


def test_confidence_at_the_ends_of_the_bins():
    sure = torch.tensor([[1e3, 0.0], [0.0, 1e3]])
    assert expected_calibration_error(sure, torch.tensor([0, 1]), 5) == 0
    assert expected_calibration_error(sure, torch.tensor([1, 1]), 5) == 0.5
    even = torch.zeros(4, 2)  # confidence 0.5: of two bins in the first
    assert expected_calibration_error(even, torch.tensor([0, 0, 0, 1]), 2) == pytest.approx(0.25)
    mixed = torch.log(torch.tensor([[0.5, 0.5], [0.75, 0.25]]))
    found = expected_calibration_error(mixed, torch.tensor([1, 0]), 2)
    assert found == pytest.approx((0.5 + 0.25) / 2)  # one in each bin
    found = expected_calibration_error(mixed, torch.tensor([1, 0]), 1)
    assert found == pytest.approx(abs(-0.5 + 0.25) / 2)


def test_the_mixtures_that_ship_are_their_numbers():
    found = blobs()
    x, y = 1.2 * math.cos(math.pi / 6), 0.6
    torch.testing.assert_close(
        found.means, torch.tensor([[0, 1.2], [-x, -y], [x, -y]], dtype=torch.float64)
    )
    long, thin, mixed = 0.49, 0.2025, (0.2025 - 0.49) * math.sqrt(3) / 4
    torch.testing.assert_close(
        found.covariances,
        torch.tensor(
            [[[long, 0], [0, thin]],
             [[0.75 * thin + 0.25 * long, mixed], [mixed, 0.25 * thin + 0.75 * long]],
             [[0.75 * thin + 0.25 * long, -mixed], [-mixed, 0.25 * thin + 0.75 * long]]],
            dtype=torch.float64,
        ),
    )  # fmt: skip
    assert found.weights.unique().numel() == 1 and (found.count, found.dim) == (3, 2)
    found = moons(3)
    upper = torch.tensor([[0.75, -0.3], [-0.75, 1.2], [-2.25, -0.3]], dtype=torch.float64)
    torch.testing.assert_close(found.means, torch.cat([upper, -upper]))
    assert found.classes is not None and found.classes.tolist() == [0, 0, 0, 1, 1, 1]
    cov = 0.0484 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(found.covariances, cov.expand(6, 2, 2))
    assert found.weights.unique().numel() == 1 and found.count == 2
    assert len(moons().weights) == 12


def chain(**changed):
    """Two normals of one class and one of another, on a line."""
    given = {
        "weights": torch.tensor([1.0, 3.0, 4.0]), "means": torch.tensor([[0.0], [2.0], [5.0]]),
        "covariances": torch.tensor([[[1.0]], [[4.0]], [[9.0]]]),
        "classes": torch.tensor([0, 0, 1]),
    }  # fmt: skip
    return Mixture(**{**given, **changed})


class Given:
    """Streams of numbers that were chosen."""

    def __init__(self, u, eps):
        self.u, self.eps = torch.tensor(u, dtype=torch.float64), torch.tensor(eps)

    def uniform(self, tag):
        return self.u

    def normal(self, tag, shape):
        assert shape == (1,)
        return self.eps[:, None]


def test_points_of_a_mixture_are_drawn_by_the_weights():
    draw = Given([0.0, 0.124, 0.126, 0.49, 0.51, 0.99], [1.0, -1.0, 0.5, 0.0, 1.0, -2.0])
    x, y = chain().sample(draw)
    assert x.flatten().tolist() == pytest.approx([1, -1, 3, 2, 8, -1])
    assert y.tolist() == [0, 0, 0, 0, 1, 1] and x.dtype == torch.float64
    draw = Given([0.0, 0.249, 0.251, 0.99, 0.0, 0.99], [1.0] * 6)
    x, y = chain().sample(draw, torch.tensor([0, 0, 0, 0, 1, 2]))
    assert x.flatten().tolist() == pytest.approx([1, 1, 4, 4, 8, 8])
    assert y.tolist() == [0, 0, 0, 0, 1, 1]


def test_the_density_of_a_mixture_and_of_its_classes():
    x, level = torch.tensor([[1.5]] * 3), Level(0.8, 0.6, 0.5)
    each = [
        w * normal(1.5, 0.8 * m, 0.64 * v + 0.36)
        for w, m, v in ((1 / 8, 0, 1), (3 / 8, 2, 4), (4 / 8, 5, 9))
    ]
    found = chain().log_density(x, level, torch.tensor([0, 1, 2])).exp()
    wanted = [(each[0] + each[1]) * 2, each[2] * 2, sum(each)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)
    assert chain().log_density(x[:1], level).exp().item() == pytest.approx(sum(each), rel=1e-5)
    posterior = chain().log_posterior(x[:1], level).exp()[0].tolist()
    first = (each[0] + each[1]) / sum(each)
    assert posterior == pytest.approx([first, 1 - first], rel=1e-5)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"weights": torch.ones(3, 1)}, "weights of a mixture must be positive numbers"),
        ({"weights": torch.tensor([1.0, 0.0, 1.0])}, "weights of a mixture must be positive"),
        ({"means": torch.zeros(2, 1)}, r"3 components in 1 dimensions need means \[3, 1\]"),
        ({"means": torch.zeros(3)}, r"3 components in 3 dimensions need means \[3, 3\]"),
        ({"covariances": torch.ones(3, 1)}, r"covariances \[3, 1, 1\] and classes \[3\]"),
        ({"covariances": torch.ones(2, 1, 1)}, "3 components in 1 dimensions"),
        ({"classes": torch.tensor([0, 1])}, "3 components in 1 dimensions"),
        ({"classes": torch.tensor([0, 0, 2])}, r"use all of 0 … K − 1, not \[0, 2\]"),
        ({"classes": torch.tensor([1, 1, 2])}, r"use all of 0 … K − 1, not \[1, 2\]"),
        ({"covariances": torch.zeros(3, 1, 1)}, "symmetric and positive definite"),
        (
            {"means": torch.zeros(3, 2),
             "covariances": torch.tensor([[[2.0, 0.5], [0.0, 2.0]]] * 3)},
            "symmetric and positive definite",
        ),
    ],
)  # fmt: skip
def test_what_is_no_mixture(changed, text):
    with pytest.raises(ValueError, match=text):
        chain(**changed)


def test_the_pictures_of_latents_and_of_what_stands_for_them():
    pictures = InMemory(
        x=torch.zeros(3, 1, 8, 8), targets={"t": ["a", "b", "c"]},
        columns={"t": Column(kind="text")},
    )  # fmt: skip
    made = Latents(x=torch.arange(12.0).reshape(3, 1, 2, 2), pictures=pictures)
    waiting = Unencoded(
        pictures=pictures, encode=lambda x: x[..., :2, :2] + 7, latent_shape=(1, 2, 2)
    )
    for source in (made, waiting):
        assert pictures_of(source) is pictures and source.size == 3
        part = pictures_of(Subset(source=source, kept=(2, 0)))
        assert isinstance(part, Subset) and part.source is pictures and part.kept == (2, 0)
        assert source.shape == (1, 2, 2) and source.columns is pictures.columns
        assert source.captions("t", [2]) == [("c",)]
        assert source.batch([1, 0], Draw([0, 1]))[1]["t"] == ["b", "a"]
    assert pictures_of(pictures) is pictures
    assert made.batch([2], Draw([0]))[0].flatten().tolist() == [8, 9, 10, 11]
    assert waiting.batch([2], Draw([0]))[0].unique().tolist() == [7]
    kept = (0, 1)
    assert is_unencoded(waiting) and is_unencoded(Subset(source=waiting, kept=kept))
    assert not is_unencoded(made) and not is_unencoded(Subset(source=made, kept=kept))


@pytest.mark.parametrize(
    ("images", "labels"),
    [((2, 28, 27), [0, 9]), ((2, 28, 28), [0, 10]), ((0, 28, 28), []), ((2, 28, 28), [[0], [9]])],
)
def test_what_is_not_fashion_mnist(monkeypatch, images, labels):
    held = {"images": torch.zeros(images, dtype=torch.uint8),
            "labels": torch.tensor(labels, dtype=torch.uint8)}  # fmt: skip
    monkeypatch.setattr(fashion_mnist, "_find", lambda folder, stem: stem)
    monkeypatch.setattr(fashion_mnist, "read_idx", lambda stem: held[stem.split("-")[1]])
    with pytest.raises(ValueError, match=r"must hold images \[N, 28, 28\] and labels \[N\] below"):
        fashion_mnist.load_split("test", "f")
    held["images"] = torch.full((3, 28, 28), 51, dtype=torch.uint8)
    held["labels"] = torch.tensor([0, 9], dtype=torch.uint8)
    with pytest.raises(ValueError, match="holds 3 images but 2 labels in its test split"):
        fashion_mnist.load_split("test", "f")
    held["labels"] = torch.tensor([0, 9, 4], dtype=torch.uint8)
    x, y = fashion_mnist.load_split("test", "f")
    assert x.shape == (3, 1, 28, 28) and x.unique().tolist() == pytest.approx([-0.6])
    assert y.tolist() == [0, 9, 4] and y.dtype == torch.int64 and x.dtype == torch.float32


def test_a_colour_picture_that_is_cut_off_is_a_colour_picture(tmp_path):
    torch.manual_seed(0)
    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8).numpy()
    cut = saved(Image.fromarray(noise), tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    assert not all_grey([cut])  # its header says so; its pixels are not read
