"""Read and write ``guidance.toml``, a small file with a model's guidance.

guidance = "cfg(7.5, interval=(0.3, 5.4)) + pag(3) | rescale(0.7)"
steps = 20               # the rest may be left out
solver = "dpmpp-2m"
grid = "log_snr"
negative = "blurry"
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypedDict, TypeVar, cast

from ..guidance import parse
from ..io.documents import one_line, read_toml, shown
from ..io.images import write_text
from ..sampling import get_solver
from ..sampling.grids import GRIDS

G = TypeVar("G")

FILE_NAME = "guidance.toml"
"""The name of the file in a model's folder."""


@dataclass(frozen=True, kw_only=True)
class GuidanceRecipe:
    """How a model is to be guided and sampled.

    Args:
        guidance: an expression.
        steps: of the solver, from 1 to 10000.
        solver: its name, with settings.
        grid: how the levels are spaced, by name.
        negative: what cfg moves away from.

    Raises:
        ValueError: a value of the wrong kind or out of range; the key is named.
        ExpressionError: the expression does not parse.
    """

    guidance: str
    steps: int | None = None
    solver: str | None = None
    grid: str | None = None
    negative: str | None = None

    def __post_init__(self) -> None:
        for name in ("guidance", "solver", "grid", "negative"):
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name == "guidance"):
                raise ValueError(f"{name} must be text, not {shown(value)}")
        if self.steps is not None and (
            isinstance(self.steps, bool)
            or not isinstance(self.steps, int)
            or not 1 <= self.steps <= 10_000
        ):
            raise ValueError(
                f"steps must be a whole number from 1 to 10000, not {shown(self.steps)}"
            )
        if self.solver is not None:
            get_solver(self.solver)
        if self.grid not in (None, *GRIDS, "fitted"):
            raise ValueError(f"unknown grid {shown(self.grid)}; there are {', '.join(GRIDS)}")
        parse(self.guidance)


def read_guidance(path: str | Path) -> GuidanceRecipe:
    """Read a ``guidance.toml``, or the one in a model's folder.

    Raises:
        ValueError: it is not there, is no TOML, or a key is unknown, missing or wrong; the file is
            named.
    """
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    content = read_toml(file)
    try:
        _check_keys(content)
        return GuidanceRecipe(**content)
    except ValueError as error:
        # Of an expression the further lines point at the place; the first has the words.
        short = ValueError(str(error).partition("\n")[0])
        raise ValueError(f"{file}: {one_line(short)}") from error


def _check_keys(content: Mapping[str, object]) -> None:
    known = [f.name for f in fields(GuidanceRecipe)]
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            raise ValueError(
                f"unknown key {shown(key)}; {f'did you mean {close[0]!r}? ' if close else ''}it "
                f"has {', '.join(known)}"
            )
    if "guidance" not in content:
        raise ValueError('the key guidance is missing; write e.g. guidance = "cfg(3)"')


def write(recipe: GuidanceRecipe, path: str | Path) -> None:
    """Write a recipe as TOML, whole or not at all, to a file or into a model's folder."""
    file = Path(path) / FILE_NAME if Path(path).is_dir() else Path(path)
    head = (
        "# How this model is guided; read by guidestar (--guidance-file, guidestar.load, "
        "guidestar.diffusers.guidance_file.read_guidance).\n"
    )
    write_text(
        head
        + "".join(
            f"{key} = {_value(value)}\n"
            for key, value in asdict(recipe).items()
            if value is not None
        ),
        file,
    )


def _value(value: str | int) -> str:
    # A JSON string is one of TOML's, but for the one character that only TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


class Defaults(TypedDict, total=False):
    """How a model is best sampled: what it uses where an argument is left out."""

    guidance: str
    steps: int
    solver: str
    grid: str


def settings(folder: str | Path) -> Defaults:
    """Return the defaults in a folder's ``guidance.toml``, by `Model.defaults`' keys, if any.

    Raises:
        ValueError: as `read_guidance`.
    """
    if not (Path(folder) / FILE_NAME).is_file():
        return {}
    found = read_guidance(folder)
    defaults = Defaults(guidance=found.guidance)
    if found.steps is not None:
        defaults["steps"] = found.steps
    if found.solver is not None:
        defaults["solver"] = found.solver
    if found.grid is not None:
        defaults["grid"] = found.grid
    return defaults


def guidance_of(given: G | str | Path) -> G | str:
    """Return the expression where a path to a ``guidance.toml`` is given in its place; anything
    else as it is.

    The file's other keys are for a pipeline, by its arguments and its scheduler: a
    warning names it.

    Raises:
        ValueError: as `read_guidance`.
    """
    named = isinstance(given, str) and given.endswith(".toml")
    if not isinstance(given, Path) and not named:
        return given
    found = read_guidance(cast(str | Path, given))
    # "" is what a pipeline moves away from by itself.
    if left := [
        key
        for key in ("steps", "solver", "grid", "negative")
        if getattr(found, key) not in (None, "")
    ]:
        warnings.warn(
            f"{given}: of this file a pipeline takes the guidance alone; it decides "
            f"{', '.join(left)} by its own arguments and scheduler{_describe_call(found)}",
            stacklevel=3,
        )
    return found.guidance


def _describe_call(found: GuidanceRecipe) -> str:
    """Describe the pipeline's arguments for a file's keys beside the guidance."""
    arguments = {"num_inference_steps": found.steps, "negative_prompt": found.negative}
    words = [f"{name}={value!r}" for name, value in arguments.items() if value]
    return f": call it with {', '.join(words)}" if words else ""
