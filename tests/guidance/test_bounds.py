"""Numbers that ask for time or memory have bounds, which their message names; a folder's networks
have their memory counted.
"""

import dataclasses
import inspect
import json
import re
import typing

import pytest
import torch
from torch import nn

import guidestar as gs
from guidestar import guidance, sampling
from guidestar.core import levels
from guidestar.diffusers.read.building import build_module
from guidestar.diffusers.read.safetensors_io import read_module
from guidestar.guidance import operators
from guidestar.model.folder_reading import _classifiers, _networks
from guidestar.model.shipped import SHIPPED
from guidestar.networks.memory import available_memory
from guidestar.sampling import grids

HUGE = 10**9
NEEDED = {"scale": 1.0, "loss": "loss", "strength": 1.0, "weight": 1.0}
SCHEDULE = levels.VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))


def counts(thing):
    """Name the arguments that are whole numbers."""
    hints = typing.get_type_hints(thing)
    return [
        name
        for name, hint in hints.items()
        if name != "return" and (hint is int or set(typing.get_args(hint)) == {int, type(None)})
    ]


def methods():
    found = {
        **guidance.METHODS,
        **{n: getattr(operators, n) for n in ("Downsample", "Blur")},
        "TimeTravel": sampling.TimeTravel,
    }
    return [
        (name, method, count)
        for name, method in found.items()
        for count in counts(method)
        if count in {f.name for f in dataclasses.fields(method)} - {"every"}
    ]


def test_every_method_with_a_count_is_found():
    wanted = {
        "cfg.channels",
        "cfg_zero.zero",
        "lgd.samples",
        "mmps.iterations",
        "pigdm.iterations",
        "sag.radius",
        "tfg.iterations",
        "tfg.samples",
    }
    found = {f"{name}.{count}" for name, _, count in methods()}
    assert found == {
        *wanted,
        "ugd_backward.steps",
        "Downsample.factor",
        "Blur.radius",
        "TimeTravel.times",
    }


@pytest.mark.parametrize(("name", "method", "count"), methods(), ids=str)
@pytest.mark.parametrize("value", [HUGE, 1001, 2.5, True, "3"], ids=repr)
def test_a_methods_counts_are_bounded(name, method, count, value):
    more = {
        f.name: NEEDED[f.name]
        for f in dataclasses.fields(method)
        if f.name in NEEDED and f.default is dataclasses.MISSING and f.name != count
    }
    with pytest.raises(ValueError, match=f"{count} must be (at most 1,000|a whole number)"):
        method(**more, **{count: value})
    assert getattr(method(**more, **{count: 1000 if count != "zero" else 7}), count) in (1000, 7)


@pytest.mark.parametrize("name", sorted(grids.GRIDS))
@pytest.mark.parametrize("steps", [HUGE, 10_001, 0, -1, 2.5, True])
def test_a_grids_steps_are_bounded(name, steps):
    with pytest.raises(
        ValueError, match=re.escape(f"steps must be a whole number from 1 to 10,000, not {steps!r}")
    ):
        grids.GRIDS[name](SCHEDULE, steps)


def test_every_other_count_of_a_grid_is_held_to_the_table():
    others = {
        (name, n)
        for name, grid in grids.GRIDS.items()
        for n in inspect.signature(grid).parameters
        if n in counts(grid)
    } - {(name, "steps") for name in grids.GRIDS}
    assert others == {("leading", "offset")}
    with pytest.raises(
        ValueError, match="steps from offset 1000000000 do not fit a table of 1000 entries"
    ):
        grids.GRIDS["leading"](SCHEDULE, 10, offset=HUGE)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("particles", HUGE, "from 1 to 100,000"),
        ("particles", 0, "from 1"),
        ("every", HUGE, "from 0 to 10,000"),
        ("every", 1.5, "from 0"),
    ],
)
def test_particles_are_bounded(key, value, says):
    grid = grids.uniform(SCHEDULE, 2)
    with pytest.raises(ValueError, match=f"{key} must be a whole number {says}"):
        gs.steer(
            None,
            grid=grid,
            seeds=[0],
            reward=lambda x: x,
            shape=(1,),
            **{"particles": 2, key: value},
        )


def test_a_blurs_kernel_is_bounded():
    with pytest.raises(ValueError, match="the deviation must be above 0 and at most 333"):
        operators.Blur(deviation=1e9)


class Wide(nn.Module):
    def __init__(self, width, layers=1):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))


