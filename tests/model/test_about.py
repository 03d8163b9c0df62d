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
    "shape": [5, "8", [], [8, -1], [8, 0], [8, 2.5], [True], None, {"0": 8}],
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
    ],
    "captions": ["a cat", [5]],
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
    ],
)
def test_a_damaged_default_is_named(defaults, says, tmp_path):
    with pytest.raises(
        WeightsError, match=f"^{re.escape(str(tmp_path))}/guidestar.json: defaults: {says}"
    ):
        gs.load(write(tmp_path, {**WHOLE, "defaults": defaults}))


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
