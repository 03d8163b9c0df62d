"""FDG against a Laplacian pyramid written out with plain loops, on data of one, two and three
dimensions, of odd sizes too.
"""

import itertools
import math

import pytest
import torch

from guidestar import Guided, fdg, parse
from helpers.scenes import scenes
from helpers.toys import WORDS, Spy, col, net, noise, steps

GAINS = (1.0, 0.4, -0.5)


def along(x, axis, function):
    """Apply ``function`` (a list of numbers to another) along one axis."""
    x = x.movedim(axis, -1)
    rows = [
        torch.tensor(function(row.tolist()), dtype=x.dtype) for row in x.reshape(-1, x.shape[-1])
    ]
    return torch.stack(rows).reshape(*x.shape[:-1], -1).movedim(-1, axis)


def mirrored(i, n):
    """Index beyond an end: reflected, or the end itself where there are too few."""
    return (-i if i < 0 else 2 * (n - 1) - i if i >= n else i) if n > 2 else min(max(i, 0), n - 1)


def blur(row):
    n = len(row)
    return [
        sum(
            w * row[mirrored(i + d, n)]
            for d, w in zip((-2, -1, 0, 1, 2), (1, 4, 6, 4, 1), strict=True)
        )
        / 16
        for i in range(n)
    ]


def resize(row, size):
    """Linear interpolation between the centres of cells."""
    out = []
    for j in range(size):
        at = min(max((j + 0.5) * len(row) / size - 0.5, 0), len(row) - 1)
        low = math.floor(at)
        high = min(low + 1, len(row) - 1)
        out.append(row[low] + (at - low) * (row[high] - row[low]))
    return out


def axes(x):
    """Of a vector or sound its one axis; of a picture, or each frame of a video, the last two."""
    return {2: (1,), 3: (2,), 4: (2, 3), 5: (3, 4)}[x.ndim]


def down(x):
    for axis in axes(x):
        x = along(x, axis, lambda row: resize(blur(row), (len(row) + 1) // 2))
    return x


def up(x, shape):
    for axis in axes(x):
        x = along(x, axis, lambda row, axis=axis: blur(resize(row, shape[axis])))
    return x


def pyramid(x, bands):
    """The bands of ``x``, from the finest to the coarsest, each at its own size."""
    levels = []
    for _ in range(bands - 1):
        smaller = down(x)
        levels.append(x - up(smaller, x.shape))
        x = smaller
    return [*levels, x]


def built(levels):
    """The image of a pyramid."""
    x = levels[-1]
    for level in reversed(levels[:-1]):
        x = up(x, level.shape) + level
    return x


def expected(scene, s, gains, bad):
    bands = pyramid(scene.c - bad, len(gains))
    return scene.c + built([(s - 1) * g * band for g, band in zip(gains, bands, strict=True)])


SHAPES = [(3, 24), (3, 2, 7), (3, 2, 5, 8), (3, 1, 3, 1), (3, 1, 4, 3, 5), (3, 4, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("place", ["vp", "mixed"])
def test_formula(place, shape):
    scene = scenes(place, shape)[0]
    scene.check(fdg(3, gains=GAINS), expected(scene, 3, GAINS, scene.n))
    scene.check("fdg(3)", expected(scene, 3, (1, 4 / 9), scene.n))


@pytest.mark.parametrize("place", ["ve", "flow"])
def test_formula_on_other_schedules(place):
    scene = scenes(place, (3, 2, 5, 4))[0]
    scene.check("fdg(0, [1, 0.5])", expected(scene, 0, (1, 0.5), scene.n))
    scene.check(
        "fdg(4, [0.2, 1], negative='dog')", expected(scene, 4, (0.2, 1), scene.d(WORDS["dog"]))
    )
    scene.check(
        "fdg([4, 1, -2], [0.2, 1])",
        expected(scene, col(torch.tensor([4.0, 1, -2]), scene.x), (0.2, 1), scene.n),
    )


def test_ten_is_the_papers_ten_and_five():
    """Each band at its own scale of classifier-free guidance, as the paper's algorithm has it."""
    scene = scenes("vp", (3, 2, 6, 6))[0]
    high, low = (pyramid(d, 2) for d in (scene.c, scene.n))
    scene.check(
        "fdg(10)", built([n + s * (c - n) for s, c, n in zip((10, 5), high, low, strict=True)])
    )


@pytest.mark.parametrize("on", [s for s in itertools.product((0, 1), repeat=3) if any(s)], ids=str)
def test_any_subset_of_bands(on):
    scene = scenes("flow", (3, 2, 5, 9))[0]
    scene.check(fdg(5, gains=on), expected(scene, 5, on, scene.n))


def test_the_bands_add_up_to_cfg(scene):
    for gains in ((1,), (1, 1), (1, 1, 1, 1)):
        scene.check(fdg(4, gains=gains), scene.n + 4 * (scene.c - scene.n))


def test_a_constant_difference_is_all_in_the_coarsest_band():
    for shape in SHAPES:
        constant = Spy(lambda x, level, c: torch.ones_like(x) * col(c, x))
        x = noise(*shape)
        for gains, factor in (((1, 0), 0), ((0, 1), 1), ((1, 1, 0), 0), ((0, 0, 1), 1)):
            out, _ = Guided(fdg(3, gains=gains), {"main": net(constant)})(x, steps("vp")[0])
            torch.testing.assert_close(out.x0, torch.full_like(x, 1 + factor * 2 * 1.7))


def test_two_steps():
    first, second = scenes("mixed", (3, 2, 5, 4))
    _, state = first.run("fdg(3)")
    torch.testing.assert_close(
        second.run("fdg(3)", state)[0].x0, expected(second, 3, (1, 4 / 9), second.n)
    )
    assert not any(state)


def test_what_makes_no_sense_is_refused():
    for text in ("fdg(3, gains=[])", "fdg(3, gains=2)", "fdg(3, ['high'])"):
        with pytest.raises(ValueError, match="fdg: gains must be"):
            parse(text)


def test_diffusers_guider_fails_with_a_band_switched_off(monkeypatch):
    """It appends the conditional band before it was ever set."""
    module = pytest.importorskip("diffusers.guiders.frequency_decoupled_guidance")
    monkeypatch.setattr(module, "_CAN_USE_KORNIA", True)
    monkeypatch.setattr(module, "build_laplacian_pyramid_func", pyramid)
    monkeypatch.setattr(
        module,
        "upsample_and_blur_func",
        lambda x: up(x, [*x.shape[:2], *(2 * n for n in x.shape[2:])]),
    )
    scene = scenes("vp", (3, 2, 8, 4))[0]

    def theirs(scales):
        guider = module.FrequencyDecoupledGuidance(guidance_scales=scales)
        guider.set_state(step=3, num_inference_steps=10, timestep=torch.tensor(0))
        return guider.forward(scene.c, scene.n).pred

    torch.testing.assert_close(theirs([10.0, 5.0]), scene.run("fdg(10)")[0].x0)
    with pytest.raises(UnboundLocalError):
        theirs([1.0, 5.0])
    scene.check("fdg(5, [0, 1])", expected(scene, 5, (0, 1), scene.n))


def test_a_pyramid_has_sixteen_bands_at_most():
    assert len(fdg(3, gains=[1.0] * 16).gains) == 16
    with pytest.raises(ValueError, match="fdg: there may be gains for at most 16 bands, not 17"):
        fdg(3, gains=[1.0] * 17)
