"""A run is one object: resolved once, the same whichever way it is carried out."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

import guidestar as gs
from guidestar.cli import main


class Labels:
    """An encoder of three classes that counts what it encodes."""

    classes = ("a", "b", "c")

    def __init__(self):
        self.encoded = []

    def index(self, name):
        return self.classes.index(name) if isinstance(name, str) else name

    def encode(self, names):
        self.encoded += names
        return gs.Condition(label=torch.tensor([self.index(n) for n in names], dtype=torch.float32))

    def null(self, batch):
        return gs.Condition(label=torch.full((batch,), -1.0))


@pytest.fixture
def model():
    net = gs.Network(lambda x, t, label: torch.tanh(x + 0.1 * label[:, None]), predicts="x0")
    return gs.Model(
        name="toy",
        denoiser=net,
        schedule=gs.VP.linear(),
        shape=(4,),
        encoder=Labels(),
        nets={"weak": (net, Labels())},
        defaults={"guidance": "cfg(2)", "steps": 5, "solver": "ddim", "grid": "karras"},
    )


def test_everything_is_resolved(model):
    request = model.request(1, seeds=[3, 4])
    assert request.names == ("b", "b") and request.seeds == (3, 4)
    assert request.guidance == gs.parse("cfg(2)") and request.solver == gs.DDIM()
    assert request.grid == "karras" and request.levels.steps == 5
    assert model.request(1, grid=gs.uniform(model.schedule, 4)).grid == "custom"
    assert str(model.request().guidance) == "uncond"
    with pytest.raises(FrozenInstanceError):
        request.negative = "c"  # type: ignore[misc]


def test_part_of_a_run(model):
    request = model.request(["a", "b", "c"], seeds=[1, 2, 3], start=torch.arange(12.0).view(3, 4))
    part = request.take(slice(1, 3), {"loss": len})
    assert part.names == ("b", "c") and part.seeds == (2, 3) and part.losses == {"loss": len}
    assert torch.equal(part.start, torch.arange(4.0, 12.0).view(2, 4))
    assert model.request(seeds=[1, 2]).take(slice(0, 1)).names is None


@pytest.mark.parametrize("guidance", ["cfg(3)", "cfg(3) + autoguidance(2)", "cond | rescale(0.7)"])
def test_every_way_gives_the_same_bits(model, guidance):
    how = {"guidance": guidance, "seeds": [5, 6], "steps": 4, "negative": "c", "solver": "ddpm"}
    samples = model.sample(["a", "b"], **how)
    request = model.request(["a", "b"], **how)
    assert torch.equal(samples.x, model.run(request).x)
    assert torch.equal(samples.x, list(model.states(request))[-1].x)
    assert torch.equal(samples.x, list(model.trajectory(["a", "b"], **how))[-1].x)
    assert torch.equal(samples.x, model.again(vars(samples.settings)).x)
    assert samples.settings == model.settings(request)


@pytest.mark.parametrize(
    ("guidance", "encoded"),
    [("cfg(3)", []), ("cond", []), ("autoguidance(2)", ["a"]), ("cfg(2) + autoguidance(2)", ["a"])],
)
def test_only_networks_that_are_used_get_a_condition(model, guidance, encoded):
    model.sample("a", guidance=guidance, steps=2)
    assert model.encoder.encoded == ["a"]
    assert model.nets["weak"][1].encoded == encoded


def test_errors_come_before_the_first_step(model):
    for wrong in ({"solver": "eulr"}, {"grid": "square"}, {"steps": 0}, {"guidance": "cgf(2)"}):
        with pytest.raises(ValueError):
            model.trajectory("a", **wrong)
    with pytest.raises(ValueError, match="start must have the shape"):
        model.request("a", start=torch.zeros(1, 5))


def test_an_error_within_a_repeated_run_keeps_its_kind(model):
    settings = vars(model.sample("a", steps=2).settings)

    def fails(done, steps):
        raise TypeError("of the caller")

    with pytest.raises(TypeError, match="of the caller"):
        model.again(settings, watch=fails)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bag", "--guidance", "cfg(3)"], "--guidance has no effect"),
        (["bag", "coat", "--scales", "1,2"], "leave --scales out"),
    ],
)
def test_an_option_that_a_strip_does_not_use_is_refused(tmp_path, capsys, arguments, message):
    out = tmp_path / "strip.png"
    with pytest.raises(SystemExit) as stopped:
        main(["strip", "fashion-mnist", *arguments, "--out", str(out)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_what_a_picture_cannot_carry_is_named(model):
    def lacking(**how):
        return model.request("a", **how).lacking()

    assert lacking(seeds=[1], steps=3, solver="heun", grid="uniform") == ()
    assert lacking(guidance="cond + dps(1)") == ("the loss 'loss'",)
    weight = gs.cfg(2.0, schedule=lambda value, step: 1.0)
    assert lacking(guidance=weight) == ("what its guidance was given in Python",)
    encoded = replace(model.request("a"), encoded=gs.Condition(label=torch.zeros(1)))
    assert encoded.lacking() == ("the condition it was given in Python",)
    assert lacking(solver=gs.DDIM(eta=0.5)) == ()
    assert lacking(solver=gs.TimeTravel()) == ("the solver it was given in Python",)
    assert lacking(grid=gs.uniform(model.schedule, 4)) == ("the grid it was given in Python",)
    assert lacking(start_rho=2.0) == ("the level it started at (start_rho)",)
    assert lacking(start_rho=2.0, start=torch.zeros(1, 4)) == ()  # "started" names this one
    with pytest.raises(ValueError, match=r"depended on the level it started at \(start_rho\)"):
        model.again(vars(model.sample("a", start_rho=2.0).settings))


@pytest.mark.parametrize(
    "place",
    [
        {"index": 2},
        {"index": -1},
        {"number": -1},
        {"stride": 0},
        {"number": 10**30},
        {"index": 1, "stride": 4, "number": 3},
        {"index": 1, "stride": 10**30, "number": 10**30},
    ],
)
def test_a_place_that_no_picture_has_is_refused(model, place):
    settings = {**vars(model.sample("a", seeds=[0, 1], steps=2).settings)}
    model.again({**settings, "index": 1, "stride": 4, "number": 4})
    with pytest.raises(ValueError, match="none of 2 has the index"):
        model.again({**settings, **place})


def test_samples_out_of_every_plausible_range_are_named(model):
    """tanh is within ±1, so cfg(1) is too; cfg(s) adds s − 1 times a difference of about 0.1."""
    model.sample(["a", "c"], guidance="cfg(1)", seeds=[0, 1], steps=4)
    with pytest.warns(gs.sampling.DivergenceWarning, match=r"1 of 2 samples .*\(sample 1\)"):
        list(model.trajectory(["a", "c"], guidance="cfg([1, 1000])", seeds=[0, 1], steps=4))
    model.card["data_scale"] = 1000
    model.sample(["a", "c"], guidance="cfg([1, 1000])", seeds=[0, 1], steps=4)
    model.card.pop("data_scale")
    with pytest.warns(gs.sampling.DivergenceWarning, match="1 of 1 samples"):
        model.steer(lambda x: x.sum(1), "c", particles=2, guidance="cfg(100000)", steps=4)


def test_a_strip_names_the_term_that_made_it_not_finite():
    from guidestar.apps.strip import rising

    with pytest.raises(FloatingPointError, match=r"at step 0 the push of 'cfg\(\[1, 1e\+30\]\)'"):
        rising(gs.load("fashion-mnist"), "bag", [1, 1e30], steps=2)


def test_a_strip_is_what_single_runs_give():
    from guidestar.apps.strip import rising

    model = gs.load("fashion-mnist")
    images = rising(model, "bag", [1.0, 3.0], seed=4, steps=2)
    for image, scale in zip(images, (1, 3), strict=True):
        one = model.sample("bag", guidance=f"cfg({scale})", seeds=[4], steps=2).images[0]
        assert torch.allclose(image, one, atol=1e-5)


def test_a_guided_is_copied_but_not_pickled(model):
    import copy
    import pickle

    guided = model.guided("cfg(2)", cond=["a"], seeds=[0])
    x, step = torch.ones(1, 4), model.grid(3).step(0)
    assert torch.equal(copy.deepcopy(guided)(x, step).prediction.x0, guided(x, step).prediction.x0)
    with pytest.raises(TypeError, match=r"send str\(guided.guidance\)"):
        pickle.dumps(guided)


@pytest.mark.parametrize(
    "command",
    [
        ("strip", "fashion-mnist", "bag"),
        ("evaluate", "fashion-mnist", "--guidance", "cond"),
        ("recipe", "somewhere"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything(tmp_path, capsys, command):
    out = tmp_path / "a.png"
    if command[0] != "recipe":
        out.mkdir()
    else:
        out = tmp_path / "file" / "recipe.toml"
        (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--out", str(out)])
    said = capsys.readouterr().err.strip()
    assert stopped.value.code == 1 and "cannot write" in said and len(said.splitlines()) == 1


def test_a_divergence_is_one_line_on_the_command_line(tmp_path, capsys, recwarn):
    with pytest.raises(SystemExit):
        main(
            [
                "sample",
                "fashion-mnist",
                "--cond",
                "bag",
                "--guidance",
                "cfg(300)",
                "--steps",
                "2",
                "--out",
                str(tmp_path),
            ]
        )
    assert "guidestar: note: 1 of 1 samples have diverged (sample 0)" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["sample", "trajectory", "request"])
def test_an_argument_that_a_run_does_not_have_is_refused(method):
    model = gs.load("fashion-mnist")
    with pytest.raises(TypeError, match=r"a run has no argument 'stpes'; did you mean 'steps'\?"):
        getattr(model, method)("Bag", stpes=3)


def test_a_steered_run_has_no_data_to_start_from():
    model = gs.load("fashion-mnist")
    for name in ("start", "start_rho", "checkpoint"):
        with pytest.raises(TypeError, match=f"a steered run has no argument '{name}'"):
            model.steer(lambda x: x.mean((1, 2, 3)), "Bag", **{name: 1})


def test_the_arguments_of_a_run_where_they_are_not_given(model):
    run = model.request("a")
    assert (run.seeds, run.checkpoint, run.max_rows, run.negative) == ((0,), False, None, None)
    assert (run.start, run.start_rho, run.losses, run.encoded) == (None, None, None, None)
    assert model.sample("a", steps=1).settings.seeds == (0,)
    assert model.steer(lambda x: x.mean(1), "a", steps=1).settings.solver == "ddpm"
