"""What a run gave: evaluations, files and their settings, and which settings can be repeated."""

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from guidestar.guidance import parse
from guidestar.io.images import read_settings
from guidestar.model.samples import Samples, Settings, check_settings, settings_of
from guidestar.sampling import DDPM

SETTINGS = Settings(
    model="m",
    cond=("a cat/é", 3),
    negative=None,
    guidance="cfg(3)",
    seeds=(7, 9),
    steps=4,
    solver="ddim",
    grid="log_snr",
)


def samples(count=2, **more):
    images = torch.linspace(-1, 1, count)[:, None, None, None].expand(count, 3, 2, 2)
    settings = replace(SETTINGS, cond=("a cat/é", 3, "x")[:count], seeds=(7, 9, 11)[:count])
    given = {"x": images, "images": images, "settings": settings, "evaluations": (4,) * count}
    return Samples(**{**given, **more})


def test_evaluations_of_a_sample_are_their_mean():
    assert samples(evaluations=(4, 7)).nfe == 5.5
    assert samples(3, evaluations=(4, 4, 10)).nfe == 6.0


@pytest.mark.parametrize(
    ("numbers", "names", "stride"),
    [
        (None, ["0000-a-cat-é-seed7.png", "0001-3-seed9.png"], 1),
        ([4, 9], ["0004-a-cat-é-seed7.png", "0009-3-seed9.png"], 5),
        (range(12345, 12347), ["12345-a-cat-é-seed7.png", "12346-3-seed9.png"], 1),
    ],
)
def test_files_are_named_by_number_condition_and_seed(tmp_path, numbers, names, stride):
    paths = samples().save(tmp_path / "new", numbers)
    assert [p.name for p in paths] == names and {p.parent for p in paths} == {tmp_path / "new"}
    for i, path in enumerate(paths):
        found = read_settings(path)
        number = i if numbers is None else numbers[i]
        assert (found["index"], found["number"], found["stride"]) == (i, number, stride)
        assert {k: found[k] for k in ("guidance", "steps", "seeds", "cond")} == {
            "guidance": "cfg(3)",
            "steps": 4,
            "seeds": [7, 9],
            "cond": ["a cat/é", 3],
        }
        check_settings(found)


def test_one_file_has_the_stride_one(tmp_path):
    (path,) = samples(1).save(tmp_path, numbers=[5])
    assert path.name == "0005-a-cat-é-seed7.png" and read_settings(path)["stride"] == 1
    without = samples(1, settings=replace(SETTINGS, cond=None, seeds=(7,)))
    assert (
        without.save(tmp_path)[0].name == "0000-uncond-seed7.png" and without.label(0) == "uncond"
    )
    long = samples(1, settings=replace(SETTINGS, cond=("y" * 99,), seeds=(7,)))
    assert long.save(tmp_path)[0].name == f"0000-{'y' * 60}-seed7.png"
    assert long.label(0) == "y" * 99


def test_a_contact_sheet_has_so_many_columns():
    """Pictures of 2 × 2 pixels, three times as large, 4 apart."""
    found = samples(3).contact_sheet(columns=2)
    assert found.size == (4 + 2 * (6 + 4) + 4, 4 + 2 * (6 + 4))
    pixels = np.asarray(found)[..., 0]
    assert [pixels[6, 6], pixels[6, 16], pixels[16, 6], pixels[16, 16]] == [0, 128, 255, 255]
    assert samples(3).contact_sheet().size == (4 + 3 * (6 + 4) + 4, 4 + 6 + 4)