def test_memory_is_counted_before_it_is_taken(monkeypatch):
    # 2 layers of 1,000² + 1,000 numbers of 4 bytes: 8,008,000 bytes; in halves 4,004,000.
    monkeypatch.setenv("GUIDESTAR_MEMORY", "0.008007")
    with pytest.raises(
        ValueError,
        match=r"^wide: its networks would take at least 0\.008008 GB, and there are 0\.008007 "
        r"GB; .*GUIDESTAR_MEMORY",
    ):
        build_module(lambda: Wide(1000, 2), "wide", torch.float32)
    assert (
        sum(
            p.numel()
            for p in build_module(lambda: Wide(1000, 2), "wide", torch.float16).parameters()
        )
        == 2_002_000
    )
    monkeypatch.setenv("GUIDESTAR_MEMORY", "0.008008")
    build_module(lambda: Wide(1000, 2), "wide", torch.float32)


def test_what_would_never_end_is_stopped():
    with pytest.raises(ValueError, match=r"^deep: it would have more than 20,000 tensors"):
        build_module(lambda: Wide(2, HUGE), "deep", torch.float32)
    with pytest.raises(
        ValueError,
        match=r"^wide: its networks would take at least 4,000 GB, and there are [\d,.]+ GB",
    ):
        build_module(lambda: Wide(10**6), "wide", torch.float32)


@pytest.mark.parametrize("told", ["x", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_none(told, monkeypatch):
    monkeypatch.setenv("GUIDESTAR_MEMORY", told)
    with pytest.raises(
        ValueError,
        match=re.escape(f"GUIDESTAR_MEMORY must be a number of GB above 0, not {told!r}"),
    ):
        available_memory()


def test_the_parts_of_a_folder_share_the_memory(monkeypatch):
    # Its networks: 0.9M + 0.2M parameters of the U-Nets and 0.4M of classifier and judge, as
    # float32.
    size = (
        sum(
            sum(t.numel() for t in _tensors(f))
            for f in sorted((SHIPPED / "fashion-mnist").rglob("*.safetensors"))
            if "variants" not in f.parts
        )
        * 4
    )
    monkeypatch.setenv("GUIDESTAR_MEMORY", str((size + 100_000) / 1e9))
    gs.load("fashion-mnist")
    monkeypatch.setenv("GUIDESTAR_MEMORY", str((size - 100_000) / 1e9))
    with pytest.raises(gs.model.folder.WeightsError, match="its networks would take at least"):
        gs.load("fashion-mnist")


def _tensors(file):
    from safetensors.torch import load_file

    return load_file(file).values()


SIZES = [
    (
        "unet",
        "block_out_channels",
        [HUGE, HUGE, HUGE],
        "block_out_channels must be from -10,000,000 to 10,000,000, not 1000000000",
    ),
    (
        "unet",
        "layers_per_block",
        HUGE,
        "layers_per_block must be from -1,000 to 1,000, not 1000000000",
    ),
    (
        "unet",
        "in_channels",
        HUGE,
        "in_channels must be a whole number from 1 to 65,536, or null, not 1000000000",
    ),
    (
        "unet",
        "sample_size",
        HUGE,
        "sample_size must be a whole number from 1 to 65,536, or two of them, not 1000000000",
    ),
    (
        "classifier",
        "widths",
        [HUGE],
        "widths must be a list of 1 to 32 values, each a whole number from 1 to 65,536, not "
        "[1000000000]",
    ),
    ("classifier", "layers", HUGE, "layers must be a whole number from 1 to 1,000, not 1000000000"),
    ("condition", "width", HUGE, "width must be a whole number from 1 to 65,536, not 1000000000"),
]


@pytest.mark.parametrize(("part", "key", "value", "says"), SIZES, ids=lambda v: str(v)[:20])
def test_sizes_of_a_folder_are_bounded(part, key, value, says, tmp_path):
    config = json.loads((SHIPPED / "fashion-mnist" / part / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    from guidestar.diffusers.read.encoders import read_condition

    with pytest.raises(ValueError) as caught:
        read_condition(tmp_path) if part == "condition" else read_module(
            tmp_path, known={**_networks(), **_classifiers()}
        )
    assert str(caught.value) == f"{tmp_path / 'config.json'}: {says}"


def test_a_card_of_odd_values_is_refused_in_one_line():
    from guidestar.model.card import card_text

    about = json.loads((SHIPPED / "fashion-mnist" / "guidestar.json").read_text())
    for key in (
        "seconds",
        "parameters",
        "classifier_accuracy",
        "figures",
        "defaults",
        "judge_accuracy",
        "licence",
        "diffusers",
    ):
        for value in (5, [5], "x", {"a": {}}):
            try:
                assert card_text("mine", {**about, key: value})
            except ValueError as error:
                assert re.fullmatch(
                    r"the card of mine cannot be written from the values in its guidestar\.json "
                    r"\([^\n]+\)",
                    str(error),
                )
