"""A run is one object: resolved once, the same whichever way it is carried out."""

from dataclasses import FrozenInstanceError

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
        (["bag", "--guidance", "cfg(3)"], "--guidance has no part"),
        (["bag", "coat", "--scales", "1,2"], "leave --scales out"),
    ],
)
def test_an_option_that_a_strip_does_not_use_is_refused(tmp_path, capsys, arguments, message):
    out = tmp_path / "strip.png"
    with pytest.raises(SystemExit) as stopped:
        main(["strip", "fashion-mnist", *arguments, "--out", str(out)])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err and not out.exists()
