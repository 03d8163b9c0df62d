"""What a guidance refuses, and how numbers of an expression are written."""

import pytest

from guidestar import Guided, cfg, parse
from helpers.toys import Spy, net


@pytest.mark.parametrize(
    "text", ["apg(3, eta=True)", "cfg(3, interval=(True, 2))", "icg(3, among=True)"]
)
def test_a_truth_is_no_number(text):
    with pytest.raises(ValueError, match="must be"):
        parse(text)


@pytest.mark.parametrize("of", ["both", "weak", ""])
def test_a_perturbation_is_of_a_pass_that_there_is(of):
    with pytest.raises(ValueError, match="of"):
        parse(f"pag(3, of={of!r})")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "expected a guidance, not 3"),
        (parse("cond | clip_x0(1)").posts[0], "is a post: write it after"),
    ],
)
def test_what_is_no_guidance(value, said):
    with pytest.raises(TypeError, match=said):
        Guided(value, {"main": net(Spy())})


@pytest.mark.parametrize(
    ("scale", "text"),
    [
        (3.0, "cfg(3)"),
        (2.5, "cfg(2.5)"),
        (1e14, "cfg(100000000000000)"),
        (1e15, "cfg(1000000000000000.0)"),
        (1e22, "cfg(1e+22)"),
        (-4.0, "cfg(-4)"),
    ],
)
def test_whole_numbers_are_written_without_a_point_up_to_ten_to_the_fifteenth(scale, text):
    assert str(cfg(scale)) == text and parse(text).terms[0].scale == scale
