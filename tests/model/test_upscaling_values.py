"""A super-resolution condition and its run, blame for samples that are not finite, fitted grids."""

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import guidestar as gs
from guidestar.checkpoints import edm
from guidestar.core.rng import Draw
from guidestar.data.reduced import Reduced
from guidestar.model import fitted, upscaling, walking
from guidestar.model.upscaling import Pictured, with_pictures
from guidestar.networks.condition_encoders import ClassEncoder
from guidestar.networks.conditions import Conditions
from guidestar.networks.low_resolution import LOW, LowResolution, augmented, reduced
from helpers.served import toy_model


def low(**more: Any) -> LowResolution:
    torch.manual_seed(0)
    made = LowResolution(channels=1, size=2, to=4, width=3, **more)
    torch.nn.init.normal_(made.unknown)
    return made


def model(**more: Any) -> Any:
    made = toy_model(shape=(1, 4, 4))
    made.encoder = low(**more)  # type: ignore[assignment]
    return made


PICTURES = torch.tensor([[[[0.5, -0.5], [0.25, 0.0]]], [[[1.0, 0.0], [-1.0, 0.5]]]])


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_the_condition_of_a_smaller_picture(level):
    """``W₂ silu(W₁ [s, sin, cos])`` of s·π·2^k, beside the bilinear enlargement."""
    part = low()
    rows = torch.cat([PICTURES, torch.full((2, 1, 2, 2), level)], 1)
    found = part(rows)
    wide = F.interpolate(PICTURES, (4, 4), mode="bilinear", align_corners=False)
    assert torch.allclose(found[LOW], wide)
    count = (part.first.in_features - 1) // 2
    angles = [level * math.pi * 2**k for k in range(count)]
    features = torch.tensor([level, *map(math.sin, angles), *map(math.cos, angles)])
    wanted = part.second.weight @ F.silu(part.first.weight @ features + part.first.bias)
    assert torch.allclose(found["class_labels"], wanted + part.second.bias, atol=1e-5)
    null = part.null(3)
    assert null.batch == 3 and not null[LOW].any()
    assert torch.equal(null["class_labels"], part.unknown.expand(3, -1))
    assert part.null_row().shape == (2, 2, 2) and bool(part.null_row().isnan().all())
    assert part.rows(rows) is rows
    for refused in (part.parse, lambda name: part.encode([name])):
        with pytest.raises(ValueError, match="takes a picture, not its name alone; call"):
            refused("cat")


def test_pictures_are_reduced_by_means_over_squares():
    x = torch.arange(72.0).view(2, 1, 6, 6)
    found = reduced(x, 2)
    assert found.shape == (2, 1, 2, 2) and float(found[1, 0, 1, 0]) == 36 + 18 + 7  # centre (4, 1)
    assert torch.equal(reduced(x, 6), x)
    for height, width in ((4, 6), (6, 4), (5, 5), (6, 5)):
        line = f"pictures of {height} x {width} pixels cannot be reduced to 2, of"
        with pytest.raises(ValueError, match=line):
            reduced(torch.zeros(1, 1, height, width), 2)


@pytest.mark.parametrize("shape", [(1, 4, 6), (1, 6, 4), (1, 5, 5), (4, 4), (1, 4, 4, 4)])
def test_sources_whose_pictures_cannot_be_reduced(shape):
    source: Any = SimpleNamespace(shape=shape, size=3)
    with pytest.raises(ValueError, match=r"cannot be reduced to 2 x 2 pixels; choose a size"):
        Reduced(source=source, side=2)


def test_noise_of_the_smaller_picture():
    draw = Draw([3, 4])
    found = augmented(PICTURES, torch.tensor([0.6, 0.0]), draw)
    noise = draw.normal_like("augmentation", PICTURES)
    assert torch.allclose(found[0, :1], 0.8 * PICTURES[0] + 0.6 * noise[0])
    assert torch.equal(found[1, :1], PICTURES[1])
    assert found[:, 1].flatten(1).tolist() == [pytest.approx([0.6] * 4), [0.0] * 4]


