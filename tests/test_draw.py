"""Random numbers are keyed by (seed, step, tag), and by nothing else."""

import pytest
import torch

from guidestar.draw import Draw, checked_seeds

KINDS = {
    "normal": lambda draw, tag="a": draw.normal(tag, (3, 5)),
    "normal_like": lambda draw, tag="a": draw.normal_like(tag, torch.empty(len(draw.seeds), 3, 5)),
    "uniform": lambda draw, tag="a": draw.uniform(tag),
    "gaussian": lambda draw, tag="a": draw.gaussian(tag),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@kinds
def test_a_sample_does_not_depend_on_its_neighbours(kind):
    batch = kind(Draw([5, 9, 2], step=3))
    assert torch.equal(batch, kind(Draw([2, 5, 9], step=3))[[1, 2, 0]])
    assert torch.equal(batch[1:2], kind(Draw([9], step=3)))
    assert torch.equal(batch[[2, 0]], kind(Draw([5, 9, 2], step=3).take(torch.tensor([2, 0]))))


@kinds
def test_earlier_draws_change_nothing(kind):
    draw = Draw([5, 9])
    first = kind(draw)
    draw.normal("other", (100,))
    torch.manual_seed(1)
    assert torch.equal(first, kind(draw)) and torch.equal(first, kind(draw.at(4).at(0)))


@kinds
def test_seed_step_and_tag_all_matter(kind):
    one = kind(Draw([1]))
    others = [kind(Draw([2])), kind(Draw([1], step=1)), kind(Draw([1], step=-1)), kind(Draw([1]), "b")]
    everything = torch.stack([one, *others]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 5


def test_keys_do_not_run_together():
    """Seed 1 at step 11 is not seed 11 at step 1."""
    assert not torch.equal(Draw([1], step=11).uniform("a"), Draw([11], step=1).uniform("a"))


@kinds
def test_global_randomness_is_untouched(kind):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    kind(Draw([1, 2]))
    assert torch.equal(torch.rand(3), expected)


def test_shapes_and_dtypes():
    draw = Draw(range(4))
    assert draw.normal("a", (2, 3)).shape == (4, 2, 3) and draw.normal("a", ()).shape == (4,) and draw.normal("a", (2,)).dtype == torch.float32
    assert draw.normal_like("a", torch.empty(4, 2, dtype=torch.float64)).dtype == torch.float64
    assert draw.uniform("a").shape == draw.gaussian("a").shape == (4,) and draw.uniform("a").dtype == draw.gaussian("a").dtype == torch.float64
    assert torch.equal(draw.normal("a", (2,)).double(), draw.normal_like("a", torch.empty(4, 2, dtype=torch.float64)))


@pytest.mark.parametrize("draw", [lambda d: d.normal("a", (20,)).double().flatten(), lambda d: d.gaussian("a")], ids=["normal", "gaussian"])
def test_moments_of_normals(draw):
    z = draw(Draw(range(4000)))
    assert abs(z.mean()) < 5 / len(z) ** 0.5 and abs(z.var() - 1) < 5 * (2 / len(z)) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / len(z)) ** 0.5


def test_moments_of_uniforms():
    u = Draw(range(4000)).uniform("a")
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 5 / (12 * 4000) ** 0.5 and abs(u.var() - 1 / 12) < 5 * (1 / 180 / 4000) ** 0.5


def test_neighbouring_seeds_steps_and_tags_are_uncorrelated():
    base = Draw(range(200)).normal("a", (50,)).flatten()
    for other in (Draw(range(1, 201)).normal("a", (50,)), Draw(range(200), step=1).normal("a", (50,)), Draw(range(200)).normal("b", (50,))):
        assert abs((base * other.flatten()).mean()) < 5 / len(base) ** 0.5


def test_seeds_are_integers_and_at_least_one():
    assert checked_seeds((3, True)) == [3, 1] and checked_seeds(torch.tensor([5, -2])) == [5, -2] and checked_seeds(range(2)) == [0, 1]
    with pytest.raises(ValueError, match=r"no samples; at least one seed is needed, seeds=\[0\]"):
        checked_seeds([])
    for wrong in (0, None, "ab", [1.5], [None]):
        with pytest.raises(ValueError, match=r"^seeds must be a list of integers, one for each sample, not .*; write e.g. seeds=\[0, 1\]$"):
            checked_seeds(wrong)
