"""guidestar.json: a damaged value is refused in one line that names the file and the key, before
anything is built.
"""

import json
import math
import re

import pytest

import guidestar as gs
from guidestar.cli import main
from guidestar.model.folder import WeightsError
from guidestar.model.manifest import read_about
from guidestar.model.shipped import SHIPPED

WHOLE = {
    "format": 1,
    "shape": [3, 8, 8],
    "scale": {"mean": [0, -1.5], "std": [1, 0.5]},
    "averages": ["ema-0.999"],
    "nets": ["weak"],
    "classifiers": [],
    "clips": {"clip": {"log_scale": 3, "rho_max": None}, "clean_clip": {}},
    "captions": ["a cat"],
    "defaults": {"guidance": "cfg(2)", "steps": 3, "solver": "ddim", "grid": "uniform", "more": 1},
}
DAMAGED = {
    "shape": [
        5,
        "8",
        [],
        [8, -1],
        [8, 0],
        [8, 2.5],
        [True],
        None,
        {"0": 8},
        [1] * 5,
        [10**6 + 1],
        [2**14, 2**14 + 1],
    ],
    "scale": [
        *(
            5,
            None,
            [1, 2],
            {},
            {"mean": [0.0]},
            {"mean": 0.0, "std": 1.0},
            {"mean": [0.0], "std": [1.0, 1.0]},
            {"mean": [], "std": []},
            {"mean": ["0"], "std": [1.0]},
        ),
        *(
            {"mean": [0.0], "std": [-1.0]},
            {"mean": [0.0], "std": [0.0]},
            {"mean": [0.0, 0.0], "std": [1.0, 0.0]},
            {"mean": 0.0, "std": [1.0]},
            {"mean": [0.0], "std": 1.0},
            {"mean": [math.nan], "std": [1.0]},
            {"mean": [0.0], "std": [math.inf]},
            {"mean": [0.0], "std": [10**400]},
        ),
    ],
    "averages": [5, "ema", [5], ["../weak"], [".."], [""], {"ema": 1}, None],
    "clips": [
        [],
        {"clip": 5},
        {"clip": {"log_scale": "3"}},
        {"clip": {"log_scale": 3, "rho_max": "1"}},
        {"clip": {"scale": 3}},
        {"clip": {"log_scale": 88.5}},
        {"clip": {"log_scale": -88.5}},
        {"clip": {"rho_max": -0.5}},
        {"../clip": {}},
    ],
    "captions": ["a cat", [5], ["a cat", 5]],
    "defaults": [None, "cfg(2)"],
}


def write(folder, about):
    (folder / "guidestar.json").write_text(json.dumps(about))
    return folder


@pytest.mark.parametrize(
    "about",
    [
        WHOLE,
        {"format": 1},
        *(json.loads((SHIPPED / name / "guidestar.json").read_text()) for name in gs.available()),
    ],
    ids=len,
)
def test_what_is_whole_is_read_as_it_stands(about, tmp_path):
    assert read_about(write(tmp_path, about)) == about


@pytest.mark.parametrize(
    ("key", "value"), [(k, v) for k, values in DAMAGED.items() for v in values], ids=repr
)
def test_a_damaged_value_is_named(key, value, tmp_path):
    with pytest.raises(
        WeightsError,
        match=f"^{re.escape(str(tmp_path))}/guidestar.json: {key} must be [^\n]*, not [^\n]*$",
    ) as caught:
        gs.load(write(tmp_path, {**WHOLE, key: value}))
    assert len(str(caught.value)) < len(str(tmp_path)) + 250


@pytest.mark.parametrize(
    ("defaults", "says"),
    [
        ({"steps": "ten"}, "steps must be a whole number from 1 to 10000, not 'ten'"),
        ({"guidance": 3}, "guidance must be text, not 3"),
        ({"solver": ["ddim"]}, r"solver must be text, not \['ddim'\]"),
        ({"grid": "leeding"}, "unknown grid 'leeding'; there are uniform"),
        ({"guidance": "cfg(2"}, "[^\n]+$"),
    ],
)
def test_a_damaged_default_is_named(defaults, says, tmp_path):
    with pytest.raises(
        WeightsError, match=f"^{re.escape(str(tmp_path))}/guidestar.json: defaults: {says}"
    ):
        gs.load(write(tmp_path, {**WHOLE, "defaults": defaults}))


GRIDS = {"grids": {"2": [3.0, 1, 0]}}
LARGEST = {
    "shape": [[1], [1, 1, 1, 1], [10**6], [2**14, 2**14]],
    "scale": [{"mean": [1], "std": [0.5]}],
    "clips": [
        {},
        {"c": {"log_scale": 88, "rho_max": 0.5}},
        {"c": {"log_scale": -88, "rho_max": 0}},
    ],
    "averages": [[], ["a", "b"]],
    "grids": [{}, {"1": [0.5, 0]}],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in LARGEST.items() for v in vs])
def test_values_at_the_ends_of_their_ranges(key, value, tmp_path):
    assert read_about(write(tmp_path, {"format": 1, key: value}))[key] == value


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({"format": 2}, " is of the format 2; this version of guidestar reads 1$"),
        ({}, " is of the format None; this version of guidestar reads 1$"),
        (
            {"format": 1, "by_steps": {"3": {}}, **GRIDS},
            "/guidestar.json: by_steps: 3 steps have no levels in grids$",
        ),
        (
            {"format": 1, "by_steps": {"2": {"solver": "eulr"}}, **GRIDS},
            "/guidestar.json: by_steps: 2: [^\n]*eulr[^\n]*$",
        ),
        (
            {"format": 1, "by_steps": {"2": {"grid": "karras"}}, **GRIDS},
            '/guidestar.json: by_steps must be an object of "guidance" and "solver"',
        ),
        ({"format": 1, "grids": {"2": [3.0, 0]}}, "/guidestar.json: grids must be an object of "),
        ({"format": 1, "grids": {"0": [0]}}, "/guidestar.json: grids must be an object of "),
        ({"format": 1, "grids": {"1": [1, 1]}}, "/guidestar.json: grids must be an object of "),
        ({"format": 1, "grids": {"2": [1, 1, 0]}}, "/guidestar.json: grids must be an object of "),
        ({"format": 1, "grids": {"1": [1, 0.5]}}, "/guidestar.json: grids must be an object of "),
        (
            {"format": 1, "grids": {"1": [math.inf, 0]}},
            "/guidestar.json: grids must be an object of ",
        ),
    ],
)
def test_what_is_refused_beside_single_values(about, says, tmp_path):
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}{says}"):
        read_about(write(tmp_path, about))


def test_the_settings_of_a_step_count_are_read(tmp_path):
    about = {"format": 1, "by_steps": {"2": {"solver": "ddim", "guidance": "cfg(2)"}}, **GRIDS}
    assert read_about(write(tmp_path, about)) == about


@pytest.mark.parametrize("key", ["averages", "scale", "shape"])
def test_the_command_line_ends_as_for_any_damaged_folder(key, tmp_path, capsys):
    write(tmp_path, {**WHOLE, key: -1})
    with pytest.raises(SystemExit) as end:
        main(["sample", str(tmp_path), "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert (
        end.value.code == 1
        and said.startswith(f"guidestar: {tmp_path / 'guidestar.json'}: {key} must be ")
        and said.count("\n") == 1
    )