@pytest.mark.parametrize(
    ("largest", "given", "used"),
    [(0.5, None, 0.1), (0.05, None, 0.05), (0.5, 0.5, 0.5), (0.5, 0, 0)],
)
def test_pictures_are_bound_with_noise_of_their_seeds(largest, given, used):
    found = with_pictures(model(largest=largest), PICTURES, seeds=[3, 4], augmentation=given)
    levels = torch.full((2,), float(used)).double()
    encoder: Any = found.encoder
    assert isinstance(encoder, Pictured)
    assert torch.equal(encoder.pictures, augmented(PICTURES, levels, Draw([3, 4])))


@pytest.mark.parametrize(
    ("pictures", "seeds", "augmentation", "line"),
    [
        (PICTURES[:, :, :1], [1, 2], None, "enlarges pictures of 1 x 2 x 2 .*, not of 1 x 1 x 2"),
        (PICTURES[0], [1, 2], None, "not of 2 x 2; resize them"),
        (PICTURES, [1], None, "2 pictures were given for 1 seeds; give one each"),
        (PICTURES, [1, 2], 0.6, "must be from 0 to 0.5, the largest that 'toy' was trained with"),
        (PICTURES, [1, 2], -0.1, "must be from 0 to 0.5, .*, not -0.1"),
        (PICTURES, [1, 2], math.nan, "must be from 0 to 0.5, .*, not nan"),
    ],
)
def test_pictures_that_do_not_fit(pictures, seeds, augmentation, line):
    with pytest.raises(ValueError, match=line):
        with_pictures(model(), pictures, seeds=seeds, augmentation=augmentation)


def test_models_that_enlarge_nothing_and_plans():
    plain = toy_model()
    with pytest.raises(ValueError, match="the model 'toy' enlarges no pictures; give a super"):
        with_pictures(plain, PICTURES, seeds=[1, 2])
    assert upscaling.planned(plain) is plain
    found: Any = upscaling.planned(model(), 3).encoder
    assert found.pictures.shape == (3, 2, 2, 2)
    own = SimpleNamespace(expression=lambda given: gs.parse("cfg(2) | rescale(0.7)"))
    guidance = lambda given, cond: upscaling.own_guidance(own, given, cond)  # type: ignore[arg-type]
    assert str(guidance(None, None)) == "uncond | rescale(0.7)"
    assert guidance("cfg(3)", None) == "cfg(3)" and guidance(None, "cat") is None
    assert guidance(None, 0) is None


@dataclass(frozen=True)
class Found:
    settings: Any = None
    lacking: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("droppable", "cond", "sampled"), [(True, None, ""), (False, None, None), (True, "cat", "cat")]
)
def test_all_that_is_asked_of_a_run_is_handed_on(monkeypatch, droppable, cond, sampled):
    asked: dict[str, Any] = {}

    def sample(name, **more):
        asked.update(cond=name, **more)
        return Found(settings=Found(lacking=("a",)))

    def bind(model, pictures, **more):
        asked.update(model=model, pictures=pictures, **more)
        return SimpleNamespace(sample=sample)

    def own_guidance(bound, guidance, name):
        asked.update(named=(bound.sample is sample, guidance, name))
        return "own"

    monkeypatch.setattr(upscaling, "with_pictures", bind)
    monkeypatch.setattr(upscaling, "own_guidance", own_guidance)
    subject = model(droppable=droppable)
    more: Any = {
        "negative": "dog", "steps": 3, "solver": "ddim", "grid": "karras", "max_rows": 7,
        "watch": "w",
    }  # fmt: skip
    found = upscaling.upscale(subject, PICTURES, cond, guidance="g", augmentation=0.2, **more)
    assert found.settings.lacking == ("a", "the picture that was enlarged")
    given = {"model": subject, "pictures": PICTURES, "seeds": [0, 1], "augmentation": 0.2}
    named = {"cond": sampled, "named": (True, "g", sampled), "guidance": "own"}
    assert asked == {**given, **named, **more}


