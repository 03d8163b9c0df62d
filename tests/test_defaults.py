"""What an argument, field or option is where it is not given: the defaults of papers, of Diffusers
and of A1111, and our own, written out in `defaults.txt`, a line for each function or class.
"""

import importlib
import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

LINES = (Path(__file__).parent / "defaults.txt").read_text().splitlines()
NAMES = {"inf": math.inf, "torch": torch, "Path": Path, "dict": dict, "frozenset": frozenset}


def values(name):
    """Return what every argument of a function, or field of a class, is by default."""
    module, _, path = name.partition(":")
    thing: Any = importlib.import_module(f"guidestar.{module}")
    for part in path.split("."):
        thing = getattr(thing, part)
    if isinstance(thing, type) and issubclass(thing, BaseModel):
        fields = thing.model_fields.items()
        return {
            k: f.get_default(call_default_factory=True) for k, f in fields if not f.is_required()
        }
    return {k: p.default for k, p in inspect.signature(thing).parameters.items()}


@pytest.mark.parametrize("line", LINES, ids=[line.partition(": ")[0] for line in LINES])
def test_what_an_argument_is_where_it_is_not_given(line):
    name, _, written = line.partition(": ")
    expected = eval(f"dict({written})", NAMES)
    found = values(name)
    assert {k: (type(found.get(k)), found.get(k)) for k in expected} == {
        k: (type(v), v) for k, v in expected.items()
    }