GOOD = {**asdict(SETTINGS), "index": 1, "number": 6, "stride": 5}


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "model": ["x"],
        "cond": [None, [], ["a", 2], ("a",)],
        "negative": [None, "dog", 3],
        "seeds": [[1, 2], (1, 2, 3)],
        "steps": [1, 1000],
        "started": [False],
        "lacking": [[], ()],
        "max_rows": [None, 1],
        "index": [0, 1],
        "stride": [1, 6],
        "number": [5, 10**9],
        "scale": [None, [], [1, 2.5]],
        "weights": ["", "ab"],
    }.items(),
)
def test_settings_that_can_be_repeated(key, values):
    for value in values:
        check_settings({**GOOD, key: value})


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "model": [None, 3],
        "cond": ["a", [None], [1.5], [True], {"a": 1}],
        "negative": [1.5, True, ["a"]],
        "guidance": [None, 3],
        "seeds": [[], None, "12", [1.5], [True], 3],
        "steps": [None, "4", 4.0, True],
        "solver": [None],
        "grid": [None, 3],
        "started": [0, "no", None],
        "lacking": ["a loss", [3], None],
        "max_rows": [0, -1, 1.5, True],
        "index": [None, 0.0, True],
        "number": ["6", 6.0],
        "stride": [None, 1.0],
        "scale": [2.0, ["1"], [True], [None]],
        "weights": [None, 3],
    }.items(),
)
def test_settings_of_other_kinds_are_refused(key, values):
    for value in values:
        with pytest.raises(ValueError, match=f"settings are damaged: {key} cannot be "):
            check_settings({**GOOD, key: value})


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "index": [-1, 2],
        "stride": [0, -5, 7, 10**9 + 1],  # at the index 1, the number 6 is at least the stride
        "number": [4, -1, 10**9 + 1],
    }.items(),
)
def test_a_place_that_cannot_be_is_refused(key, values):
    for value in values:
        with pytest.raises(ValueError, match="none of 2 has the index"):
            check_settings({**GOOD, key: value})
    check_settings({k: v for k, v in GOOD.items() if k not in ("index", "number", "stride")})
    check_settings({**GOOD, "index": 0, "number": 0, "stride": 10**9})


def test_settings_that_lack_something_are_refused():
    for key in ("cond", "guidance", "seeds", "negative", "steps", "solver", "grid", "max_rows"):
        with pytest.raises(ValueError, match=f"^the settings lack {key}; they were written by "):
            check_settings({k: v for k, v in GOOD.items() if k != key})
    check_settings({k: v for k, v in GOOD.items() if k != "scale"})  # of before there were students
    with pytest.raises(ValueError, match="lack guidance, steps; "):
        check_settings({k: v for k, v in GOOD.items() if k not in ("steps", "guidance")})
    with pytest.raises(ValueError, match=r"^this run started from an image"):
        check_settings({**GOOD, "started": True})
    with pytest.raises(ValueError, match=r"^this run depended on a loss and the solver, which "):
        check_settings({**GOOD, "lacking": ["a loss", "the solver"]})


@pytest.mark.parametrize("named", [True, False])
def test_the_settings_of_a_run_are_all_that_determines_it(named):
    request: Any = SimpleNamespace(
        names=("a", "b"),
        negative="c",
        guidance=parse("cfg(2)"),
        seeds=(4, 9),
        levels=SimpleNamespace(steps=7),
        solver=DDPM(),
        solver_is_named=named,
        grid="karras",
        start=None if named else torch.zeros(2, 1),
        lacking=lambda: ("its own grid",),
        max_rows=3,
        scale=(1.5, 2.0),
    )
    found = settings_of(
        request, "m", torch.device("cpu"), dtype=torch.float64, lacking=["a picture"]
    )
    assert found == Settings(
        model="m",
        cond=("a", "b"),
        negative="c",
        guidance="cfg(2)",
        seeds=(4, 9),
        steps=7,
        solver="ddpm" if named else repr(DDPM()),
        grid="karras",
        started=not named,
        lacking=("a picture", "its own grid"),
        max_rows=3,
        scale=(1.5, 2.0),
        threads=torch.get_num_threads(),
        dtype="float64",
        device="cpu",
        versions=found.versions,
    )
    assert set(found.versions) == {"guidestar", "torch", "python"}
    assert found.versions["torch"] == torch.__version__
    plain = settings_of(request, "m", torch.device("cpu"))
    assert plain.lacking == ("its own grid",) and plain.dtype == "float32"
