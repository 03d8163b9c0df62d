"""Random numbers are keyed by (seed, step, tag), and by nothing else."""

import hashlib
import itertools

import pytest
import torch

from guidestar.core.rng import Draw, checked_seeds

UNIFORM, GAUSSIAN = 0.8997843432094772, 0.9462433302738977

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
    others = [
        kind(Draw([2])),
        kind(Draw([1], step=1)),
        kind(Draw([1], step=-1)),
        kind(Draw([1]), "b"),
    ]
    everything = torch.stack([one, *others]).flatten(1)
    assert len(torch.unique(everything, dim=0)) == 5


def test_keys_do_not_run_together():
    """Seed 1 at step 11 is not seed 11 at step 1."""
    assert not torch.equal(Draw([1], step=11).uniform("a"), Draw([11], step=1).uniform("a"))


@kinds
@pytest.mark.parametrize(
    ("step", "visit", "key"),
    [(0, 0, "7/0/a"), (11, 0, "7/11/a"), (1, 1, "7/1.1/a"), (-1, 0, "7/-1/a"), (3, 12, "7/3.12/a")],
)
def test_the_streams_are_those_of_their_keys(kind, step, visit, key):
    """Runs of old can be repeated only as long as the 8-byte BLAKE2b digest of
    "seed/step[.visit]/tag" seeds torch's generator.
    """
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")
    generator = torch.Generator().manual_seed(seed)
    expected = {
        "normal": lambda: torch.randn(3, 5, generator=generator),
        "normal_like": lambda: torch.randn(3, 5, generator=generator),
        "uniform": lambda: torch.rand((), generator=generator, dtype=torch.float64),
        "gaussian": lambda: torch.randn((), generator=generator, dtype=torch.float64),
    }[next(name for name, made in KINDS.items() if made is kind)]()
    assert torch.equal(kind(Draw([7], step=step, visit=visit))[0], expected)
    assert torch.equal(kind(Draw([7]).at(step).again(visit))[0], expected)
    assert torch.equal(
        kind(Draw([3, 7]).at(step).again(visit).take(torch.tensor([1])))[0], expected
    )


def test_no_step_and_visit_share_a_stream():
    """Step 1 at visit 1 is neither step 11 nor step 1 at visit 11."""
    found = [
        float(Draw([0], step=s, visit=v).uniform("a"))
        for s, v in itertools.product((-1, 0, 1, 2, 10, 11, 110, 111), (0, 1, 2, 10, 11))
    ]
    assert len(set(found)) == len(found)


def test_the_numbers_themselves():
    """Written out, so that no change of the keys or of the generator goes unseen."""
    draw = Draw([1234], step=5)
    assert draw.uniform("start").item() == UNIFORM and draw.gaussian(
        "start"
    ).item() == pytest.approx(GAUSSIAN, rel=1e-12)


@kinds
def test_global_randomness_is_untouched(kind):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    kind(Draw([1, 2]))
    assert torch.equal(torch.rand(3), expected)


def test_shapes_and_dtypes():
    draw = Draw(range(4))
    assert (
        draw.normal("a", (2, 3)).shape == (4, 2, 3)
        and draw.normal("a", ()).shape == (4,)
        and draw.normal("a", (2,)).dtype == torch.float32
    )
    assert draw.normal_like("a", torch.empty(4, 2, dtype=torch.float64)).dtype == torch.float64
    assert (
        draw.uniform("a").shape == draw.gaussian("a").shape == (4,)
        and draw.uniform("a").dtype == draw.gaussian("a").dtype == torch.float64
    )
    assert torch.equal(
        draw.normal("a", (2,)).double(),
        draw.normal_like("a", torch.empty(4, 2, dtype=torch.float64)),
    )


@pytest.mark.parametrize(
    "draw",
    [lambda d: d.normal("a", (20,)).double().flatten(), lambda d: d.gaussian("a")],
    ids=["normal", "gaussian"],
)
def test_moments_of_normals(draw):
    z = draw(Draw(range(4000)))
    assert abs(z.mean()) < 5 / len(z) ** 0.5 and abs(z.var() - 1) < 5 * (2 / len(z)) ** 0.5
    assert abs((z**4).mean() - 3) < 5 * (96 / len(z)) ** 0.5


def test_moments_of_uniforms():
    u = Draw(range(4000)).uniform("a")
    assert u.min() >= 0 and u.max() < 1
    assert (
        abs(u.mean() - 0.5) < 5 / (12 * 4000) ** 0.5
        and abs(u.var() - 1 / 12) < 5 * (1 / 180 / 4000) ** 0.5
    )


def test_neighbouring_seeds_steps_and_tags_are_uncorrelated():
    base = Draw(range(200)).normal("a", (50,)).flatten()
    for other in (
        Draw(range(1, 201)).normal("a", (50,)),
        Draw(range(200), step=1).normal("a", (50,)),
        Draw(range(200)).normal("b", (50,)),
    ):
        assert abs((base * other.flatten()).mean()) < 5 / len(base) ** 0.5


def test_seeds_are_integers_and_at_least_one():
    assert (
        checked_seeds((3, True)) == [3, 1]
        and checked_seeds(torch.tensor([5, -2])) == [5, -2]
        and checked_seeds(range(2)) == [0, 1]
    )
    with pytest.raises(ValueError, match=r"no samples; at least one seed is needed, seeds=\[0\]"):
        checked_seeds([])
    for wrong in (0, None, "ab", [1.5], [None]):
        with pytest.raises(
            ValueError,
            match=r"^seeds must be a list of integers, one for each sample, not .*; write e.g. "
            r"seeds=\[0, 1\]$",
        ):
            checked_seeds(wrong)
