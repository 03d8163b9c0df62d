"""Write the API reference: a page for each public name, and one for the commands.

Run by mkdocs (`make docs`). `pages()` needs no mkdocs, so that a test can hold it to
`guidestar.__all__`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass

import guidestar

TITLES = {
    "core": "Core",
    "guidance": "Guidance",
    "sampling": "Sampling",
    "model": "Models",
    "diffusers": "Diffusers",
}
OTHER = "More"


@dataclass(frozen=True, kw_only=True)
class Page:
    """One public name: where it is defined, and its section in the reference."""

    name: str
    module: str
    qualname: str
    section: str
    summary: str

    @property
    def path(self) -> str:
        """The file below ``reference/``."""
        return f"{self.name}.md"


def pages() -> list[Page]:
    """Return a page for each name in ``guidestar.__all__``."""
    return [_page(name) for name in guidestar.__all__]


def _page(name: str) -> Page:
    value = getattr(guidestar, name)
    home = guidestar._HOME[name]
    section = TITLES.get(home.split(".")[0], OTHER)
    if inspect.isclass(value) or inspect.isfunction(value):
        summary = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
        module, qualname = value.__module__, value.__qualname__
        return Page(name=name, module=module, qualname=qualname, section=section, summary=summary)
    summary = _value(value).splitlines()[0]
    return Page(name=name, module="", qualname=name, section=section, summary=summary)


def _value(value: object) -> str:
    """Describe a public constant."""
    kind = type(value)
    if isinstance(value, dict):
        names = "\n".join(f"- `{key}`" for key in value)
        return f"A table by name; its entries:\n\n{names}\n"
    doc = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
    return f"A `{kind.__name__}`, `{value}`. {doc}\n"


def _body(page: Page) -> str:
    title = f"# `guidestar.{page.name}`\n\n"
    if not page.module:
        return title + _value(getattr(guidestar, page.name))
    options = ["heading_level: 2"]
    if page.name == "Model":  # what it has of its parts
        options.append("inherited_members: true")
    text = "".join(f"      {option}\n" for option in options)
    return f"{title}::: {page.module}.{page.qualname}\n    options:\n{text}"


def _commands() -> str:
    from typer.main import get_command

    from guidestar.cli import app

    group = get_command(app)
    parts = ["# Commands\n"]
    for name, command in sorted(getattr(group, "commands", {}).items()):
        context = command.make_context(name, [], resilient_parsing=True)
        parts.append(f"## `guidestar {name}`\n\n{inspect.cleandoc(command.help or '')}\n")
        rows = [
            (" ".join(getattr(p, "opts", [])) or p.name, getattr(p, "help", "") or "")
            for p in command.get_params(context)
        ]
        parts.append("| argument | what it does |\n| --- | --- |")
        clean = lambda s: " ".join(s.split()).replace("|", "\\|")
        parts.extend(f"| `{opts}` | {clean(text)} |" for opts, text in rows)
        parts.append("")
    return "\n".join(parts)


def write() -> None:
    """Write all pages into the site that mkdocs is building."""
    import mkdocs_gen_files

    everything = pages()
    summary = ["- [All names](index.md)", "- [Commands](commands.md)"]
    index = ["# Reference\n", "Every public name, as `guidestar.NAME`.\n"]
    for section in [*TITLES.values(), OTHER]:
        mine = [p for p in everything if p.section == section]
        if not mine:
            continue
        summary.append(f"- {section}")
        index.append(f"\n## {section}\n\n| name | |\n| --- | --- |")
        for page in mine:
            with mkdocs_gen_files.open(f"reference/{page.path}", "w") as file:
                file.write(_body(page))
            summary.append(f"    - [{page.name}]({page.path})")
            text = page.summary.replace("|", "\\|")
            index.append(f"| [`{page.name}`]({page.path}) | {text} |")
    with mkdocs_gen_files.open("reference/index.md", "w") as file:
        file.write("\n".join(index) + "\n")
    with mkdocs_gen_files.open("reference/commands.md", "w") as file:
        file.write(_commands())
    with mkdocs_gen_files.open("reference/SUMMARY.md", "w") as file:
        file.write("\n".join(summary) + "\n")


if __name__ == "<run_path>":  # mkdocs-gen-files runs this file by its path
    write()