def test_conditions_beside_a_picture():
    torch.manual_seed(0)
    classes = ClassEncoder(classes=("cat", "dog"), width=3)
    inner = Conditions({"label": classes, LOW: low(droppable=True)})
    rows = torch.cat([PICTURES, torch.zeros(2, 1, 2, 2)], 1)
    subject = Pictured(inner, rows)  # type: ignore[arg-type]
    of = lambda label, pictures: inner({"label": label, LOW: pictures})
    none = torch.full_like(rows, math.nan)

    def same(a, b):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k].nan_to_num(), b[k].nan_to_num()) for k in a)

    label = lambda *names: classes.rows([classes.parse(n) for n in names])
    same(subject.encode(["cat", "dog"]), of(label("cat", "dog"), rows))
    same(subject.encode(["dog"]), of(label("dog", "dog"), rows))
    same(subject.encode(["label=cat", "low_resolution=none; cat"]),
         of(label("cat", "cat"), torch.stack([rows[0], none[1]])))  # fmt: skip
    null = classes.null_row().expand(2, *classes.null_row().shape)
    same(subject.null(7), of(null, none))
    assert subject.only("cat", "label") == "label=cat; low_resolution=none"
    assert subject.only("cat", LOW) == "label="
    with pytest.raises(ValueError, match="there is no part 'x'; the conditions are label, low"):
        subject.only("cat", "x")
    with pytest.raises(ValueError, match="unknown condition 'y'; the conditions are label"):
        subject.encode(["label=cat; y=1"])
    kept = Pictured(Conditions({"label": classes, LOW: low()}), rows)  # type: ignore[arg-type]
    found = kept.null(2)
    assert torch.equal(found[LOW], kept.encode(["cat"])[LOW])
    for refused in (
        lambda: kept.only("cat", "label"),
        lambda: kept.encode(["low_resolution=none"]),
    ):
        with pytest.raises(ValueError, match="never learned without its smaller picture"):
            refused()


@pytest.mark.parametrize(
    ("parts", "name", "found"),
    [
        ("label", "cat", ({"label": "cat"}, True)),
        ("label", 1, ({"label": "1"}, True)),
        ("label", " label = cat", ({"label": " label = cat"}, True)),
        ("label", " label= cat ", ({"label": "cat"}, True)),
        ("label", "a;;b ", ({"label": "a;;b "}, True)),
        ("label", "low_resolution=none", ({"label": ""}, False)),
        ("label", "a;; low_resolution=none ; b", ({"label": "a; b"}, False)),
        ("label", "low_resolution=none; label=cat", ({"label": "cat"}, False)),
        ("label text", "label=cat; text = a = b ;", ({"label": "cat", "text": "a = b"}, True)),
        ("label text", "", ({}, True)),
        ("label text", "text=a;low_resolution=none", ({"text": "a"}, False)),
        ("", "", ({}, True)),
        ("", "low_resolution=none", ({}, False)),
    ],
)
def test_names_of_the_other_conditions_and_of_the_picture(parts, name, found):
    subject = Pictured(low(), torch.zeros(1, 2, 2, 2))
    subject.others = dict.fromkeys(parts.split())
    assert subject._split(name) == found


def test_names_of_no_condition():
    for parts, known in (("label text", "label, text"), ("", "none beside the picture")):
        subject = Pictured(low(), torch.zeros(1, 2, 2, 2))
        subject.others = dict.fromkeys(parts.split())
        with pytest.raises(
            ValueError, match=f"unknown condition 'dog'; the conditions are {known}$"
        ):
            subject._split("dog=x")


# Blame


def blame(monkeypatch, states, error=None, finite=True):
    def walk(model, request, guided, *, explain, watch):
        assert explain and guided == ("bound", "request", True)
        for index, (x_t, pushes) in enumerate(states):
            prediction = SimpleNamespace(x_t=torch.tensor(x_t))
            tensors = pushes and {k: torch.tensor([v]) for k, v in pushes.items()}
            watch(SimpleNamespace(prediction=prediction, pushes=tensors,
                                  step=SimpleNamespace(index=index)))  # fmt: skip
        if error:
            raise FloatingPointError(error)
        return SimpleNamespace(x=torch.tensor([[1.0 if finite else math.nan]]))
        yield

    monkeypatch.setattr(walking, "walk_request", walk)
    model: Any = SimpleNamespace(bind=lambda request, check: ("bound", request, check))
    return walking.drive_alone(walking.find_blame(model, "request"))  # type: ignore[arg-type]


