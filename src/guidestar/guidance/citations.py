"""Tables and citations, made from the docstrings of the methods."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from ..core.arguments import needed
from .serialize import literal
from .term import Direction, Guidance
from .weights import Clamp, weigh


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A reference of a docstring: ``Title, URL``, with its authors on the lines below.

    Args:
        title: of the paper.
        url: of the paper.
        authors: their names.
    """

    title: str
    url: str
    authors: tuple[str, ...] = ()

    @property
    def arxiv(self) -> str | None:
        """Its arXiv identifier, if it has one."""
        found = re.search(r"arxiv\.org/abs/(\d{4}\.\d{4,5})", self.url)
        return found.group(1) if found else None

    @property
    def key(self) -> str:
        """The key of its BibTeX entry: first author, year, first word."""
        author = self.authors[0].split()[-1] if self.authors else ""
        word = re.findall(r"[A-Za-z]+", self.title)[0]
        return f"{author}{self._year}{word}".lower()

    @property
    def _year(self) -> str:
        return f"20{self.arxiv[:2]}" if self.arxiv else ""

    def bibtex(self) -> str:
        """Return its BibTeX entry."""
        entry = {
            "title": f"{{{self.title}}}",
            "author": " and ".join(self.authors),
            "year": self._year,
            "eprint": self.arxiv or "",
            "archivePrefix": "arXiv" if self.arxiv else "",
            "url": self.url,
        }
        lines = [f"  {name} = {{{value}}}," for name, value in entry.items() if value]
        return "\n".join([f"@misc{{{self.key},", *lines, "}"])


def papers(thing: object) -> list[Paper]:
    """Return the papers in the docstring of a class or function."""
    found: list[Paper] = []
    begun = ""  # the title of a reference whose URL is on the next line
    for line in (inspect.getdoc(thing) or "").partition("References:\n")[2].splitlines():
        title, _, url = (begun + line.strip()).rpartition(", ")
        if url.startswith("https://"):
            found.append(Paper(title=_without_place(title), url=url))
            begun = ""
        elif line.startswith(" " * 8) and found:
            names = tuple(line.strip().rstrip(",").split(", "))
            found[-1] = replace(found[-1], authors=found[-1].authors + names)
        elif line.strip():
            begun += line.strip() + " "
    return found


def _without_place(title: str) -> str:
    """Return a title without the place in the paper (section, equation, …)."""
    place = r"( \([^()]*\))?(,? (section|algorithm|equation|appendix|table)s? [^,]*)?$"
    return re.sub(place, "", title)


def used(guidance: Guidance) -> list[Paper]:
    """Return the papers of an expression's terms, intervals, schedules and posts, each once."""
    every = [paper for thing in _things(guidance) for paper in papers(thing)]
    return list({paper.url: paper for paper in every}.values())


def _things(guidance: Guidance) -> Iterator[object]:
    for term in guidance.terms:
        yield type(term)
        if term.interval is not None:
            yield weigh
        schedule = term.schedule
        while schedule is not None:
            yield type(schedule)
            schedule = schedule.schedule if isinstance(schedule, Clamp) else None
    yield from map(type, guidance.posts)


@dataclass(frozen=True, kw_only=True)
class Described:
    """A method in one line.

    Args:
        formula: its equation.
        arguments: with their defaults; all terms also have interval and schedule.
        evaluations: its number of network evaluations.
        papers: its sources.
    """

    formula: str
    arguments: str
    evaluations: str
    papers: tuple[Paper, ...]


def described(method: type) -> Described:
    """Describe a method in one line, from its docstring and its fields."""
    text = inspect.getdoc(method) or ""
    return Described(
        formula=_formula(text),
        arguments=_arguments(method),
        evaluations=_evaluations(text),
        papers=tuple(papers(method)),
    )


def _formula(text: str) -> str:
    """Return the first formula in backticks, else the last line of an indented formula."""
    body = " ".join(text.partition("\nArgs:")[0].split())
    marked = [m for m in re.findall(r"``(.+?)``", body) if re.search(r"[=+−·]", m)]
    apart = [
        line.strip()
        for line in text.partition("\nArgs:")[0].splitlines()
        if line.startswith("    ") and "=" in line
    ]
    return marked[0] if marked else apart[-1] if apart else text.splitlines()[0]


def _arguments(method: type) -> str:
    shared = {f.name for f in fields(Direction)} - {"scale"}
    shown = [f for f in fields(method) if f.name not in shared]
    return ", ".join(
        f.name if f.name in needed(method) else f"{f.name}={literal(f.default)}" for f in shown
    )


def _evaluations(text: str) -> str:
    found = re.search(r"\d+ evaluations?\b[^.;:(]*", " ".join(text.split()))
    return found.group(0).strip() if found else ""
