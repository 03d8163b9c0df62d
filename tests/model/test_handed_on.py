"""What a model hands to its guidance, its stages and its population, argument by argument."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import guidestar as gs
from guidestar.core.denoiser import Condition
from guidestar.model import binding, cascade, steering
from guidestar.model import model as models
from guidestar.model.cascade import Cascade
from guidestar.model.cascade_stages import StageSettings
from guidestar.sampling.resampling import choose_ancestors, count_starts, take_particles
from helpers.noting import noted
from helpers.served import toy_model
from helpers.toys import WORDS


def values(cond: Any) -> list[float]:
    return [round(v, 4) for v in cond["c"].tolist()]


def test_networks_are_bound_to_the_conditions_of_a_run():
    model = toy_model()
    net = binding._net_of(model, print, model.encoder, ["cat", "dog"], "blurry")  # type: ignore[arg-type]
    assert net.denoiser is print and values(net.cond) == [WORDS["cat"], WORDS["dog"]]
    assert values(net.null) == [0.0] and values(net.negative) == [WORDS["blurry"]]
    assert net.encode is not None and values(net.encode(["dog"])) == [WORDS["dog"]]
    assert net.part is not None and values(net.part("x")) == [WORDS["cat"], WORDS["dog"]]
    assert values(net.part("c")) == [0.0, 0.0]
    for nothing in (None, ""):
        assert binding._net_of(model, print, model.encoder, None, nothing).negative is None  # type: ignore[arg-type]
    own = Condition(c=torch.tensor([3.0]))
    net = binding._net_of(model, print, model.encoder, own, None)  # type: ignore[arg-type]
    assert net.cond is own and net.part is None
    assert binding._net_of(model, print, model.encoder, None, None).cond is None  # type: ignore[arg-type]
    bare = binding._net_of(model, print, None, None, "")  # type: ignore[arg-type]
    assert (bare.cond, bare.null, bare.encode, bare.part) == (None,) * 4
    without: Any = SimpleNamespace(null=lambda count: None)
    assert binding._net_of(model, print, without, None, None).null is None  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes no condition, so no negative either; leave it out"):
        binding._net_of(model, print, None, None, "dog")  # type: ignore[arg-type]


def test_the_scale_of_a_student_is_in_its_conditions():
    model = toy_model()
    net = binding._net_of(model, print, model.encoder, ["cat", "dog"], "blurry")  # type: ignore[arg-type]
    assert binding._with_scale(model, net, None) is net
    found = binding._with_scale(model, net, (2.0, 3.0))
    scale = lambda cond: cond["guidance_scale"].tolist()
    assert scale(found.cond) == [2.0, 3.0] and values(found.cond) == values(net.cond)
    assert scale(found.null) == scale(found.negative) == [1.0]
    assert scale(found.encode(["cat"])) == [1.0] and scale(found.part("x")) == [2.0, 3.0]  # type: ignore[misc]
    one = binding.add_scale(Condition(c=torch.zeros(2)), [4.0], torch.device("cpu"))
    assert one["guidance_scale"].tolist() == [4.0, 4.0]
    many = binding.add_scale(Condition(c=torch.ones(1)), [4.0, 5.0], torch.device("cpu"))
    assert many["c"].tolist() == [1.0, 1.0]
    bare = binding._with_scale(model, gs.Net(denoiser=print), (2.0,))  # type: ignore[arg-type]
    assert (bare.cond, bare.null, bare.encode, bare.part) == (None,) * 4


def test_only_networks_of_the_expression_get_conditions():
    model = toy_model()
    nets = binding.nets_of(model, gs.parse("cfg(2)"), ["cat"], None, None)
    assert nets["main"].cond is not None and nets["weak"].cond is None
    nets = binding.nets_of(model, gs.parse("cond + autoguidance(2)"), ["cat"], None, (2.0,))
    assert nets["weak"].cond is not None and "guidance_scale" in nets["main"].cond  # type: ignore[operator]
    assert "guidance_scale" not in nets["weak"].cond
    assert binding.target_of(model, ["dog", "cat"]).tolist() == [1, 0]  # type: ignore[union-attr]
    assert binding.target_of(model, ["dog", ""]) is None and binding.target_of(model, None) is None
    model.classifiers = {}
    assert binding.index_of(model)("dog") == 1  # type: ignore[misc]
    model.encoder = None
    assert binding.index_of(model) is None


# Steering


def test_a_population_is_run_as_the_request_and_the_steering_say(monkeypatch):
    found = SimpleNamespace(best=torch.ones(2, 1), evaluations=(3, 4, 5, 6))
    ran = noted(monkeypatch, steering, "steer_particles", found)
    warned, bound, settings = [], [], []
    monkeypatch.setattr(steering, "_crowded", lambda request, count: (request, count))
    model: Any = SimpleNamespace(
        bind=lambda given: bound.append(given) or "guided", shape=(1,), device="cpu",
        to_images=lambda x: x * 10, warn_of_divergence=warned.append,
        settings=lambda request, **more: settings.append((request, more)) or "settings",
    )  # fmt: skip
    checked: list[int] = []
    guidance = SimpleNamespace(check_samples=checked.append)
    request: Any = SimpleNamespace(
        levels=SimpleNamespace(steps=7), guidance=guidance, seeds=(5, 6), solver="ddpm"
    )
    how: Any = SimpleNamespace(particles=2, strength=0.5, potential="max", every=3, threshold=0.4)
    seen: list[Any] = []
    samples = steering.steer_model(model, lambda images: images.sum(1), request, how,
                             lambda *w: seen.append(w))  # fmt: skip
    assert checked == [2] and bound == [(request, 2)] and ran[0][0] == ("guided",)
    given = dict(ran[0][1])
    reward = given.pop("reward")
    assert given == {"grid": request.levels, "solver": "ddpm", "seeds": (5, 6), "shape": (1,),
                     "device": "cpu", "particles": 2, "strength": 0.5, "potential": "max",
                     "every": 3, "threshold": 0.4}  # fmt: skip
    assert reward(torch.tensor([[2.0]])).tolist() == [20.0] and seen == [(1, 7)]
    reward(torch.tensor([[2.0]]))
    assert seen[-1] == (2, 7)
    with pytest.raises(FloatingPointError):
        reward(torch.tensor([[float("nan")]]))
    assert samples.x is found.best and samples.images.tolist() == [[10.0], [10.0]]
    assert samples.evaluations == (7, 11) and samples.population is found
    assert warned == [found.best] and samples.settings == "settings"
    lacking = {"dtype": torch.float32, "lacking": ("the reward it was steered by",)}
    assert settings == [(request, lacking)]


def test_each_particle_has_the_request_of_its_sample():
    model = toy_model()
    y = torch.arange(2.0).view(2, 1)
    loss = gs.Observation("identity", y)
    request = model.request(["cat", "dog"], seeds=[5, 6], steps=2, guidance="cfg([1, 2])",
                            losses={"loss": loss, "own": abs})  # type: ignore[dict-item]  # fmt: skip
    found = steering._crowded(request, 3)
    assert found.names == ("cat",) * 3 + ("dog",) * 3 and len(found.seeds) == 6
    assert str(found.guidance) == "cfg([1, 1, 1, 2, 2, 2])"
    losses: Any = found.losses
    assert losses["loss"].y.flatten().tolist() == [0.0] * 3 + [1.0] * 3 and losses["own"] is abs
    one = gs.Observation("identity", y[:1])
    assert steering._repeated(one, 3) is one
    bare = steering._crowded(model.request(seeds=[5], steps=2, guidance="uncond"), 2)
    assert bare.names is None and not bare.losses


def test_what_particles_take_over():
    rows = torch.tensor([2, 0, 0])
    x, other = torch.arange(3.0), torch.arange(4.0)
    found: Any = take_particles({"a": (x, other), "b": 5, "c": [x]}, rows)
    assert found["a"][0].tolist() == [2.0, 0.0, 0.0] and found["a"][1] is other
    assert found["b"] == 5 and found["c"][0] is x and isinstance(found["a"], tuple)
    weights = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]).double()
    u, chosen = torch.tensor([0.0, 0.5]), torch.tensor([False, True])
    assert choose_ancestors(weights, u, chosen).tolist() == [[0, 1, 2], [0, 0, 0]]
    starts = torch.tensor([[0, 1, 1], [2, 1, 0]])
    assert count_starts(weights, starts).tolist() == pytest.approx([2.0, 1.0])


# Cascades


def stages(**defaults: Any) -> Any:
    made: Any = object.__new__(Cascade)
    for key, value in {
        "name": "c",
        "stages": {"base": 1, "large": 2},
        "defaults": defaults,
    }.items():
        object.__setattr__(made, key, value)
    return made


def test_settings_of_stages_go_before_the_common_ones():
    common = StageSettings(guidance="g", steps=9, augmentation=0.2, solver="heun")
    own = {"large": StageSettings(steps=3, grid="karras")}
    made = stages(large=StageSettings(steps=5), base=StageSettings(solver="ddim"))
    found = made._settings(own, common)
    assert found == {
        "base": StageSettings(guidance="g", steps=9, solver="ddim"),
        "large": StageSettings(guidance="g", steps=3, augmentation=0.2, solver="heun",
                               grid="karras"),
    }  # fmt: skip
    assert made._settings(None, StageSettings())["large"].steps == 5
    with pytest.raises(ValueError, match="'c' has no stage 'x'; its stages are base, large"):
        made._settings({"x": StageSettings()}, common)
    with pytest.raises(ValueError, match="the base 'base' enlarges nothing, so it has no augmenta"):
        made._settings({"base": StageSettings(augmentation=0.1)}, common)


def carried(**more: Any) -> dict[str, Any]:
    stage = {"guidance": "cfg(2)", "steps": 3, "solver": "ddim", "grid": "karras",
             "augmentation": 0.1, "seeds": [7, 8], "negative": "n"}  # fmt: skip
    return {"seeds": [1, 2], "cond": ["cat"], "stages": {"base": {**stage, **more}}}


def test_a_cascades_picture_repeats_its_run(monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(Cascade, "sample", lambda self, *a, **k: asked.append((a, k)) or "again")
    made = stages()
    assert made.again(carried(), print) == "again"
    wanted = StageSettings(guidance="cfg(2)", steps=3, solver="ddim", grid="karras",
                           augmentation=0.1, seeds=(7, 8), negative="n")  # fmt: skip
    assert asked == [((["cat"],), {"seeds": [1, 2], "stages": {"base": wanted}, "watch": print})]
    for bad in ({}, {"stages": []}, {**carried(), "stages": {"base": 1}},
                {"stages": carried()["stages"], "seeds": [1]},
                {**carried(), "stages": {"base": {"guidance": "g"}}}):  # fmt: skip
        with pytest.raises(
            ValueError, match="the picture is not of a cascade; give one that a cas"
        ):
            made.again(bad)
    with pytest.raises(
        ValueError, match="this run depended on a reward, which the picture does no"
    ):
        made.again(carried(lacking=["a reward"]))


@pytest.mark.parametrize(
    ("cond", "count"), [(None, 1), ("cat", 1), (0, 1), (["a", "b"], 2), ([], 1)]
)
def test_a_cascades_plan_is_of_all_its_stages(monkeypatch, cond, count):
    planned = noted(monkeypatch, cascade, "planned")
    calls: list[Any] = []
    model: Any = SimpleNamespace(plan=lambda *a, **k: calls.append((a, k)) or "plan")
    monkeypatch.setattr(cascade, "planned", lambda m, n: planned.append((m, n)) or model)
    guided = noted(monkeypatch, cascade, "own_guidance", "own")
    made = stages()
    monkeypatch.setattr(Cascade, "base", SimpleNamespace(encoder="e"), raising=False)
    own = {"large": StageSettings(steps=3, negative="x")}
    found = made.plan("g", cond=cond, stages=own, negative="n", steps=9, solver="heun", grid="k")
    assert found == {"base": "plan", "large": "plan"} and planned == [(1, count), (2, count)]
    common = {"cond": cond, "solver": "heun", "grid": "k"}
    assert calls == [(("own",), {**common, "negative": "n", "steps": 9}),
                     (("own",), {**common, "negative": "x", "steps": 3})]  # fmt: skip
    assert guided[0][0] == (model, "g", cond)
    monkeypatch.setattr(Cascade, "base", SimpleNamespace(encoder=None), raising=False)
    made.plan("g", cond=cond)
    assert calls[-1][1]["cond"] is None and guided[-1][0] == (model, "g", None)


@pytest.mark.parametrize(
    ("takes", "cond", "prompts"),
    [
        (True, ["cat", 3], ["cat", "3"]),
        (False, ["cat", "dog"], None),
        (True, None, None),
        (True, Condition(c=torch.tensor([3.0])), None),
    ],
)
def test_captions_of_a_run_are_names_that_a_model_takes_as_prompts(
    monkeypatch, takes, cond, prompts
):
    model = toy_model()
    monkeypatch.setattr(type(model), "takes_prompts", property(lambda self: takes))
    monkeypatch.setattr(models, "nets_of", lambda *given: {})
    monkeypatch.setattr(models, "target_of", lambda *given: None)
    made = noted(monkeypatch, models, "Guided", "guided")
    assert model.guided("cond", cond=cond) == "guided"
    ((_, named),) = made
    assert named["prompts"] == prompts
