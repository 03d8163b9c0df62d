"""What a run is where something is left out, and what its networks are told: of a toy model."""

import json
import math
import warnings

import pytest
import torch

from guidestar import Grid, Model, Network, karras, log_snr, uniform
from guidestar.core.denoiser import Condition
from guidestar.core.levels import Flow
from guidestar.core.rng import Draw
from guidestar.guidance import parse
from guidestar.model.fitted import defaults_of, grid_name, ratios_of, store
from guidestar.sampling import DDIM, SOLVERS

MEANS = {"": 0.0, "a": 1.0, "b": -2.0}


class Classes:
    classes = ("a", "b")

    def index(self, name):
        if name in (0, 1):
            return name
        if name not in self.classes:
            raise ValueError(f"there is no class {name!r}")
        return self.classes.index(name)

    def encode(self, names):
        found = [MEANS[n if n == "" else self.classes[self.index(n)]] for n in names]
        return Condition(m=torch.tensor(found))

    def null(self, batch):
        return self.encode([""] * batch)


def velocity(x, t, m=None):
    """Of data that are the number m."""
    asked.append((len(x), None if m is None else m.tolist()))
    time = torch.as_tensor(t).reshape(-1, 1)
    return (x - (0.0 if m is None else m[:, None])) / time


asked: list = []


def toy(encoder=True, **more):
    asked.clear()
    given = {
        "name": "toy",
        "denoiser": Network(velocity, predicts="velocity"),
        "schedule": Flow(),
        "shape": (3,),
        "encoder": Classes() if encoder else None,
    }
    return Model(**{**given, **more})


def test_a_grid_is_the_cards_unless_another_is_named():
    model = toy()
    assert model.grid() == log_snr(Flow(), 20)
    told = toy(defaults={"grid": "karras", "steps": 7})
    assert told.grid() == karras(Flow(), 7) and told.grid(3) == karras(Flow(), 3)
    assert told.grid(grid="uniform") == uniform(Flow(), 7)
    own = uniform(Flow(), 2)
    assert told.grid(5, own) is own
    for steps in (1, 10_000):
        assert told.grid(steps).steps == steps
    for steps in (0, 10_001, -1):
        with pytest.raises(ValueError, match=f"steps must be from 1 to 10000, not {steps}"):
            told.grid(steps)
    with pytest.raises(ValueError, match="unknown grid 'log'; the grids are "):
        told.grid(grid="log")


FITTED = {"grids": {"2": [3.0, 1.0, 0.0], "4": [9.0, 5.0, 2.0, 1.0, 0.0]},
          "by_steps": {"2": {"guidance": "cfg(7)"}, "4": {"solver": "heun"}}}  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "grid", "guidance", "solver"),
    [
        (2, None, "cfg(7)", "ddim"),
        (4, None, "cfg(2)", "heun"),
        (3, None, "cfg(2)", "ddim"),  # nothing was fitted for them
        (2, "fitted", "cfg(7)", "ddim"),
        (2, "uniform", "cfg(2)", "ddim"),
        (2, uniform(Flow(), 2), "cfg(2)", "ddim"),
        (None, None, "cfg(2)", "heun"),  # four, as the card says
    ],
)
def test_settings_belong_to_their_fitted_grid(steps, grid, guidance, solver):
    card = {"guidance": "cfg(2)", "solver": "ddim", "steps": 4}
    model = toy(card=FITTED, defaults=card)
    found = defaults_of(model, steps, grid)
    assert found == {**card, "guidance": guidance, "solver": solver}
    assert model.defaults == card  # and stays


def test_levels_that_were_fitted():
    model = toy(card=FITTED, defaults={"grid": "karras"})
    assert grid_name(model, 2) == "fitted" and grid_name(model, 3) == "karras"
    assert grid_name(model, 2, "uniform") == "uniform" and grid_name(toy()) == "log_snr"
    assert grid_name(toy(card={"grids": {"20": [1.0] * 21}})) == "fitted"
    assert [level.rho for level in model.grid(2)] == pytest.approx([3.0, 1.0, 0.0])
    assert ratios_of(FITTED) == {2: [3.0, 1.0, 0.0], 4: [9.0, 5.0, 2.0, 1.0, 0.0]}
    assert ratios_of({}) == {}
    with pytest.raises(ValueError, match="no grid was fitted to 'toy'; guidestar grid FOLDER --st"):
        toy().grid(3, "fitted")


