"""The documents: snippets, notebooks and commands run as they stand, and links lead somewhere."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import guidestar

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python\n" in page.read_text(encoding="utf-8")]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LONG = {"guidance-explained.md", "extending.md", "text-to-image.md", "choosing.md"}
LONG |= {"inverse-problems.ipynb", "own-network.ipynb"}


def where(path):
    return str(path.relative_to(ROOT))


def cases(files):
    """Mark those slow that take seconds."""
    return [pytest.param(f, marks=[pytest.mark.slow] * (f.name in LONG)) for f in files]


def blocks(page, language):
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


@pytest.fixture
def methods():
    """Take back what a page registers."""
    before = dict(guidestar.METHODS)
    yield
    guidestar.METHODS.clear()
    guidestar.METHODS.update(before)


@pytest.mark.parametrize("page", cases(WITH_CODE), ids=where)
def test_snippets_run(page, tmp_path, monkeypatch, methods):
    monkeypatch.chdir(tmp_path)
    session = {"__name__": f"page_{page.stem}"}
    monkeypatch.setitem(sys.modules, session["__name__"], type(sys)("page"))  # for dataclasses
    for code in blocks(page, "python"):
        exec(compile(code, where(page), "exec"), session)  # the snippets are ours


def test_the_pages_that_promise_code_have_some():
    names = {page.name for page in WITH_CODE}
    assert names >= {"README.md", "extending.md", "own-network.md", "guidance-explained.md"}


@pytest.mark.parametrize("notebook", cases(NOTEBOOKS), ids=where)
def test_notebooks_run(notebook, tmp_path, monkeypatch):
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    session = {"__name__": "__main__"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), where(notebook), "exec"), session)


def test_notebooks_keep_their_output():
    assert len(NOTEBOOKS) >= 4
    for notebook in NOTEBOOKS:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        assert any(cell.get("outputs") for cell in cells), notebook.name


@pytest.mark.slow
def test_the_whole_idea_fits_on_a_page():
    file = ROOT / "examples" / "idea.py"
    assert len([line for line in file.read_text().splitlines() if line.strip()]) <= 60
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True)
    assert float(done.stdout.split("largest difference: ")[1].split()[0]) < 1e-9


def commands(page):
    lines = [
        line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()
    ]
    return [line for line in lines if line.startswith("guidestar ")]


COMMANDS = [(page, line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize(
    ("page", "line"), COMMANDS, ids=lambda x: x.name if isinstance(x, Path) else x[:60]
)
def test_commands_are_those_that_there_are(page, line):
    """Each command is read by the command line's own parser."""
    from typer.main import get_command

    from guidestar.cli import app

    command, arguments = get_command(app), shlex.split(line, comments=True)[1:]
    arguments = [part for part in arguments if part != "&&"]
    while hasattr(command, "commands"):
        command = command.commands[arguments.pop(0)]
    if "guidestar" in arguments:  # a second command of the line
        arguments = arguments[: arguments.index("guidestar")]
    command.make_context("guidestar", arguments)


def test_links_lead_to_files():
    wrong = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            made = "reference/" in target  # written by docs/make_reference.py
            if (
                not re.match(r"https?://", target)
                and not made
                and not (page.parent / target).exists()
            ):
                wrong.append(f"{where(page)}: {target}")
    assert not wrong, "\n".join(wrong)


NAMED = r"(?<![\w/.-])(?:tests|benchmarks|tools|examples|recipes|src)/[\w./-]*\w\.(?:py|toml|json)"
"""A file of the project, as text names it."""


def test_files_of_the_project_that_are_named_are_there():
    sources = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "Makefile"]
    for pattern in ("src/**/*.py", "benchmarks/*.py", "examples/*.py", "recipes/*.toml"):
        sources += ROOT.glob(pattern)
    wrong = [
        f"{where(source)}: {name}"
        for source in sources
        for name in re.findall(NAMED, source.read_text(encoding="utf-8"))
        if not (ROOT / name).exists() and "MODEL" not in name
    ]
    assert not wrong, "\n".join(wrong)


def test_every_public_name_has_its_page():
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs/make_reference.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    pages = module.pages()
    assert [page.name for page in pages] == guidestar.__all__
    assert all(page.summary for page in pages)


def test_the_stub_names_what_there_is():
    tool = ROOT / "tools" / "make_stub.py"
    done = subprocess.run(
        [sys.executable, tool, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