def test_the_first_push_that_was_too_large_is_blamed(monkeypatch):
    line = "the samples are not finite: at step {} the push of '{}' was {} times as large as the"
    near = [([1.0, -4.0], {"cfg(2)": 4999.0, "pag(1)": 1.0})]  # of 4 + 1
    assert blame(monkeypatch, near) is None
    found = blame(monkeypatch, [*near, ([1.0, -4.0], {"cfg(2)": 1.0, "pag(1)": -5000.0}),
                                ([1.0], {"cfg(2)": 1e9})])  # fmt: skip
    assert found.startswith(line.format(1, "pag(1)", "1e+03"))  # type: ignore[union-attr]
    found = blame(monkeypatch, [([1.0], {"cfg(2)": math.nan})], error="elsewhere")
    assert found.startswith(line.format(0, "cfg(2)", "nan"))  # type: ignore[union-attr]
    assert blame(monkeypatch, near, error="the network") == "the network"
    assert blame(monkeypatch, [([1.0], None)]) is None
    assert blame(monkeypatch, [([1.0], None)], finite=False) is not None


# Grids


def test_grids_are_fitted_to_trajectories(monkeypatch):
    calls: dict[str, Any] = {}

    def bending(guided, x, grid, draw):
        calls.update(guided=guided, x=x, grid=grid, draw=draw)
        return "cost"

    monkeypatch.setattr(fitted, "bending", bending)
    monkeypatch.setattr(fitted, "shortest", lambda cost, n: [0, *range(4 - n + 1, 4)])
    model = toy_model(shape=(1, 2, 2))
    made: list[Any] = []
    bound = model.guided
    model.guided = lambda guidance, **more: made.append((guidance, more)) or bound(guidance, **more)  # type: ignore[method-assign]
    found = fitted.fit_grids(model, [2, 3], guidance="cfg(3)", samples=4, fine=4, seed=9)
    assert made == [("cfg(3)", {"cond": ["cat", "dog", "blurry", "cat"], "seeds": range(9, 13)})]
    grid = calls["grid"]
    assert list(grid) == list(gs.log_snr(model.schedule, 4))
    assert list(calls["draw"].seeds) == [9, 10, 11, 12]
    noise = Draw(range(9, 13)).at(-1).normal("start", (1, 2, 2))
    assert torch.allclose(calls["x"].double(), noise.double() * float(grid[0].sigma), rtol=1e-3)
    rhos = [float(f"{float(level.rho):.6g}") for level in grid]
    assert found == {2: [rhos[0], rhos[3]], 3: [rhos[0], rhos[2], rhos[3]]}


# A network of EDM


@pytest.mark.parametrize(
    ("known", "classes", "names"),
    [
        (0, None, None),
        (2, None, ("0", "1")),
        (2, 2, ("0", "1")),
        (0, 2, ("0", "1")),
        (2, ["a", "b"], ("a", "b")),
        (0, ["a"], ("a",)),
        (None, None, None),
    ],
)
def test_the_classes_of_an_edm_network(known, classes, names):
    net: Any = SimpleNamespace() if known is None else SimpleNamespace(label_dim=known)
    found = edm._labels(net, classes)
    assert (found and found.labels.classes) == names
    wrong: Any = SimpleNamespace(label_dim=2)
    for given, count in ((3, 3), (["a"], 1)):
        with pytest.raises(ValueError, match=f"{count} classes were given for a network of 2"):
            edm._labels(wrong, given)


def test_the_range_and_shape_of_an_edm_network():
    class Net(torch.nn.Module):
        img_channels, img_resolution = 3, 8

        def forward(self, x, sigma, **cond):
            return x

    net: Any = Net()
    found: Any = edm.edm_model(net, name="n")
    assert found.shape == (3, 8, 8) and (found.schedule.t_min, found.schedule.t_max) == (0.002, 80)
    assert found.defaults == {"guidance": "cond", "steps": 18, "solver": "heun", "grid": "karras"}
    net.sigma_min, net.sigma_max = 0.01, 50.0
    found = edm.edm_model(net, name="n", shape=(1, 4, 4))
    assert (found.schedule.t_min, found.schedule.t_max) == (0.01, 50) and found.shape == (1, 4, 4)
    net.sigma_min, net.sigma_max = 0.0, 1000.0
    found = edm.edm_model(net, name="n")
    assert (found.schedule.t_min, found.schedule.t_max) == (0.002, 80)
    with pytest.raises(ValueError, match="has no attributes img_channels and img_resolution"):
        edm.edm_model(torch.nn.Identity(), name="n")
