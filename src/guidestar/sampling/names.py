"""Solvers by name: ours, with settings as text, and those by which other projects call them."""

from __future__ import annotations

import ast
import re
from dataclasses import MISSING, fields
from difflib import get_close_matches
from typing import Any, NamedTuple

from .consistency import Consistency
from .ddim import DDIM, DDPM
from .deis import DEIS
from .dpmpp import DPMpp2M, SDEDPMpp2M
from .er_sde import ERSDE
from .heun import Heun
from .meanflow import MeanFlow
from .multistep import RES, DPMpp3M, SDEDPMpp3M
from .restart import Restart
from .sa import SA
from .singlestep import DPMpp2S
from .solver import Solver
from .unipc import UniPC

SOLVERS: dict[str, type[Solver]] = {
    solver.name: solver
    for solver in (
        DDIM,
        DDPM,
        DPMpp2M,
        SDEDPMpp2M,
        Heun,
        Consistency,
        MeanFlow,
        UniPC,
        DPMpp3M,
        SDEDPMpp3M,
        DEIS,
        RES,
        DPMpp2S,
        ERSDE,
        SA,
    )
}
"""Every solver by name."""

_AROUND: dict[str, type[Solver]] = {Restart.name: Restart}
"""Solvers around a solver that have a name too."""

_LMS = "deis(order=4, form='rho', lower_order_final=False)"
_IPNDM = "deis(order=4, form='uniform', lower_order_final=False)"
_SDE3 = "sde-dpmpp-3m(lower_order_final=False)"

ALIASES: dict[str, str] = {
    # k-diffusion, ComfyUI and A1111
    "euler": "ddim",
    "euler a": "ddim(eta=1.0)",
    "euler ancestral": "ddim(eta=1.0)",
    "lms": _LMS,
    "dpm++ 2m": "dpmpp-2m",
    "dpm++ 2m sde": "sde-dpmpp-2m",
    "dpm++ 3m sde": _SDE3,
    "dpm++ 2s a": "dpmpp-2s(eta=1.0)",
    "dpmpp 2s ancestral": "dpmpp-2s(eta=1.0)",
    "uni pc bh2": "unipc(order=3)",
    "ipndm": _IPNDM,
    "ipndm v": _LMS,
    "res": "res-multistep",
    "gradient estimation": "deis(order=2, form='uniform', gamma=2.0)",
    "sa solver": "sa",
    # classes of Diffusers
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "EulerDiscreteScheduler": "ddim",
    "EulerAncestralDiscreteScheduler": "ddim(eta=1.0)",
    "FlowMatchEulerDiscreteScheduler": "ddim",
    "HeunDiscreteScheduler": "heun",
    "LMSDiscreteScheduler": _LMS,
    "DPMSolverMultistepScheduler": "dpmpp-2m",
    "UniPCMultistepScheduler": "unipc",
    "DEISMultistepScheduler": "deis(order=2)",
    "SASolverScheduler": "sa(order=2, corrector_order=2)",
}
"""What other projects call a solver, and ours with its settings."""

GRID_WORDS = {
    "karras": "karras",
    "exponential": "log_snr",
    "uniform": "uniform",
    "sgm uniform": "uniform",
}
"""The word behind a solver's name that names a grid."""


class Named(NamedTuple):
    """A solver, and the grid that its name implies (None: any)."""

    solver: Solver
    grid: str | None = None


def get_solver(solver: Solver | str) -> Solver:
    """Return the solver of that name: ``unipc``, ``unipc(order=3)`` or ``"DPM++ 2M Karras"``.

    Raises:
        ValueError: there is none, with near names; or it has no such setting.
    """
    return solver if isinstance(solver, Solver) else _find(solver).solver


def grid_of(solver: Solver | str | None) -> str | None:
    """Return the grid that a solver's name implies ("DPM++ 2M Karras": karras), if any."""
    return _find(solver).grid if isinstance(solver, str) else None


def write_solver(solver: Solver) -> str:
    """Write a solver as the text that `get_solver` reads: its name, and settings that differ.

    What a text cannot carry (a tensor, a function) is written as Python shows it.
    """
    given = []
    for f in fields(solver):
        value = getattr(solver, f.name)
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if default is MISSING or value != default:
            text = write_solver(value) if isinstance(value, Solver) else value
            given.append(f"{f.name}={text!r}")
    return f"{solver.name}({', '.join(given)})" if given else solver.name


def _find(text: str) -> Named:
    name, settings = text.strip(), {}
    called = re.fullmatch(r"([^()]+?)\s*\((.*)\)", name, re.DOTALL)
    if called:
        name, settings = called[1], _settings(text, called[2])
    key, grid = _plain(name), None
    if key not in _KNOWN:
        for words in sorted(GRID_WORDS, key=len, reverse=True):
            if (solver := key.removesuffix(_plain(words))) in _KNOWN:
                key, grid = solver, GRID_WORDS[words]
                break
    if key not in _KNOWN:
        raise ValueError(_unknown(name))
    known = _KNOWN[key]
    if isinstance(known, str):
        found = _find(known).solver
        if settings:
            raise ValueError(f"{name!r} has settings already; write {known!r} with yours")
        return Named(found, grid)
    return Named(_make(known, settings), grid)


def _make(kind: type[Solver], settings: dict[str, Any]) -> Solver:
    own = [f.name for f in fields(kind)]
    for key in settings:
        if key not in own:
            has = f"it has {', '.join(own)}" if own else "it has none"
            raise ValueError(f"the solver {kind.name!r} has no setting {key!r}; {has}")
    if isinstance(settings.get("solver"), str):
        settings = {**settings, "solver": get_solver(settings["solver"])}
    try:
        return kind(**settings)
    except TypeError as error:
        raise ValueError(f"{kind.name}: a setting is of the wrong kind ({error})") from None


def _settings(text: str, inner: str) -> dict[str, Any]:
    """Read ``key=value, …`` with literal values."""
    try:
        call = ast.parse(f"f({inner})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("settings are given by name")
        return {str(k.arg): _literal(k.value) for k in call.keywords if k.arg or _starred()}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(
            f"the solver {text!r} cannot be read; write its settings by name, e.g. unipc(order=3)"
        ) from None


def _starred() -> bool:
    raise ValueError("no ** in settings")


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name) and node.id == "inf":
        return float("inf")
    if isinstance(node, ast.Tuple):
        return tuple(_literal(n) for n in node.elts)
    return ast.literal_eval(node)


def _plain(name: str) -> str:
    """Reduce a name to what all its spellings share."""
    plain = name.lower().replace("++", "pp").removeprefix("sample_").removeprefix("k_")
    return re.sub(r"[\s_\-]+", "", plain)


def _unknown(name: str) -> str:
    near = get_close_matches(_plain(name), _KNOWN)
    spelled = [_SPELLED[key] for key in near]
    hint = f"did you mean {' or '.join(map(repr, spelled))}? " if spelled else ""
    return f"unknown solver {name!r}; {hint}the solvers are {', '.join((*SOLVERS, *_AROUND))}"


_KNOWN: dict[str, type[Solver] | str] = {
    **{_plain(name): text for name, text in ALIASES.items()},
    **{_plain(name): kind for name, kind in {**SOLVERS, **_AROUND}.items()},
}
_SPELLED = {_plain(name): name for name in (*SOLVERS, *_AROUND, *ALIASES)}
