"""What the page's settings are: as a request, as an address, and as a picture carries them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import PurePath
from typing import Any
from urllib.parse import parse_qs, urlencode

from ...guidance import parse
from ...model.samples import Carried, check_settings
from ..web.schemas import SampleRequest
from .starts import STRENGTH, Start

MOST_SEEDS = 1000
"""Seeds that may be written; the server's own limit is far below."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """The settings of a run, as a person enters them.

    Args:
        model: its name.
        conds: classes or prompts; none for an unconditional run.
        negative: what cfg moves away from; empty for the null.
        seeds: of the pictures of each class or prompt.
        steps: of the solver; None for what the model's card recommends.
        solver: its name, empty for the card's.
        grid: its name, empty for the card's.
        guidance: an expression, empty for the card's.
        scale: of a student that takes it as an input.
        start: a picture to start from, in place of noise.
        strength: the share of the steps that it goes through.
    """

    model: str
    conds: tuple[str, ...] = ()
    negative: str = ""
    seeds: tuple[int, ...] = (0,)
    steps: int | None = None
    solver: str = ""
    grid: str = ""
    guidance: str = ""
    scale: float | None = None
    start: Start | None = None
    strength: float = STRENGTH

    @property
    def samples(self) -> list[tuple[str | None, int]]:
        """The condition and the seed of each picture: each condition with each seed."""
        return list(product(self.conds or (None,), self.seeds))

    def request(self, **more: Any) -> SampleRequest:
        """Return the request to the server; ``more`` are further fields of it.

        Raises:
            ValueError: a value is out of range.
        """
        samples = self.samples
        conds: Any = [str(name) for name, _ in samples] if self.conds else None
        return SampleRequest(
            model=self.model,
            cond=conds,
            guidance=self.guidance.strip() or None,
            negative=self.negative.strip() or None,
            scale=self.scale,
            seeds=[seed for _, seed in samples],
            steps=self.steps,
            solver=self.solver.strip() or None,
            grid=self.grid or None,
            **self._start(),
            **more,
        )

    def _start(self) -> dict[str, Any]:
        if self.start is None:
            return {}
        return {"start": self.start.image, "strength": self.strength, "resize": "crop"}

    def write_query(self) -> str:
        """Write the settings as the query of an address; what is left out is as by default."""
        fields = {
            "model": [self.model],
            "cond": list(self.conds),
            "uncond": ["" if self.conds else "1"],
            "negative": [self.negative],
            "seeds": [write_seeds(self.seeds)],
            "steps": ["" if self.steps is None else str(self.steps)],
            "solver": [self.solver],
            "grid": [self.grid],
            "guidance": [self.guidance],
            "scale": ["" if self.scale is None else repr(self.scale)],
            "start": ["" if self.start is None else self.start.name],
            "strength": ["" if self.start is None else repr(self.strength)],
        }
        return urlencode([(name, v) for name, values in fields.items() for v in values if v])


def read_query(
    query: str,
    default: Form,
    models: Sequence[str],
    find_start: Callable[[str], Start | None] = lambda name: None,
) -> Form:
    """Read the settings of an address; what it does not have is as in ``default``.

    An address has the name of a picture to start from; ``find_start`` returns the picture, or None
    where it is not kept, which leaves it out.

    Raises:
        ValueError: a model that is not served, or a value that is no number.
    """
    found = parse_qs(query.removeprefix("?"), max_num_fields=200)
    one = {name: values[-1] for name, values in found.items()}
    model = one.get("model", default.model)
    if model not in models:
        raise ValueError(f"the address names the model {model[:80]!r}; there is {_list(models)}")
    form = default if model == default.model else Form(model=model)
    return replace(
        form,
        model=model,
        conds=() if "uncond" in one else tuple(found.get("cond", form.conds)),
        negative=one.get("negative", form.negative),
        seeds=read_seeds(one["seeds"]) if "seeds" in one else form.seeds,
        steps=_number(int, "steps", one["steps"]) if "steps" in one else form.steps,
        solver=one.get("solver", form.solver),
        grid=one.get("grid", form.grid),
        guidance=one.get("guidance", form.guidance),
        scale=_number(float, "scale", one["scale"]) if "scale" in one else form.scale,
        start=find_start(one["start"]) if "start" in one else form.start,
        strength=_number(float, "strength", one["strength"])
        if "strength" in one
        else form.strength,
    )


def read_picture(settings: Carried, models: Sequence[str]) -> Form:
    """Return the settings of the run that a picture was made in.

    Where its samples are no product of conditions and seeds, or have scales of their own, only the
    picture's own come back: each sample depends on its own seed alone.

    Raises:
        ValueError: the settings are not a run's, or cannot be repeated here.
    """
    check_settings(settings)
    model = str(settings.get("model", ""))
    if model not in models:
        model = PurePath(model).name  # of a folder, which is served under its own name
    if model not in models:
        raise ValueError(
            f"this picture is of the model {model[:80]!r}, which is not served here; there is "
            f"{_list(models)}"
        )
    index = int(settings.get("index", 0))
    seeds, conds = tuple(settings["seeds"]), settings["cond"]
    names = tuple(dict.fromkeys(map(str, conds or ())))
    own = tuple(dict.fromkeys(seeds))
    guidance, scales = parse(settings["guidance"]), settings.get("scale")
    pairs = list(zip(map(str, conds or [""] * len(seeds)), seeds, strict=True))
    whole = (
        pairs == list(product(names or ("",), own))
        and not any(term.lists for term in guidance.terms)
        and len(set(scales or ())) <= 1
    )
    if not whole:
        names, own = tuple([str(conds[index])] if conds else []), (seeds[index],)
        terms = [
            replace(term, **{k: v[index] for k, v in term.lists.items()}) for term in guidance.terms
        ]
        guidance = replace(guidance, terms=tuple(terms))
    negative = settings["negative"]
    return Form(
        model=model,
        conds=names,
        negative="" if negative is None else str(negative),
        seeds=own,
        steps=settings["steps"],
        solver=settings["solver"],
        grid=settings["grid"],
        guidance=str(guidance),
        scale=float(scales[index]) if scales else None,
    )


def read_seeds(text: str) -> tuple[int, ...]:
    """Read seeds: ``7``, ``0-3``, ``1, 5, 9-12``.

    Raises:
        ValueError: anything else.
    """
    seeds: list[int] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        found = re.fullmatch(r"(-?\d{1,19})(?:\s*-\s*(\d{1,19}))?", part)
        if not found:
            raise ValueError(
                f"seeds are whole numbers and ranges, like 7 or 0-3 or 1, 5, not {part[:40]!r}"
            )
        first = int(found[1])
        last = int(found[2]) if found[2] else first
        if not 0 <= last - first < MOST_SEEDS or not -(2**63) <= first <= last < 2**63:
            raise ValueError(f"the range of seeds {part[:40]!r} is empty or too long")
        seeds += range(first, last + 1)
        if len(seeds) > MOST_SEEDS:
            raise ValueError(f"there may be {MOST_SEEDS} seeds at most")
    if not seeds:
        raise ValueError("there is no seed; write one, like 0, or a range, like 0-3")
    return tuple(seeds)


def write_seeds(seeds: Sequence[int]) -> str:
    """Write seeds as `read_seeds` reads them; neighbours become a range."""
    parts: list[tuple[int, int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][1] + 1 and parts[-1][0] >= 0:
            parts[-1] = (parts[-1][0], seed)
        else:
            parts.append((seed, seed))
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def _number(kind: type[int] | type[float], name: str, text: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} in the address must be a number, not {text[:40]!r}") from None


def _list(models: Sequence[str]) -> str:
    return ", ".join(models)
