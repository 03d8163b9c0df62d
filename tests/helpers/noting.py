"""Recipes of the least size, and functions that note how they are called."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from guidestar.train.recipe.schema import Recipe, checked

NET = {"widths": [8, 8], "groups": 4, "head": 8, "train": {"steps": 8, "batch": 4}}


def recipe(**tables: Any) -> Recipe:
    """Return a recipe with a small network, and these tables."""
    return checked({"name": "r", "data": {"path": "p"}, "model": NET, **tables}, "r.toml")


def noted(monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, answer: Any = None):
    """Put in a function's place what notes its arguments; return the list of its calls."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def called(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return answer

    monkeypatch.setattr(module, name, called)
    return calls
