"""The command line; every command is a call of the library."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import typer

from ..io.files import Damaged
from ._allocator import keep_pages
from ._terminal import fail, warn
from .data import datasets
from .demos import demo
from .distilling import distill
from .fitting import grid
from .info import layers, methods, models, plan
from .measuring import evaluate
from .sampling import sample
from .serving import serve, studio
from .strips import strip
from .training import recipe, train
from .upscaling import upscale

app = typer.Typer(
    name="guidestar", add_completion=True, pretty_exceptions_enable=False, rich_markup_mode=None
)
# In the order in which --help lists them.
for command in (
    demo,
    sample,
    upscale,
    strip,
    models,
    methods,
    layers,
    plan,
    recipe,
    train,
    distill,
    evaluate,
    grid,
    serve,
    studio,
):
    app.command()(command)
app.add_typer(datasets, name="data")

# Typer carries its own click, or uses the installed one: take the class from where it is public.
_UsageError: Any = typer.BadParameter.__bases__[0]

_COMPLETION = ("--install-completion", "--show-completion")
"""Options that take the name of a shell here; Typer finds out which one is running otherwise."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every error is one clear message, and an exit code of 2 for usage, else
    1 (a damaged file, a full disk, a loss that is no number).
    """
    code = 0
    own_process = arguments is None
    if own_process:
        keep_pages()
    warnings.showwarning = _note  # what the library warns of, people read as one line
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if arguments[0] in _COMPLETION and len(arguments) > 1:
        os.environ["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    try:
        _check_encoding(arguments)
        code = app(args=arguments, standalone_mode=False, prog_name="guidestar")
        if own_process:
            _leave_processes()
    except _UsageError as error:
        fail(error.format_message(), 2)
    except (typer.Abort, KeyboardInterrupt):
        fail("stopped", 130)
    except ValueError as error:
        fail(str(error), 1 if isinstance(error, Damaged) else 2)
    except ImportError as error:
        fail(f"{error.name or error} is missing; install it with: pip install 'guidestar[all]'", 1)
    except (OSError, RuntimeError, ArithmeticError) as error:
        fail(str(error), 1)
    sys.exit(code or 0)


def _leave_processes() -> None:
    """Leave the other processes of ``accelerate launch``; one alone does not import torch here."""
    if "torch" in sys.modules:
        from guidestar.io import distributed

        distributed.leave()


def _check_encoding(arguments: list[str]) -> None:
    """Refuse arguments that are not UTF-8, except paths that exist.

    Python keeps such a byte as half a character, which no file of settings can hold.
    """
    for argument in arguments:
        if not argument.isascii() and not _is_text(argument) and not os.path.lexists(argument):
            raise ValueError(f"the argument {argument!r} is not UTF-8; type it in UTF-8")


def _is_text(argument: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in argument)


def _note(message: Warning | str, category: type[Warning], *_: object) -> None:
    if category is UserWarning or category.__module__.startswith("guidestar."):
        warn(str(message))
