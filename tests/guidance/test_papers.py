"""Citations and one-line descriptions, read from the docstrings."""

import re

import pytest

from guidestar import METHODS, Guided, RePaint, TimeTravel, steer
from guidestar.guidance import citations
from guidestar.guidance.citations import Paper, described, papers
from helpers.toys import Spy, net


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_can_be_described_and_cited(name):
    said = described(METHODS[name])
    assert re.search(r"[=+−]", said.formula) and "``" not in said.formula
    assert re.match(r"\d+ evaluation", said.evaluations), said
    assert said.arguments.split(",")[0].split("=")[0] in ("scale", "percentile", "limit")
    assert "interval" not in said.arguments
    for paper in said.papers:
        entry = paper.bibtex()
        assert paper.authors and entry.count("{") == entry.count("}")
        assert bool(paper.arxiv) == ("arxiv" in paper.url)
        assert re.match(
            r"@misc\{[a-z]+(20\d\d)?[a-z]+,\n  title = \{\{[^{}]+\}\},\n  author = ", entry
        ), entry
        assert not re.search(r"section|algorithms 1|\($", paper.title)
    assert said.papers


@pytest.mark.parametrize(
    ("thing", "keys"),
    [(TimeTravel, "lugmayr yu bansal"), (RePaint, "lugmayr"), (steer, "singhal wu")],
)
def test_what_is_no_method_names_its_papers_and_their_authors_too(thing, keys):
    found = papers(thing)
    assert [p.authors[0].split()[-1].lower() for p in found] == keys.split() and all(
        p.arxiv and len(p.authors) > 4 for p in found
    )


def test_the_entry_of_a_paper():
    paper = Paper(
        title="A Thing",
        url="https://arxiv.org/abs/2104.01234",
        authors=("Ada B. Lovelace", "Emmy Noether"),
    )
    assert paper.bibtex() == (
        "@misc{lovelace2021a,\n  title = {{A Thing}},\n  author = {Ada B. Lovelace and Emmy "
        "Noether},\n  year = {2021},\n"
        "  eprint = {2104.01234},\n  archivePrefix = {arXiv},\n  url = "
        "{https://arxiv.org/abs/2104.01234},\n}"
    )
    assert (
        Paper(title="A Page", url="https://example.org").bibtex()
        == "@misc{a,\n  title = {{A Page}},\n  url = {https://example.org},\n}"
    )


def test_references_are_read_with_their_authors_and_without_their_places():
    def documented():
        """Say nothing.

        References:
            One: a Thing (which), section 3.4, https://arxiv.org/abs/2001.00001
                Ada Lovelace,
                Emmy Noether
            Another, algorithms 1 and 2, https://arxiv.org/abs/2001.00002
            The Third, https://arxiv.org/abs/2001.00003
                Grace Hopper
        """

    assert [(p.title, p.authors) for p in papers(documented)] == [
        ("One: a Thing", ("Ada Lovelace", "Emmy Noether")),
        ("Another", ()),
        ("The Third", ("Grace Hopper",)),
    ]
    assert papers(lambda: None) == []


def test_a_run_cites_what_it_uses_and_each_paper_once():
    def cited(text):
        nets = {"main": net(Spy()), "weak": net(Spy())}
        return re.findall(r"eprint = \{(.*?)\}", Guided(text, nets).citation())

    assert cited("cond") == []
    assert cited("apg(3)") == ["2410.02416"]
    assert cited(
        "apg(3) + apg(2, interval=(0, 1)) + autoguidance(2, schedule=linear) | rescale(0.7) | "
        "cads(0.1)"
    ) == [
        "2410.02416",
        "2404.07724",
        "2406.02507",
        "2404.13040",
        "2305.08891",
        "2310.17347",
    ]
    assert cited("icg(3, 4) + tsg(2, schedule=clamp(1, cosine))") == ["2407.02687", "2404.13040"]


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("Move it.\n\n``D = a`` or ``E = b``, not ``c``.\n\nArgs:\n    f: ``F = d``.", "D = a"),
        ("Move it.\n\n    D = a\n    so E = b\n    and c\n\nArgs:\n    f: F = d", "so E = b"),
        ("Move it, by ``c``.\n\nMore.\n\nArgs:\n    f: F = d", "Move it, by ``c``."),
    ],
)
def test_the_formula_of_a_docstring(text, formula):
    assert citations._formula(text) == formula