def test_fitted_levels_are_stored_beside_others(tmp_path):
    file = tmp_path / "guidestar.json"
    about = {"name": "m", "grids": {"10": [1, 0]}, "by_steps": {"10": {"solver": "heun"}}}
    file.write_text(json.dumps(about))
    store(tmp_path, {2: [3.0, 1.0, 0.0]}, {2: {"guidance": "cond"}})
    found = json.loads(file.read_text())
    assert list(found["grids"].items()) == [("2", [3.0, 1.0, 0.0]), ("10", [1, 0])]
    assert list(found["by_steps"]) == ["2", "10"] and found["name"] == "m"
    store(tmp_path, {2: [4.0, 1.0, 0.0]})  # a new grid has the card's settings again
    found = json.loads(file.read_text())
    assert found["grids"]["2"] == [4.0, 1.0, 0.0]
    assert found["by_steps"] == {"10": {"solver": "heun"}}
    store(tmp_path, {10: [2.0, 0.0]})
    assert "by_steps" not in json.loads(file.read_text())


def test_an_expression_is_the_cards_where_there_is_a_condition():
    model = toy(defaults={"guidance": "cfg(3)"})
    assert model.expression(None) == parse("cfg(3)")
    assert model.expression(None, conditional=False) == parse("uncond")
    assert toy().expression(None) == parse("cond")
    plain = toy(encoder=False, defaults={"guidance": "cfg(3)"})
    assert plain.expression(None) == parse("uncond")
    assert model.expression("cfg(2)", conditional=False) == parse("cfg(2)")


def test_a_request_resolves_what_is_left_out():
    model = toy(defaults={"guidance": "cfg(3)", "steps": 4, "solver": "ddim", "grid": "uniform"})
    found = model.request("a", seeds=[5, 6])
    assert (found.names, found.seeds, found.grid) == (("a", "a"), (5, 6), "uniform")
    assert found.guidance == parse("cfg(3)") and found.solver == DDIM()
    assert found.levels == uniform(Flow(), 4) and found.max_rows is None and not found.checkpoint
    assert found.negative is found.start is found.start_rho is found.losses is None
    assert model.request(grid="karras").grid == "karras"
    assert model.request(grid="karras").levels == karras(Flow(), 4)
    bare = model.request()
    assert (bare.names, bare.seeds, bare.guidance) == (None, (0,), parse("uncond"))
    assert toy().request().solver == SOLVERS["dpmpp-2m"]() and toy().request().grid == "log_snr"
    losses = {"loss": lambda x: x.flatten(1).sum(1)}
    whole = model.request(
        [0, "b"],
        guidance="cfg(2)",
        seeds=[5, 6],
        negative="b",
        steps=9,
        solver="heun",
        grid=uniform(Flow(), 9),
        start=torch.zeros(2, 3),
        start_rho=1.0,
        losses=losses,
        max_rows=3,
        checkpoint=True,
    )
    assert whole.names == ("a", "b") and whole.grid == "custom" and whole.losses is losses
    assert (whole.negative, whole.start_rho, whole.max_rows) == ("b", 1.0, 3) and whole.checkpoint
    assert whole.start.shape == (2, 3) and whole.levels[0].rho == pytest.approx(0.8)
    part = whole.take(slice(1, 2))
    assert (part.names, part.seeds, part.losses) == (("b",), (6,), None) and len(part.start) == 1
    assert part.levels == whole.levels and part.negative == "b"
    assert bare.take(slice(0, 1)).names is None and bare.take(slice(0, 1)).start is None


@pytest.mark.parametrize(
    ("cond", "count", "wanted"),
    [
        (None, 2, None),
        ("b", 1, ("b",)),
        (1, 2, ("b", "b")),
        (["a", 1], 2, ("a", "b")),
        ([0], 3, ("a", "a", "a")),
        (["", "a"], 2, ("", "a")),
    ],
)
def test_conditions_are_one_or_one_a_sample(cond, count, wanted):
    assert toy().names(cond, count) == wanted


def test_conditions_that_do_not_fit_are_refused():
    for names, count in ((["a", "b"], 3), (["a", "b"], 1), ([], 2)):
        with pytest.raises(ValueError, match=f"^{len(names)} conditions were given for {count} "):
            toy().names(names, count)
    with pytest.raises(ValueError, match="the model 'toy' is unconditional; leave cond out"):
        toy(encoder=False).names("a", 1)
    with pytest.raises(ValueError, match="takes no condition, so no negative either"):
        toy(encoder=False).sample(negative="a")
    assert toy(encoder=False).sample(negative="", steps=1).x.shape == (1, 3)


@pytest.mark.parametrize(
    ("guidance", "negative", "wanted"),
    [
        ("cond", None, lambda m: m),
        ("cfg(3)", None, lambda m: 3 * m),
        ("cfg(3)", "b", lambda m: -2.0 + 3 * (m + 2.0)),
        ("cfg(3)", "", lambda m: 3 * m),
        ("uncond", None, lambda m: 0 * m),
    ],
)
def test_samples_are_those_of_the_guided_number(guidance, negative, wanted):
    """Data that are one number: every solver ends there, at the guided mean."""
    found = toy().sample(
        ["a", "b"], guidance=guidance, negative=negative, seeds=[3, 4], steps=5, solver="ddim"
    )
    means = wanted(torch.tensor([1.0, -2.0]))[:, None].expand(2, 3)
    torch.testing.assert_close(found.x, means, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.images, means.clamp(-1, 1), atol=1e-4, rtol=1e-4)
    one = 5 if guidance in ("cond", "uncond") else 10
    assert found.evaluations == (one, one) and found.nfe == one
    s = found.settings
    assert (s.model, s.cond, s.negative, s.guidance) == ("toy", ("a", "b"), negative, guidance)
    assert (s.steps, s.solver, s.grid, s.started) == (5, "ddim", "log_snr", False)


