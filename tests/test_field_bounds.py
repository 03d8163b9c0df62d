"""Between which values a field of a recipe or request must lie, written out in `field_bounds.txt`:
the outermost values are taken, and their neighbours are refused in words.
"""

import importlib
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

LINES = (Path(__file__).parent / "field_bounds.txt").read_text().splitlines()
FAR = 10**12


def whole(bounds):
    low, high = bounds.split("..")
    good = [int(low), int(high or FAR)]
    bad = [(int(low) - 1, "greater than"), (int(low) + 0.5, "integer"), ("x", "integer")]
    return good, bad + ([(int(high) + 1, "less than")] if high else [])


def real(bounds):
    low, high = bounds[1:-1].split(", ")
    good, bad = [], [("x", "number"), (math.nan, "finite number"), (True, None)]
    for end, closed, towards, words in [
        (low, bounds[0] == "[", math.inf, "greater than"),
        (high, bounds[-1] == "]", -math.inf, "less than"),
    ]:
        if end:
            inside, outside = (math.nextafter(float(end), t) for t in (towards, -towards))
            good.append(float(end) if closed else inside)
            bad.append((outside if closed else float(end), words))
    return good or [0.5], bad[:2] + bad[3:]


def text(bounds):
    most = int(bounds.removeprefix(".."))
    return ["", "x" * most], [("x" * (most + 1), f"at most {most} character"), (["x"], "string")]


def choice(names):
    numbers = [int(n) if n.isdigit() else n for n in names.split()]
    return numbers, [("another", "be"), ([], "be")]


def many(bounds):
    count, _, each = bounds.partition(" each ")
    low, high = map(int, count.split(".."))
    good, bad = values(each) if each else (["a"], [])
    lists = [(good * high)[:high], *([g] * max(low, 1) for g in good), [good[0]] * low]
    none = [([good[0]] * (low - 1), "at least")] if low else []
    wrong = [([b] * max(low, 1), words) for b, words in bad]
    return lists, [*none, ([good[0]] * (high + 1), "at most"), *wrong]


def flag(_):
    return [True, False], [("x", "boolean"), (2, "boolean")]


KINDS = {"whole": whole, "real": real, "text": text, "one of": choice, "list": many, "flag": flag}


def values(kind):
    name = next(name for name in KINDS if kind.startswith(name))
    return KINDS[name](kind.removeprefix(name).strip())


def message(model, field, value):
    """Return what is wrong with a field, whatever may be wrong with others."""
    try:
        model.model_validate({field: value})
    except ValidationError as error:
        return "; ".join(e["msg"] for e in error.errors() if e["loc"][:1] == (field,))
    return ""


@pytest.mark.parametrize("line", LINES, ids=[line.partition(": ")[0] for line in LINES])
def test_a_field_up_to_its_bounds(line):
    where, _, kind = line.partition(": ")
    module, _, path = where.partition(":")
    name, _, field = path.partition(".")
    model = getattr(importlib.import_module(f"guidestar.{module}"), name)
    good, bad = values(kind)
    assert [message(model, field, value) for value in good] == [""] * len(good)
    for value, words in bad:
        found = message(model, field, value)
        assert found and (words is None or words in found), (value, found)
