"""Grids fitted to a model, in its card and by the command."""

import json
import shutil
from pathlib import Path

import pytest

import guidestar as gs
from guidestar.cli import main
from guidestar.model import fitted
from guidestar.model.card import card_text
from guidestar.model.folder import WeightsError

RHOS = {"3": [100.0, 2.0, 0.5, 0], "5": [100.0, 8.0, 2.0, 1.0, 0.5, 0]}


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(Path(gs.__file__).parent / "assets" / "fashion-mnist", tmp_path / "mine")
    return tmp_path / "mine"


def test_a_fitted_grid_is_the_default_for_its_steps(folder):
    fitted.store(folder, {5: RHOS["5"]})
    fitted.store(folder, {3: RHOS["3"]})
    model = gs.load(folder)
    assert model.card["grids"] == RHOS and list(model.card["grids"]) == ["3", "5"]
    request = model.request("bag", steps=3)
    assert request.grid == "fitted" and request.lacking() == ()
    assert [float(v.rho) for v in request.levels] == pytest.approx(RHOS["3"])
    assert model.request("bag", steps=3, grid="log_snr").levels == gs.log_snr(model.schedule, 3)
    assert model.request("bag", steps=4).grid == "log_snr"
    between = model.grid(4, "fitted")
    assert between.steps == 4 and float(between[0].rho) == pytest.approx(100)
    assert float(between[-2].rho) == pytest.approx(0.5)
    assert [s.rho for s in model.plan("cond", steps=3).steps] == pytest.approx([100, 2, 0.5])
    assert model.settings(request).grid == "fitted"


OWN = {"guidance": "cfg(1.5, interval=(0.7, 4))", "solver": "unipc(order=3)"}


def test_a_step_count_has_defaults_of_its_own(folder):
    fitted.store(folder, {3: RHOS["3"], 5: RHOS["5"]}, {5: OWN})
    model = gs.load(folder)
    request = model.request("bag", steps=5)
    assert str(request.guidance) == OWN["guidance"] and request.solver == gs.UniPC(order=3)
    assert [s.nfe for s in model.plan(steps=5).steps] == [1, 1, 2, 2, 1]  # acts at ratios 2 and 1
    usual = (model.defaults.get("guidance"), gs.get_solver(model.defaults.get("solver", "")))
    for steps, grid in ((3, None), (4, None), (None, None), (5, "log_snr"), (5, request.levels)):
        other = model.request("bag", steps=steps, grid=grid)
        assert (str(other.guidance), other.solver) == usual
    # A name that asks for a grid asks for that, and for none of what was chosen with another.
    named = model.request("bag", steps=5, solver="DPM++ 2M Karras")
    assert (str(named.guidance), named.grid) == (usual[0], "karras")
    given = model.request("bag", steps=5, guidance="cfg(3)", solver="ddim")
    assert (str(given.guidance), given.solver, given.grid) == ("cfg(3)", gs.DDIM(), "fitted")
    assert str(model.request(None, steps=5).guidance) == "uncond"
    fitted.store(folder, {5: RHOS["5"]})  # other levels: what was chosen with the old ones is gone
    assert "by_steps" not in gs.load(folder).card


def test_the_card_describes_the_settings_of_a_step_count(folder):
    text = card_text("mine", {"grids": {"3": RHOS["3"]}, "by_steps": {"3": OWN}})
    assert (
        "With 3 steps: σ/α at 100, 2, 0.5, 0, guidance `cfg(1.5, interval=(0.7, 4))`, solver "
        "`unipc(order=3)`."
    ) in text


def test_pictures_of_a_step_count_are_repeated(folder, tmp_path, capsys):
    fitted.store(folder, {3: RHOS["3"]}, {3: OWN})
    with pytest.raises(SystemExit) as stopped:
        main(["sample", str(folder), "--cond", "bag", "--steps", "3", "--out", str(tmp_path / "a")])
    assert not stopped.value.code and OWN["guidance"] in capsys.readouterr().out
    made = gs.load(folder).sample("bag", steps=3)
    assert made.settings.guidance == OWN["guidance"]
    assert made.settings.solver == OWN["solver"]
    assert (gs.load(folder).again(vars(made.settings)).images == made.images).all()


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"4": OWN}, "by_steps: 4 steps have no levels in grids"),
        ({"3": {"guidance": "cgf(3)"}}, "by_steps: 3: "),
        ({"3": {"steps": 4}}, 'by_steps must be an object of "guidance" and "solver"'),
        ({"3": ["solver"]}, 'by_steps must be an object of "guidance" and "solver"'),
        ([OWN], 'by_steps must be an object of "guidance" and "solver"'),
    ],
)
def test_a_card_with_other_settings_is_refused(folder, own, message):
    fitted.store(folder, {3: RHOS["3"]})
    file = Path(folder) / "guidestar.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "by_steps": own}))
    with pytest.raises(WeightsError, match=message):
        gs.load(folder)


def test_the_command_fits_and_keeps(folder, capsys):
    options = ["--steps", "3", "--steps", "4", "--samples", "2", "--fine", "6"]
    with pytest.raises(SystemExit) as stopped:
        main(["grid", str(folder), *options, "--guidance", "cfg(2)", "--write"])
    assert not stopped.value.code
    printed = capsys.readouterr().out.splitlines()
    kept = json.loads((folder / "guidestar.json").read_text())["grids"]
    assert [len(rhos) for rhos in kept.values()] == [4, 5] and list(kept) == ["3", "4"]
    assert printed[0] == f"3 steps: {', '.join(f'{r:.4g}' for r in kept['3'])}"
    levels = {float(f"{float(v.rho):.6g}") for v in gs.log_snr(gs.load(folder).schedule, 6)}
    assert all(set(rhos) <= levels for rhos in kept.values())
    assert gs.load(folder).request("bag", steps=4).grid == "fitted"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "40"], "--steps must be from 1 to 39"),
        (["--steps", "3", "--write"], "--write needs a model's folder"),
        (["--steps", "3", "--guidance", "cgf(3)"], "unknown name 'cgf'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["grid", "fashion-mnist", *arguments])
    assert stopped.value.code != 0 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    "grids",
    [{"3": [3, 2, 0]}, {"2": [1, 2, 0]}, {"2": [3, 1, 0.5]}, {"x": [1, 0]}, [1], {"1": [True, 0]}],
)
def test_a_card_with_other_grids_is_refused(folder, grids):
    about = json.loads((Path(folder) / "guidestar.json").read_text())
    (Path(folder) / "guidestar.json").write_text(json.dumps({**about, "grids": grids}))
    with pytest.raises(WeightsError, match="grids must be an object of falling noise ratios"):
        gs.load(folder)


def test_no_fitted_grid():
    with pytest.raises(ValueError, match="no grid was fitted to 'fashion-mnist'; guidestar grid"):
        gs.load("fashion-mnist").grid(6, "fitted")