def test_a_run_starts_from_noise_of_its_seeds_and_says_where_it_is():
    model, heard = toy(), []
    states = list(model.trajectory("a", seeds=[7, 9], steps=3, grid="uniform", solver="ddim"))
    noise = Draw([7, 9]).at(-1).normal("start", (3,))
    first = states[0].prediction
    torch.testing.assert_close(first.x_t, noise)  # at time 1 alone
    model.sample("a", steps=3, watch=lambda done, of: heard.append((done, of)))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    data = torch.full((2, 3), 5.0)
    started = list(
        model.trajectory("a", seeds=[7, 9], steps=4, grid="uniform", start=data, start_rho=1.0)
    )
    level = started[0].step.t
    assert float(level.rho) == pytest.approx(1.0) and len(started) == 2
    torch.testing.assert_close(started[0].prediction.x_t, level.alpha * data + level.sigma * noise)


def test_plans_are_of_as_many_samples_as_conditions_or_scales():
    model = toy(defaults={"guidance": "cfg(2)", "steps": 3, "solver": "heun", "grid": "uniform"})
    assert model.plan().nfe == 2 * 5  # heun's last step is single
    assert model.plan(solver="ddim").nfe == 6 and model.plan("cond", solver="ddim").nfe == 3
    assert model.plan(None, cond=None, solver="ddim").nfe == 3  # uncond
    assert model.plan("cfg([1, 3])", cond=["a", "b"], solver="ddim").nfe == pytest.approx(4.5)
    assert model.plan("cfg([1, 3, 2])", cond="a", solver="ddim").nfe == pytest.approx(5)
    assert model.plan("cfg(2) + dps(1)", solver="ddim").nfe == 6
    assert toy(encoder=False).plan(steps=2, solver="ddim").nfe == 2
    lossy = toy(defaults={"guidance": "cfg(2) + dps(1)", "steps": 3, "solver": "ddim"})
    assert lossy.plan().nfe == 6 and lossy.plan(cond=None).nfe == 3
    with pytest.raises(ValueError, match="takes no scale as an input; write it in the guidance"):
        model.plan(scale=2.0)
    with pytest.raises(ValueError, match="takes no condition, so no negative either"):
        toy(encoder=False).plan(steps=2, negative="b")
    with pytest.raises(ValueError, match="unknown solver 'nothing'"):
        model.plan(solver="nothing")
    assert not asked  # nothing has run


def test_operators_of_images_need_a_model_of_images():
    with pytest.raises(ValueError, match=r"'toy' does not make pictures, but samples of \[3\]"):
        toy().on_images("identity")


def test_a_wide_sample_is_warned_of_by_the_size_of_the_data():
    """Values above what data of the card's scale may have."""
    wide = torch.full((2, 3), 60.0)
    for card, count in (({}, 1), ({"data_scale": 60.0}, 0), ({"data_scale": 1e-3}, 1)):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            toy(card=card).warn_of_divergence(wide)
        assert ["diverged" in str(w.message) for w in said] == [True] * count


def test_what_a_model_is():
    model = toy()
    assert model.classes == ("a", "b") and not model.takes_prompts and not model.latent
    assert toy(encoder=False).classes == () and model.device == torch.device("cpu")
    assert model.to("cpu") is model
    assert isinstance(model.grid(2), Grid)
    odd = toy(decode=lambda x: x * math.nan)
    with pytest.raises(FloatingPointError, match="the decoder of 'toy' returned values"):
        odd.sample("a", steps=1)


def test_a_model_is_shown_with_what_it_has():
    lines = repr(toy(defaults={"steps": 3}, card={"summary": "a toy"})).splitlines()
    assert lines[0] == "Model 'toy': a toy"
    assert lines[1] == "  network      Network, 0 parameters, on cpu"
    assert lines[2:4] == ["  schedule     Flow", "  samples      [3]"]
    assert lines[5:] == ["  nets         none", "  classifiers  none", "  defaults     steps=3"]
    plain = repr(toy(denoiser=lambda x, level, cond: x)).splitlines()
    assert plain[0] == "Model 'toy'" and plain[1] == "  network      function, 0 parameters, on cpu"
    counted = repr(toy(denoiser=torch.nn.Linear(3, 500))).splitlines()
    assert counted[1] == "  network      Linear, 2,000 parameters, on cpu"
