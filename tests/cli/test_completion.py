"""Shell completion, and arguments that are not UTF-8."""

import os
import subprocess
import sys

import pytest

from guidestar.cli import _completion as completion
from guidestar.cli import main
from guidestar.cli._terminal import printable
from guidestar.guidance import METHODS
from guidestar.sampling import SOLVERS
from guidestar.sampling.grids import GRIDS

MODELS = ["emoji", "fashion-mnist"]


def test_the_names_in_the_source_are_those_that_are_registered():
    assert completion.registered_methods() == sorted(METHODS)
    assert completion.registered_solvers() == list(SOLVERS)
    assert completion.registered_grids() == list(GRIDS)
    assert completion.method_names("cfg") == ["cfg", "cfg_zero", "cfgpp"]
    assert completion.model_names("") == MODELS and completion.model_names("f") == MODELS[1:]


@pytest.fixture
def home(tmp_path):
    """A home folder, and a command ``guidestar`` that this interpreter runs."""
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "guidestar"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m guidestar "$@"\n')
    script.chmod(0o755)
    return tmp_path


def run(home, *command, **more):
    path = f"{home / 'bin'}:{os.environ['PATH']}"
    env = {**os.environ, "HOME": str(home), "PATH": path, "TERM": "dumb", **more}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


BASH = """
source "$HOME/.bashrc"
complete_line() {
    COMP_LINE="$1"; read -ra COMP_WORDS <<< "$1"; [[ "$1" == *" " ]] && COMP_WORDS+=("")
    COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
    _guidestar_completion guidestar
    echo "${COMPREPLY[*]}"
}
complete -p guidestar
complete_line "guidestar sample "
complete_line "guidestar methods cfg"
complete_line "guidestar sample emoji --solver d"
complete_line "guidestar plan emoji --levels l"
complete_line "guidestar sample emoji --guidance ap"
complete_line "guidestar demo --model em"
complete_line "guidestar mod"
"""


@pytest.mark.slow
def test_bash_completes_names(home):
    installed = run(home, "guidestar", "--install-completion", "bash")
    assert installed.returncode == 0, installed.stderr
    lines = run(home, "bash", "--norc", "-c", BASH).stdout.splitlines()
    assert lines[0] == "complete -o default -F _guidestar_completion guidestar"
    assert [line.split() for line in lines[1:]] == [
        MODELS,
        ["cfg", "cfg_zero", "cfgpp"],
        [name for name in SOLVERS if name.startswith("d")],
        ["log_snr", "leading", "linspace"],
        ["apg"],
        ["emoji"],
        ["models"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shell", "file", "variables"),
    [
        ("zsh", ".zfunc/_guidestar", {}),
        (
            "fish",
            ".config/fish/completions/guidestar.fish",
            {"_TYPER_COMPLETE_FISH_ACTION": "get-args"},
        ),
    ],
)
def test_zsh_and_fish_are_answered(home, shell, file, variables):
    """The script that is installed calls guidestar so; what it answers is what the shell takes."""
    installed = run(home, "guidestar", "--install-completion", shell)
    assert installed.returncode == 0, installed.stderr
    script = (home / file).read_text()
    assert f"_GUIDESTAR_COMPLETE=complete_{shell}" in script and "_TYPER_COMPLETE_ARGS" in script
    assert all(f"{name}={value}" in script for name, value in variables.items())
    shown = run(home, "guidestar", "--show-completion", shell)
    assert shown.stdout.strip() == script.strip()
    for line, names in (
        ("guidestar sample ", MODELS),
        ("guidestar methods cfg", ["cfg", "cfg_zero", "cfgpp"]),
        ("guidestar sample emoji --solver ", list(SOLVERS)),
    ):
        asked = {"_GUIDESTAR_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": line}
        answer = run(home, "guidestar", **asked, **variables).stdout
        expected = names if shell == "fish" else [f'"{name}"' for name in names]
        start = answer.strip().removeprefix("_arguments '*: :((").removesuffix("))'")
        assert start.split() == expected


def test_an_unknown_shell_is_refused(capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "")
    with pytest.raises(SystemExit) as stop:
        main(["--show-completion", "tcsh"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "'tcsh' is not one of 'bash', 'zsh', 'fish'" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "caf\udcff"],
        ["sample", "emoji", "--guidance", "caf\udcff"],
        ["recipe", ".", "--out", "caf\udcff"],
    ],
)
def test_arguments_that_are_not_utf8_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "guidestar: the argument 'caf\\xff' is not UTF-8; type it in UTF-8\n"
    )


def test_paths_that_are_not_utf8_are_taken_and_shown(tmp_path, capsys):
    folder = tmp_path / "caf\udcff"
    folder.mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(folder)])
    said = capsys.readouterr().err
    assert stop.value.code == 1 and said.startswith(f"guidestar: {tmp_path}/caf\\xff: holds no ")


def test_no_half_character_is_printed():
    assert printable("a \udc80é\udcff \ud83d") == "a \\x80é\\xff ?"
    assert printable(repr("a\udcff")) == "'a\\xff'"
