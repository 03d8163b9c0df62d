"""Classes of users: what `register` refuses, what is checked of them, and how they are written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field, make_dataclass
from typing import Any, ClassVar, Literal

import pytest
import torch
from typer.testing import CliRunner

import guidestar as gs
from guidestar.cli import app
from guidestar.guidance.bases.conditional_contrast import Conditioned
from guidestar.guidance.bases.perturbation_contrast import Perturbed
from guidestar.guidance.expression import ExpressionError, parse, register
from guidestar.io.images import read_settings

ROW: Any = object()


@pytest.fixture(autouse=True)
def methods():
    """Take back what a test registers."""
    before = dict(gs.METHODS)
    yield
    gs.METHODS.clear()
    gs.METHODS.update(before)


class Plain(gs.Contrast):
    """A contrast to derive from."""

    def good(self, step):
        return gs.COND

    def bad(self, step):
        return gs.NULL


def named(name, base=Plain, **more):
    return dataclass(frozen=True)(type("Z", (base,), {"name": name, **more}))


@pytest.mark.parametrize(
    "name",
    ["cond", "uncond", "neg", "null", "linear", "cosine", "clamp", "inf", "nan", "not", "None"],
)
def test_a_word_of_the_language_is_no_name(name):
    before = dict(gs.METHODS)
    with pytest.raises(ValueError, match=rf"class Z has the name '{name}', a word of the expr"):
        register(named(name))
    assert before == gs.METHODS


@pytest.mark.parametrize("name", ["", "a b", "1a", "a-b", "größe", 3])
def test_a_name_is_an_identifier(name):
    with pytest.raises(ValueError, match="a name in expressions has letters, digits and _"):
        register(named(name))


@pytest.mark.parametrize("name", ["cfg", "AND", "rescale", "dps"])
def test_a_name_that_is_taken_is_refused(name):
    taken = gs.METHODS[name]
    with pytest.raises(ValueError, match=rf"'{name}', which is taken by guidestar\.guidance\."):
        register(named(name))
    assert gs.METHODS[name] is taken


def test_a_class_without_a_name_is_refused():
    with pytest.raises(ValueError, match=r'class Z has no name in expressions; write name = "…"'):
        register(dataclass(frozen=True)(type("Z", (Plain,), {})))


def test_a_derived_class_needs_a_name_of_its_own():
    @dataclass(frozen=True)
    class Mine(type(gs.cfg(3))):
        pass

    with pytest.raises(ValueError, match="'cfg', which is taken by"):
        register(Mine)


def test_the_same_class_may_be_registered_again():
    first, second = register(named("mine")), named("mine")
    assert register(second) is second and gs.METHODS["mine"] is second is not first
    other = named("mine")
    other.__qualname__ = "Other"
    with pytest.raises(ValueError, match=r"Other has the name 'mine', which is taken by .*\.Z;"):
        register(other)


@pytest.mark.parametrize("thing", [int, 3, gs.cfg(3), gs.DDIM])
def test_only_terms_and_posts_are_registered(thing):
    with pytest.raises(TypeError, match="register takes a class derived from Direction, Contrast"):
        register(thing)


def test_a_class_that_is_no_dataclass_is_refused():
    class Bare(Plain):
        name = "bare"

    with pytest.raises(ValueError, match=r"Bare is no dataclass; .*@dataclass\(frozen=True\)"):
        register(Bare)


@pytest.mark.parametrize("value", [0.1, None, "x", (1, 2), True])
def test_an_argument_without_an_annotation_is_refused(value):
    with pytest.raises(ValueError, match=r"limit = .* without an annotation.*; write limit: "):
        register(named("mine", limit=value))


def test_what_is_no_argument_passes():
    @register
    @dataclass(frozen=True)
    class Fine(Plain):
        lo: float = 1.0
        size: ClassVar[int] = 3
        name = "fine"
        neutral = 1.0
        per_sample = ("scale",)
        traits = gs.cfg(3).traits
        STEPS = 3
        _kept = 4

        @property
        def half(self):
            return self.lo / 2

        @staticmethod
        def helped():
            return 1

    assert str(parse("fine(3, lo=2)")) == "fine(3, lo=2)"


def test_a_field_may_not_hide_what_every_term_has():
    hiding = make_dataclass("Z", [("weight", float, 1.0)], bases=(Plain,), frozen=True)
    hiding.name = "hiding"
    with pytest.raises(ValueError, match="has the argument 'weight', which is something else"):
        register(hiding)
    called = make_dataclass("Z", [("name", str, "called")], bases=(Plain,), frozen=True)
    with pytest.raises(ValueError, match=r"'name', .* write name = \"…\" without an annotation"):
        register(called)


KINDS: list[tuple[Any, bool]] = [
    (float, True),
    (int | None, True),
    (Literal["a", 2], True),
    (list[float], True),
    (Sequence[str], True),
    (tuple[float, int], True),
    (tuple[str, ...], True),
    (list[list[float]], True),
    (str | Callable[[float], float], True),
    (dict[str, float], False),
    (list, False),
    (tuple, False),
    (Any, False),
    (Callable[[float], float], False),
    (list[Any], False),
    (bytes, False),
    (Literal[b"x"], False),
]


@pytest.mark.parametrize(("kind", "writes"), KINDS, ids=str)
def test_arguments_are_of_kinds_that_an_expression_writes(kind, writes):
    made = make_dataclass("Z", [("lo", kind, field(default=None))], bases=(Plain,), frozen=True)
    made.name = "mine"
    if writes:
        assert register(made) is made
    else:
        with pytest.raises(ValueError, match="the argument 'lo' of a type that no expression can"):
            register(made)


def test_an_annotation_that_cannot_be_read_is_refused():
    made = make_dataclass("Z", [("lo", "Unheard", 1)], bases=(Plain,), frozen=True)
    made.name = "mine"
    with pytest.raises(ValueError, match=r"an annotation that cannot be read \(.*Unheard.*import"):
        register(made)


def test_arguments_of_the_base_are_declared():
    with pytest.raises(ValueError, match="class Z lacks the argument 'negative' of its base"):
        register(named("mine", base=Conditioned))


def test_an_argument_that_a_base_asks_for_may_be_declared():
    register(Negated)
    assert str(parse("negated(3)")) == "negated(3, negative=None)"


def test_arguments_that_are_no_fields_are_refused():
    made = make_dataclass("Z", [("lo", InitVar[float], 1.0)], bases=(Plain,), frozen=True)
    made.name = "mine"
    with pytest.raises(ValueError, match=r"made with other arguments than its fields \(lo\)"):
        register(made)

    def init(self, strength):
        object.__setattr__(self, "scale", strength)

    with pytest.raises(ValueError, match="leave __init__ to the dataclass"):
        register(
            dataclass(frozen=True, init=False)(type("Z", (Plain,), {"name": "z", "__init__": init}))
        )


def test_a_class_that_lacks_a_method_is_refused():
    with pytest.raises(ValueError, match="class Z does not define bad, good"):
        register(named("mine", base=gs.Contrast))


OVERRIDES: list[tuple[str, Any, str]] = [
    (
        "weight",
        lambda self, step: 1.0,
        r"weight\(self, step\); .* weight\(self, step, rows=None, s",
    ),
    ("good", lambda self: gs.COND, r"good\(self\); it is called as good\(self, step\)"),
    (
        "shape",
        lambda self, good, bad: good,
        r"shape\(self, good, bad\); .*\(self, good, bad, live\)",
    ),
    ("push", lambda self: None, r"push\(self\); it is called as push\(self, live, \*predictions\)"),
    ("traits", lambda self: None, "defines traits as a function; write @property above it"),
    ("bind", lambda self: self, r"it is called as bind\(self, context\)"),
]


@pytest.mark.parametrize(("name", "function", "said"), OVERRIDES, ids=[o[0] for o in OVERRIDES])
def test_methods_take_what_they_are_called_with(name, function, said):
    with pytest.raises(ValueError, match=said):
        register(named("mine", **{name: function}))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("weight", lambda self, step, rows=None, state=None: 1.0),
        ("weight", lambda self, *given: 1.0),
        ("push", lambda self, live, good, bad: None),
        ("push", lambda self, live, *given: None),
        ("good", lambda self, step, more=3: gs.COND),
    ],
)
def test_other_ways_to_take_it_pass(name, function):
    register(named("mine", **{name: function}))


@dataclass(frozen=True)
class Forgetful(Plain):
    """Has a check of its own, and forgets those of its base."""

    lo: float = 1.0
    name = "forgetful"

    def __post_init__(self):
        if self.lo == 7:
            raise ValueError("not 7")


@dataclass(frozen=True)
class Heir(Forgetful):
    hi: list[float] | None = None
    name = "heir"

    def __post_init__(self):
        pass


@dataclass(frozen=True)
class NoLayers(Perturbed):
    name = "no_layers"

    def __post_init__(self):
        pass

    def change(self):
        return ROW


@dataclass(frozen=True)
class Negated(Conditioned):
    negative: str | None = None
    name = "negated"

    def __post_init__(self):
        pass


@dataclass(frozen=True, slots=True)
class Slotted(Plain):
    lo: float = 1.0
    name = "slotted"

    def __post_init__(self):
        pass


@pytest.mark.parametrize("kind", [Forgetful, Heir, Slotted, NoLayers, Negated])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"interval": (5, 1)}, "0 <= lo < hi"),
        ({"every": 0}, "every must be a whole number"),
        ({"schedule": 3}, "the schedule must be"),
        ({"scale": "a"}, "the scale must be a finite number"),
    ],
)
def test_the_checks_of_the_base_run_though_super_is_not_called(kind, wrong, said):
    with pytest.raises(ValueError, match=f"{kind.name}: .*{said}"):
        kind(**{"scale": 3, **wrong})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Forgetful(3, lo=7), "not 7"),
        (lambda: Heir(3, lo=7), "not 7"),
        (lambda: NoLayers(3, of="x"), "of must be cond, uncond or neg"),
        (lambda: Negated(3, negative=2.5), "negated: negative must be"),
        (lambda: Forgetful(3, lo="a"), "forgetful: lo must be a number, not 'a'"),
        (lambda: Heir(3, hi=["a"]), "heir: hi must be a list of numbers or None"),
        (lambda: Heir(3, lo=True), "heir: lo must be a number, not True"),
        (lambda: Flip("left"), "flip: by must be a whole number, not 'left'"),
    ],
)
def test_arguments_are_checked_however_the_term_is_made(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_lists_become_tuples_so_that_terms_can_be_hashed():
    assert Heir(3, hi=[1, 2]).hi == (1, 2) and hash(Heir(3, hi=[1, 2])) == hash(Heir(3, hi=(1, 2)))


@dataclass(frozen=True)
class Flip(gs.Post):
    by: int = 1
    name = "flip"

    def apply(self, prediction, live, *predictions):
        return prediction


@dataclass(frozen=True)
class Bare(gs.Post):
    name = "bare"

    def apply(self, prediction, live, *predictions):
        return prediction


@dataclass(frozen=True, kw_only=True)
class Keyed(gs.Post):
    by: int
    name = "keyed"

    def apply(self, prediction, live, *predictions):
        return prediction


@dataclass(frozen=True)
class Full(Plain):
    lo: float = -2.0
    _: KW_ONLY
    words: Sequence[str] = ()
    pair: tuple[int, str] | None = None
    counted: int = field(default=0, init=False)
    name = "full"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("full(3)", "full(3, lo=-2, words=[], pair=None)"),
        ("full(3, 4)", "full(3, lo=4, words=[], pair=None)"),
        ("full(3, every=2)", "full(3, every=2, lo=-2, words=[], pair=None)"),
        ("full(3, words=['a'], pair=(1, 'b'))", "full(3, lo=-2, words=['a'], pair=[1, 'b'])"),
        ("cfg(3, interval=None)", "cfg(3)"),
        ("cfg(3) | flip()", "cfg(3) | flip(1)"),
        ("cfg(3) | bare()", "cfg(3) | bare()"),
        ("cfg(3) | keyed(by=2)", "cfg(3) | keyed(by=2)"),
        ("heir(3)", "heir(3, lo=1, hi=None)"),
    ],
)
def test_what_a_user_declares_is_written_whole(text, whole):
    for kind in (Full, Flip, Bare, Keyed, Heir):
        register(kind)
    assert str(parse(text)) == whole and parse(whole) == parse(text)


def test_an_argument_of_fixed_length_has_a_kind_for_each():
    register(Full)
    with pytest.raises(ExpressionError, match="full: pair must be"):
        parse("full(3, pair=(1, 2))")


def test_a_record_keeps_its_meaning_when_a_default_changes():
    """The record of a run is written by one version of a class, and read by a later one."""

    def version(lo):
        kind = make_dataclass("Ramped", [("lo", float, lo)], bases=(Plain,), frozen=True)
        kind.name = "ramped"
        return register(kind)

    version(-2.0)
    record = str(parse("ramped(3)"))
    version(-6.0)
    assert parse(record).terms[0].lo == -2.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("full", "full needs its scale: write full(3)"),
        ("full()", "full needs its scale: write full(3)"),
        ("cfg(3) | bare", "write bare()"),
        ("cfg(3) | keyed()", "keyed needs its by: write keyed(by=3)"),
    ],
)
def test_what_lacks_is_shown_as_it_is_written(text, said):
    for kind in (Full, Bare, Keyed):
        register(kind)
    with pytest.raises(ExpressionError) as caught:
        parse(text)
    assert caught.value.problem == said


def test_every_method_of_the_library_could_be_registered():
    from guidestar.guidance.registering import check_method

    for kind in list(gs.METHODS.values()):
        check_method(kind, set(), gs.METHODS)
    assert sys.modules[gs.METHODS["cfg"].__module__].__name__.startswith("guidestar.")


@dataclass(frozen=True)
class Scaled:
    """A perturbation with an argument."""

    factor: float
    kept: int = 1
    name: ClassVar[str] = "scaled"

    def __call__(self, denoiser, rows=None, inputs=None):
        raise NotImplementedError


@dataclass(frozen=True)
class Flat(Perturbed):
    factor: float = 0.0
    name = "flat"

    def change(self):
        return Scaled(self.factor)


def test_a_plan_tells_passes_apart_that_differ_in_an_argument():
    guided = gs.Guided(Flat(1, factor=0.5) + Flat(2, factor=0.7), lambda x, level, cond: x)
    shown = str(guided.plan(gs.uniform(gs.VP.linear(), 1)))
    assert "uncond scaled[factor=0.5], uncond scaled[factor=0.7]" in shown
    alone = gs.Guided(Flat(1, factor=0.5), lambda x, level, cond: x)
    assert "uncond, uncond scaled\n" in str(alone.plan(gs.uniform(gs.VP.linear(), 1)))


def test_a_plan_counts_passes_that_differ_in_what_has_no_name():
    from guidestar.guidance.plan import label_passes

    first, second = (gs.Pass(cond=gs.Condition(c=torch.full((1,), c))) for c in (1.0, 2.0))
    assert list(label_passes([first, second, first]).values()) == ["condition[1]", "condition[2]"]


def test_the_public_names_are_listed_once():
    assert gs.cfg and gs.Contrast  # loaded
    found = dir(gs)
    assert len(found) == len(set(found)) and {"cfg", "register", "Traits", "__all__"} <= set(found)
    assert not {"importlib", "annotations"} & set(found)


def test_a_schedule_is_shown_in_one_line():
    assert repr(gs.VP((0.9, 0.5, 0.25))) == "VP(alphas_cumprod=3 numbers from 0.9 to 0.25)"


def test_settings_are_repeated_as_they_are_and_need_their_methods(tmp_path):
    model = gs.load("fashion-mnist")

    def version(lo):
        kind = make_dataclass("Ramped", [("lo", float, lo)], bases=(Plain,), frozen=True)
        kind.name = "ramped"
        kind.weight = lambda self, step, rows=None, state=None: self.scale + self.lo
        return register(kind)

    version(-1.0)
    made = model.sample("bag", guidance="ramped(3)", seeds=[0], steps=2)
    (picture,) = made.save(tmp_path)
    version(5.0)
    assert torch.equal(model.again(made.settings).x, made.x)
    assert torch.equal(model.again(read_settings(picture)).x, made.x)
    del gs.METHODS["ramped"]
    said = r"has the method 'ramped', which is not known here; import the module that registers it"
    with pytest.raises(ValueError, match=said):
        model.again(made.settings)
    out = tmp_path / "out"
    found = CliRunner().invoke(app, ["sample", "--like", str(picture), "--out", str(out)])
    assert found.exit_code != 0 and not out.exists()
    assert "import the module that registers it" in " ".join(
        str(found.exception or found.output).split()
    )
