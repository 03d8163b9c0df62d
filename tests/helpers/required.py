"""What continuous integration must have: there, a part that is missing is a failure, not a test
that is skipped.
"""

import importlib
import os
from types import ModuleType
from typing import Any

import pytest


def in_ci() -> bool:
    """Tell whether everything that tests use must be there (``.ci/run`` says so)."""
    return any(
        os.environ.get(name, "") not in ("", "0", "false") for name in ("CI", "GUIDESTAR_CI")
    )


def require(name: str, *_: Any, **__: Any) -> ModuleType:
    """Import a module as ``pytest.importorskip`` does, and fail where it is not there."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.fail(f"{name} is missing, so this would be skipped ({error})", pytrace=False)


def install() -> None:
    """Put `require` in the place of ``pytest.importorskip`` where nothing may be missing."""
    if in_ci():
        pytest.importorskip = require
