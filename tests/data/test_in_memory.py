"""Samples held as tensors, and parts of a source: rows, scaling, flips and captions, by hand."""

import pytest
import torch

from guidestar.core.rng import Draw
from guidestar.data.source import Column, InMemory, Subset, split

BYTES = torch.tensor([[0, 51, 102], [127, 128, 255]], dtype=torch.uint8)


def held(x, targets=None, **more):
    return InMemory(x=x, targets=targets or {}, columns={}, **more)


def test_bytes_are_given_in_minus_one_to_one_and_numbers_as_they_are():
    source = held(torch.stack([BYTES, 255 - BYTES])[:, None])
    x, _ = source.batch([1, 0, 1], Draw([0, 0, 0]))
    wanted = torch.tensor(
        [[[-1.0, -0.6, -0.2], [127 / 127.5 - 1, 128 / 127.5 - 1, 1.0]]], dtype=torch.float32
    )
    torch.testing.assert_close(x, torch.stack([-wanted, wanted, -wanted]), atol=1e-6, rtol=0)
    assert (source.shape, source.size, x.dtype) == ((1, 2, 3), 2, torch.float32)
    numbers = torch.tensor([[300.0], [-7.5]], dtype=torch.float64)
    given, _ = held(numbers).batch([1], Draw([0]))
    assert given.dtype == torch.float64 and given.tolist() == [[-7.5]]


def test_a_flip_mirrors_left_and_right_where_the_draw_is_below_a_half():
    picture = torch.arange(12.0).reshape(2, 2, 3)
    draw = Draw(range(40), 3)
    x, _ = held(picture[None], flip=True).batch([0] * 40, draw)
    below = (draw.uniform("flip") < 0.5).tolist()
    assert 5 < sum(below) < 35
    mirrored = torch.stack([picture[..., 2], picture[..., 1], picture[..., 0]], -1)
    for got, flipped in zip(x, below, strict=True):
        assert torch.equal(got, mirrored if flipped else picture)
    assert torch.equal(held(picture[None]).batch([0], draw.take(torch.tensor([0])))[0][0], picture)


def test_what_is_known_is_picked_by_row_and_one_of_several_captions_is_drawn():
    captions = [("a", "b", "c"), "alone", ("d", "e")]
    targets = {"class": torch.tensor([5, 6, 7]), "text": captions, "title": ["x", "y", "z"]}
    rows, draw = [2, 0, 1, 0] * 8, Draw(range(32))
    _, found = held(torch.zeros(3, 1), targets).batch(rows, draw)
    assert found["class"].tolist() == [7, 5, 6, 5] * 8 and found["title"] == list("zxyx") * 8
    wanted = []
    for row, u in zip(rows, draw.uniform("caption").tolist(), strict=True):
        given = captions[row]
        wanted.append(given if isinstance(given, str) else given[int(len(given) * u)])
    assert found["text"] == wanted and {"a", "b", "c", "d", "e", "alone"} == set(wanted)


def test_a_part_gives_the_rows_that_are_kept():
    columns = {"class": Column(kind="class", classes=("p", "q"))}
    source = InMemory(
        x=torch.arange(10.0)[:, None], targets={"class": torch.arange(10)}, columns=columns
    )
    part = Subset(source=source, kept=(9, 4, 7))
    x, known = part.batch([2, 0, 0, 1], Draw([0] * 4))
    assert x[:, 0].tolist() == [7, 9, 9, 4] == known["class"].tolist()
    assert (part.size, part.shape, part.columns) == (3, (1,), columns)


@pytest.mark.parametrize("seed", [0, 1, 12])
@pytest.mark.parametrize(("size", "share", "aside"), [(10, 0.3, 3), (7, 0.5, 4), (2, 0.5, 1)])
def test_a_split_sets_the_first_of_a_permutation_aside(seed, size, share, aside):
    """3.5 is rounded to the even 4."""
    mixed = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).tolist()
    train, test = split(held(torch.arange(size)[:, None]), share, seed)
    assert test.kept == tuple(sorted(mixed[:aside])) and test.size == aside
    assert train.kept == tuple(sorted(mixed[aside:])) and train.source is test.source


def test_a_split_leaves_something_on_either_side():
    source = held(torch.zeros(4, 1))
    for share in (0.1, 0.9):  # of 4: 0.4 and 3.6
        with pytest.raises(
            ValueError, match=r"share of 0.[19] of 4 samples leaves one part empty; change data"
        ):
            split(source, share)
    assert split(source, 0.8)[1].size == 3 and split(source, 0.2)[1].size == 1
    assert split(source, 0.0) == (source, None)
    assert split(source, 0.5)[1].kept == split(source, 0.5, seed=0)[1].kept  # by default
