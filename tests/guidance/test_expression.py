"""The expression language: what it reads, how it prints, and what it refuses, pointing at the
place.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

import guidestar
from guidestar import (
    AND,
    NOT,
    ExpressionError,
    Guided,
    Slot,
    apg,
    cfg,
    cfgpp,
    clamp,
    classifier,
    clip_x0,
    cond,
    cosine,
    linear,
    nag,
    neg,
    pag,
    parse,
    perp_neg,
    rescale,
    threshold,
    uncond,
)
from guidestar.guidance import Guidance
from helpers.toys import COND, NEGATIVE, Spy, net, noise, steps, toy


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("cond", cond),
        ("uncond", uncond),
        ("neg", neg),
        ("cfg(4)", Guidance(terms=(cfg(4),))),
        ("  cfg( 4 )\n", cfg(4) | clip_x0(1)),
        ("cfg(scale=4)", cfg(4)),
        ("cond + cfg(4)", cond + cfg(4)),
        ("uncond + classifier(10)", uncond + classifier(10)),
        ("neg+cfg(-2.5)+apg(+3)", neg + cfg(-2.5) + apg(3)),
        (
            "cfg(4, interval=(0.2, inf), schedule=cosine)",
            cfg(4, interval=(0.2, float("inf")), schedule=cosine),
        ),
        ("cfg(4, interval=[0.2, 3])", cfg(4, interval=(0.2, 3))),
        ("cfg(4, schedule=clamp(2))", cfg(4, schedule=clamp(2, linear))),
        (
            "cfg(4, schedule=clamp(2, schedule=clamp(-1, cosine)))",
            cfg(4, schedule=clamp(2, clamp(-1, cosine))),
        ),
        ("cfg([1, 2.5, -4])", cfg([1, 2.5, -4])),
        ("cfg((1, 2))", cfg([1, 2])),
        ("cfg(4, 'blurry, \"bad\"', 3)", cfg(4, negative='blurry, "bad"', channels=3)),
        ("cfg(4, negative='犬 🐕 é')", cfg(4, negative="犬 🐕 é")),
        ("cfg(4, negative=7)", cfg(4, negative=7)),
        ("AND(7.5, 'a') + NOT(2, 'b') + cfgpp(.6)", AND(7.5, "a") + NOT(2, "b") + cfgpp(0.6)),
        (
            "classifier(3, 'boot', net='other', form='mean', variance='large')",
            classifier(3, "boot", "other", form="mean", variance="large"),
        ),
        (
            "classifier(3, through='cond', target=[1, 2])",
            classifier(3, through="cond", target=[1, 2]),
        ),
        (
            "cfg(4) | rescale(0.7) | threshold(0.9) | clip_x0()",
            cfg(4) | rescale(0.7) | threshold(0.9) | clip_x0(),
        ),
        ("(cfg(4) + apg(2)) | rescale(space='eps')", cfg(4) + apg(2) | rescale(space="eps")),
        ("cfg(4) + (apg(2) + AND(1))", cfg(4) + apg(2) + AND(1)),
        ("cfg(4) # a note", cfg(4)),
    ],
)
def test_reads(text, made):
    if text.endswith("\n"):
        made = cfg(4)
    made = made if isinstance(made, Guidance) else Guidance(terms=(made,))
    assert parse(text) == made
    assert parse(str(made)) == made


def test_prints():
    assert str(cond) == "cond" and str(uncond + cfg(4.0)) == "uncond + cfg(4)"
    assert str(Guidance()) == "cond" and str(cond + cfg(1)) == "cond + cfg(1)"
    assert str(cfg(4, channels=3, interval=(0.2, 3))) == "cfg(4, interval=(0.2, 3), channels=3)"
    assert (
        str(cfg([1, 2.5], schedule=clamp(0.125))) == "cfg([1, 2.5], schedule=clamp(0.125, linear))"
    )
    assert str(classifier(3, target=[1])) == "classifier(3, target=[1])"
    assert (
        str(cfg(4) + apg(2) | rescale(0.7) | clip_x0(1))
        == "cfg(4) + apg(2) | rescale(0.7) | clip_x0(1)"
    )
    assert "<function>" in str(cfg(4, schedule=lambda w, step: w)) and "<Condition>" in str(
        NOT(1, guidestar.Condition())
    )


def test_a_sum_in_python_is_the_sum_in_text():
    assert cond.base is Slot.COND and (uncond + cfg(4)).base is Slot.NULL
    assert (
        (cfg(4) + apg(2)) + AND(1)
        == cfg(4) + (apg(2) + AND(1))
        == parse("cfg(4) + apg(2) + AND(1)")
    )
    for wrong in (lambda: cfg(4) + 3, lambda: cfg(4) | cfg(3), lambda: cfg(4) + rescale(0.7)):
        with pytest.raises(TypeError):
            wrong()


REFUSED = [
    # code
    ("__import__('os').system('touch /tmp/guidestar-was-here')", 0, "only methods can be called"),
    ("cfg(__import__('os').system('x'))", 4, "expected a number"),
    ("cfg(3).__class__", 0, "expected a base"),
    ("cfg.__init__(3)", 0, "only methods can be called"),
    ("cfg((lambda: 3)())", 4, "expected a number"),
    ("cfg([x for x in (1, 2)])", 4, "expected a number"),
    ("cfg(f'{3}')", 4, "expected a number"),
    ("cfg(2 ** 9)", 4, "expected a number"),
    ("cfg(3) ** 2", 0, "expected a base"),
    ("cfg(3) + 2 * cfg(3)", 9, "expected a base"),
    ("cfg(1 + 1)", 4, "expected a number"),
    ("cfg(x := 3)", 4, "expected a number"),
    ("cfg(3 if True else 4)", 4, "expected a number"),
    ("cfg({'a': 1})", 4, "expected a number"),
    ("cfg(b'3')", 4, "expected a number"),
    ("cfg(3j)", 4, "expected a number"),
    ("cfg(...)", 4, "expected a number"),
    ("cfg(*[3])", 4, "expected a number"),
    ("cfg(3, **{})", 7, "'**' has no meaning here"),
    ("cfg(3)[0]", 0, "expected a base"),
    ("cfg(3, negative=[1][0])", 16, "expected a number"),
    ("eval('1')", 0, "unknown name 'eval'"),
    ("cfg(await x)", 4, "expected a number, a string, a list, or a weight schedule"),
    ("import os", 0, "this is not an expression"),
    ("cfg(3); cfg(2)", 6, "this is not an expression"),
    # typos
    ("cgf(3)", 0, "unknown name 'cgf'; did you mean 'cfg'?"),
    ("cfg(3) + clasifier(2)", 9, "did you mean 'classifier'?"),
    ("unconditional + cfg(3)", 0, "did you mean 'uncond'?"),
    ("cfg(4, 'é犬') + cgf(3)", 15, "did you mean 'cfg'?"),
    ("cfg(3, intervall=(1, 2))", 7, "cfg has no argument 'intervall'; did you mean 'interval'?"),
    ("cfg(3, schedule=linaer)", 16, "did you mean 'linear'?"),
    ("cfg(3) | rescal(0.7)", 9, "did you mean 'rescale'?"),
    ("zzz", 0, "there are AND, NOT"),
    # grammar
    ("", 0, "the expression is empty"),
    ("   ", 0, "the expression is empty"),
    ("3", 0, "expected a base"),
    ("'cfg(3)'", 0, "expected a base"),
    ("cfg", 0, "cfg needs its scale: write cfg(3)"),
    ("rescale", 0, "rescale needs its scale: write rescale(…)"),
    ("cfg()", 0, "cfg needs its scale: write cfg(3)"),
    ("cond()", 0, "unknown name 'cond'"),
    ("cfg(3", 3, "'(' was never closed"),
    ("cfg(3))", 6, "unmatched ')'"),
    ("cfg(3) +", 8, "invalid syntax"),
    ("cfg(3) cfg(2)", 7, "invalid syntax"),
    ("rescale(0.7)", 0, "rescale(0.7) is a post: write it after '|'"),
    ("cfg(3) + rescale(0.7)", 9, "is a post: write it after '|'"),
    ("rescale(0.7) + cfg(3)", 0, "is a post: write it after '|'"),
    ("cfg(3) | rescale(0.7) + cfg(2)", 9, "is a post: write it after '|'"),
    ("cond | cfg(3)", 7, "after '|' there must be a post"),
    ("(cfg(3) | clip_x0(1)) + cfg(2)", 24, "terms must come before '|'"),
    ("cfg(3) + cond", 9, "the base 'cond' must come first in the sum"),
    ("cond + cond", 7, "and only once"),
    ("cfg(3)\ncfg(2)", 0, "one line of at most 100000 characters"),
    (
        "cfg(3, 'a', 1, 2)",
        15,
        "cfg takes at most 3 arguments without a name: scale, negative, channels",
    ),
    ("cfg(3, scale=2)", 13, "scale is given twice"),
    ("cfg(3, channels=1, channels=2)", 28, "channels is given twice"),
    # values
    ("cfg('3')", 4, "cfg: scale must be a number or a list of numbers, not '3'"),
    ("cfg(True)", 4, "scale must be a number"),
    ("cfg(None)", 4, "scale must be a number"),
    ("cfg(inf)", 4, "numbers must be finite"),
    ("cfg(nan)", 4, "unknown name 'nan'"),
    ("cfg(1e999)", 4, "this number is too large"),
    ("cfg(-1" + "0" * 400 + ")", 5, "this number is too large"),
    ("cfg([1, inf])", 0, "the scale must be a finite number"),
    ("cfg([])", 0, "the scale must be a finite number"),
    ("cfg([1, 'a'])", 4, "scale must be a number or a list of numbers, not [1, 'a']"),
    (
        "cfg(3, schedule='linear')",
        16,
        "cfg: schedule must be a weight schedule (linear, cosine, clamp(…)) or None, not 'linear'",
    ),
    ("cfg(3, schedule=clamp)", 16, "clamp needs its floor: write clamp(3)"),
    (
        "cfg(3, schedule=line)",
        16,
        "unknown name 'line'; did you mean 'linear'? there are clamp(…), cosine, linear",
    ),
    ("pag(3, layers=[1])", 14, "pag: layers must be a string or a list of strings, not [1]"),
    (
        "perp_neg(3, negative=[1.5])",
        21,
        "negative must be a string or a whole number or a list of strings or whole numbers or "
        "None, not [1.5]",
    ),
    ("cfg(-'3')", 4, "expected a number"),
    ("cfg(linear)", 4, "scale must be a number"),
    ("cfg(3, channels='a')", 16, "channels must be a whole number or None"),
    ("cfg(3, channels=2.5)", 16, "channels must be a whole number or None"),
    ("cfg(3, negative=[1])", 16, "negative must be a string or a whole number or None"),
    ("cfg(3, interval=4)", 16, "interval must be two numbers or None"),
    ("cfg(3, interval=('a', 2))", 16, "interval must be two numbers or None"),
    ("cfg(3, interval=(1,))", 16, "interval must be two numbers or None, not (1,)"),
    ("cfg(3, interval=(3, 1))", 0, "must be two numbers with 0 <= lo < hi, not (3, 1)"),
    ("cfg(3, interval=(-1, 1))", 0, "must be two numbers with 0 <= lo < hi"),
    ("cfg(3, schedule=clamp())", 16, "clamp needs its floor"),
    ("cfg(3, schedule=clamp('a'))", 22, "floor must be a number"),
    ("cfg(3, schedule=clamp(1, 2))", 25, "clamp: schedule must be"),
    ("apg(3, eta='x')", 11, "apg: eta must be a number"),
    ("apg(3, radius=-1)", 0, "the radius must be positive"),
    ("classifier(3, form='x')", 19, "form must be 'score' or 'mean'"),
    ("classifier(3, log_prob='x')", 23, "log_prob must be None"),
    ("cond | rescale(2)", 7, "the scale must be in [0, 1]"),
    ("cond | rescale(along='rows')", 21, "along must be 'sample' or 'last' or 'third' or 'norm'"),
    ("cond | rescale('a')", 15, "rescale: scale must be a number"),
]


@pytest.mark.parametrize(("text", "column", "said"), REFUSED)
def test_refuses_pointing_at_the_place(text, column, said):
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    first, shown, pointer = str(caught.value).split("\n")
    assert first.startswith("guidance: ") and said in first
    assert shown == "  " + text.strip().split("\n")[0]
    assert pointer == " " * (column + 2) + "^"
    assert isinstance(caught.value, ValueError) and caught.value.__cause__ is None


@pytest.mark.parametrize(
    "text",
    [
        "(" * 150 + "cfg(3)" + ")" * 150,
        "cfg(3)" + " + cfg(3)" * 220,
        "cfg(" + "[" * 150 + "]" * 150 + ")",
        "cfg(" + "-" * 1900 + "3)",
        "(" * 900 + "cfg(3)" + ")" * 900,
        "cfg(3)" + "+cfg(3)" * 400,
        "cfg(3, '" + "a" * 3000 + "')",
        "+" * 1999,
        "cfg(3)\0",
        "cfg(3, '\ud800')",
        "cfg(3, '\\ud800')",
        "cfg(3)\r+cfg(2)",
        "cfg(3)\u2028+cfg(2)",
        "\\",
        "cfg(0x" + "f" * 1000 + ")",
        "cfg(" + "9" * 1900 + ")",
    ],
)
def test_odd_texts_parse_or_are_refused_clearly(text):
    try:
        assert parse(str(parse(text))) == parse(text)
    except ExpressionError as refused:
        first, _, pointer = str(refused).split("\n")
        assert first.startswith("guidance: ") and 15 < len(first) < 2500 and pointer.strip() == "^"


def test_a_long_sum_and_nested_parentheses_parse():
    assert len(parse("cfg(3)" + " + cfg(3)" * 200).terms) == 201
    assert parse("(" * 60 + "cfg(3)" + ")" * 60) == parse("cfg(3)")


def test_a_guided_run_reads_text_and_refuses_it_the_same_way():
    nets = {"main": net(Spy())}
    x, step = noise(2, 4), steps("flow")[0]
    assert Guided("cfg(3)", nets)(x, step)[0].x0.equal(Guided(cfg(3), nets)(x, step)[0].x0)
    with pytest.raises(ExpressionError, match="did you mean 'cfg'"):
        Guided("cgf(3)", nets)
    for wrong in (3, rescale(0.7), cfg):
        with pytest.raises(TypeError):
            Guided(wrong, nets)


@pytest.mark.parametrize("scale", [True, "3", None, [1.0, "x"], [False]])
def test_a_scale_that_is_no_number_is_refused(scale):
    with pytest.raises(
        ValueError,
        match=r"^cfg: the scale must be a finite number, or a list of one for each sample, not ",
    ):
        cfg(scale)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: cfg(3, negative=["a", "b"]),
            "cfg: negative must be a string or a whole number or a Condition or None, not ['a', "
            "'b']",
        ),
        (
            lambda: apg(3, negative=1.5),
            "apg: negative must be a string or a whole number or a Condition or None, not 1.5",
        ),
        (
            lambda: nag(3, negative=["a", "b"]),
            "nag: negative must be a string or a whole number or a Condition or None, not ['a', "
            "'b']",
        ),
        (
            lambda: nag(3, layers=None),
            "nag: layers must be a string or a list of strings, not None",
        ),
        (
            lambda: pag(3, layers=None),
            "pag: layers must be a string or a list of strings, not None",
        ),
        (lambda: pag(3, layers=[3]), "pag: layers must be a string or a list of strings, not [3]"),
        (
            lambda: perp_neg(3, negative=[["a"]]),
            "perp_neg: negative must be a string or a whole number or a Condition or a list of "
            "strings or whole numbers or Conditions or None, not [['a']]",
        ),
        (
            lambda: perp_neg(3, weights="a"),
            "perp_neg: weights must be a number or a list of numbers, not 'a'",
        ),
        (
            lambda: AND(3, ["a"]),
            "AND: concept must be a string or a whole number or a Condition or None, not ['a']",
        ),
        (
            lambda: NOT(3, None),
            "NOT: concept must be a string or a whole number or a Condition, not None",
        ),
    ],
)
def test_values_that_python_alone_can_give_are_refused_when_made(make, said):
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        make()


def test_numbers_of_numpy_and_torch_are_numbers():
    for three in (
        np.float32(3),
        np.float64(3),
        np.int64(3),
        np.array(3),
        torch.tensor(3.0),
        torch.tensor(3),
    ):
        assert cfg(three) == cfg(3) and str(cfg(three)) == "cfg(3)"
        assert cfg([three, 2.5]) == cfg([3, 2.5])
    for several in (np.array([3, 0.5]), torch.tensor([3, 0.5])):
        assert (
            cfg(several) == cfg([3, 0.5])
            and hash(cfg(several)) == hash(cfg([3, 0.5]))
            and str(cfg(several)) == "cfg([3, 0.5])"
        )
    assert cfg(2, interval=(np.float32(0.5), torch.tensor(2.0))) == cfg(2, interval=(0.5, 2))
    assert cfg(2, negative=np.int64(3)) == cfg(2, negative=3)
    for wrong in (
        torch.tensor(float("nan")),
        torch.ones(2, 2),
        np.array([]),
        torch.tensor(True),
        np.array(["a"]),
    ):
        with pytest.raises(
            ValueError,
            match=r"^cfg: the scale must be a finite number, or a list of one for each sample, "
            r"not ",
        ):
            cfg(wrong)


@pytest.mark.parametrize("made", [torch.tensor(0.5), np.float32(0.5), np.array(0.5), 0.5])
def test_a_schedule_may_return_a_single_number_of_any_kind(made):
    x, step = noise(3, 4), steps("flow")[0]
    out = Guided(cfg([2, 3, 4], schedule=lambda w, step: made), {"main": net(Spy())})(x, step)[0]
    c, n = (toy(x, step.t, v) for v in (COND, NEGATIVE))
    torch.testing.assert_close(out.x0, c + 0.5 * (c - n))
