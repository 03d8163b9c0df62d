"""What a part of a recipe is built of: networks, conditions, rates and statistics, by name."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from guidestar.core.rng import Draw
from guidestar.data.source import Column, InMemory
from guidestar.networks.condition_encoders import ClassEncoder, LabelEncoder, VectorEncoder
from guidestar.networks.low_resolution import LOW, LowResolution
from guidestar.train.build import autoencoders, clips, conditions
from guidestar.train.build import data as data_build
from guidestar.train.build import networks as build
from guidestar.train.objectives.classification import shifted
from guidestar.train.objectives.super_resolution import SuperResolution
from helpers.noting import NET, noted, recipe

LABEL, POSE = Column(kind="class", classes=("a", "b")), Column(kind="vector", width=2)


def source(*shape: int, columns: Any = None, count=4):
    columns = {"label": LABEL, "pose": POSE} if columns is None else columns
    targets = {
        n: torch.arange(count) % 2
        if c.kind == "class"
        else torch.arange(2.0 * count).view(count, 2)
        for n, c in columns.items()
    }
    return InMemory(x=torch.zeros(count, *shape), targets=targets, columns=columns)


def test_a_model_has_the_conditions_that_are_chosen():
    built = build.build_part(recipe(), "model", source(1, 4, 4))
    module: Any = built.module
    assert list(module.encoder.parts) == ["label", "pose"]
    objective: Any = built.objective
    rate = recipe().model.condition_dropout
    assert objective.dropout == {"label": rate, "pose": rate} and objective.joint == 0.0
    one = recipe(conditions={"pose": {"dropout": 0.0}}, joint_dropout=0.3)
    built = build.build_part(one, "model", source(1, 4, 4))
    objective, module = built.objective, built.module
    assert list(module.encoder.parts) == ["pose"] and objective.dropout == {"pose": 0.0}
    assert objective.joint == 0.3
    targets = {"pose": torch.ones(2, 2), "label": torch.zeros(2).long()}
    assert list(built.prepare(targets)) == ["pose"]
    none = build.build_part(recipe(conditions={}), "model", source(1, 4, 4))
    assert not none.module.encoder.parts  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"condition 'size' is not a column .* are label, pose; "):
        build.build_part(recipe(conditions={"size": {}}), "model", source(1, 4, 4))
    with pytest.raises(ValueError, match="is not a column of the data, which have none; correct"):
        build.build_part(recipe(conditions={"size": {}}), "model", source(1, 4, 4, columns={}))


def test_a_network_gets_what_recipe_and_data_say(monkeypatch):
    made = noted(monkeypatch, build, "_network", nn.Linear(1, 1))
    noted(monkeypatch, build, "bridged", nn.Identity())
    noted(monkeypatch, conditions, "_condition_width", 8)
    memory = noted(monkeypatch, build, "within_memory")
    monkeypatch.setattr(
        build, "within_memory", lambda make, copies: memory.append(copies) or make()
    )
    plain = noted(monkeypatch, build, "plain_attention")
    low = noted(monkeypatch, build, "low_resolution", {})
    data = source(3, 4, 4)
    table = {"schedule": {"kind": "vp"}, "levels": {"kind": "uniform"}}
    dit = {"network": "DiTTransformer2DModel", "config": {}, "train": NET["train"]}
    given = recipe(objective={"variance": "learned"}, model=dit, **table)
    build.build_part(given, "model", data)
    (spec, shape, columns), more = made[-1]
    assert spec == given.model and shape == (3, 4, 4) and list(columns) == ["label", "pose"]
    assert more == {"embedded": True, "text_width": None, "outputs": 2, "beside": 0}
    assert len(plain) == (0 if torch.cuda.is_available() else 1) and len(memory) == 1
    assert low[0][0][0] == given and low[0][0][2] is data
    build.build_part(recipe(conditions={}), "model", data)
    assert made[-1][1] == {"embedded": False, "text_width": None, "outputs": 1, "beside": 0}
    exact = {**NET, "train": {"steps": 2, "batch": 4, "precision": "float64"}}
    build.build_part(recipe(model=exact), "model", data)
    assert len(plain) == (0 if torch.cuda.is_available() else 2)
    up = recipe(conditions={}, upscale={"size": 2, "augmentation": 0.3, "dropout": 0.0},
                joint_dropout=0.2)  # fmt: skip
    built = build.build_part(up, "model", data)
    assert made[-1][1] == {"embedded": True, "text_width": None, "outputs": 1, "beside": 3}
    objective: Any = built.objective
    assert isinstance(objective, SuperResolution)
    assert (objective.size, objective.largest) == (2, 0.3)
    inner: Any = objective.conditional
    assert inner.dropout == {LOW: 0.0} and inner.joint == 0.0
    up = recipe(conditions={}, upscale={"size": 2, "dropout": 0.1}, joint_dropout=0.2)
    inner = build.build_part(up, "model", data).objective.conditional  # type: ignore[attr-defined]
    assert inner.dropout == {LOW: 0.1} and inner.joint == 0.2


def test_the_condition_of_a_smaller_picture():
    net: Any = nn.Module()
    net.condition_width = 6
    given = recipe(upscale={"size": 2, "augmentation": 0.3, "dropout": 0.1})
    low: Any = conditions.low_resolution(given, net, source(3, 4, 4))[LOW]
    assert isinstance(low, LowResolution)
    assert (low.channels, low.size, low.to_size, low.largest) == (3, 2, 4, 0.3)
    assert low.droppable and low.unknown.shape == (6,)
    still = recipe(upscale={"size": 2, "dropout": 0.0})
    assert not conditions.low_resolution(still, net, source(3, 4, 4))[LOW].droppable  # type: ignore[union-attr]
    assert conditions.low_resolution(recipe(), net, source(3, 4, 4)) == {}
    for shape in ((3, 4, 6), (3, 5, 5), (3, 2, 2), (4, 4)):
        with pytest.raises(ValueError, match=r"upscale.size: samples of \[.*\] must be a multiple"):
            conditions.low_resolution(given, net, source(*shape))


def test_networks_by_name(monkeypatch):
    unet = noted(monkeypatch, build.networks, "unet", "unet")
    spec = recipe().model
    given: Any = {"embedded": True, "text_width": 5, "outputs": 2, "beside": 3}
    assert build._network(spec, (3, 4, 4), {}, **given) == "unet"
    assert unet[0][1] == {"size": 4, "channels": 3, "widths": (8, 8), "layers": spec.layers,
                          "groups": 4, "head": 8, "embedded": True, "text_width": 5,
                          "beside": 3}  # fmt: skip
    for shape in ((3, 4, 6), (3, 5, 5), (4, 4)):
        with pytest.raises(ValueError, match="a unet of 2 widths halves square images 1 times"):
            build._network(spec, shape, {}, **given)
    line = spec.model_copy(update={"network": "sequence", "width": 8, "heads": 2, "patch": 2})
    found: Any = build._network(line, (6, 3), {}, embedded=True, text_width=5)
    assert found.config["channels"] == 3 and found.config["length"] == 6
    assert (found.config["width"], found.config["heads"], found.config["patch"]) == (8, 2, 2)
    assert found.config["cross_attention_dim"] == 5 and found.config["depth"] == line.layers
    single = line.model_copy(update={"patch": 1})
    found = build._network(single, (3,), {}, embedded=True, text_width=None)
    assert found.config["length"] is None and found.config["cross_attention_dim"] is None
    with pytest.raises(ValueError, match='"sequence" is for vectors and sequences'):
        build._network(line, (3, 4, 4), {}, embedded=True, text_width=None)


def test_networks_of_diffusers_and_of_ones_own(monkeypatch):
    made = noted(monkeypatch, build.networks, "from_diffusers", "net")
    off = noted(monkeypatch, build.networks, "own_dropout_off", "quiet")
    zero = noted(monkeypatch, build.networks, "adaln_zero", "zero")
    own = noted(monkeypatch, build.networks, "from_callable", "own")
    monkeypatch.setattr(build, "_filled", lambda *given: {"in_channels": 3, "given": given})
    spec = recipe().model
    of = lambda name, **more: build._network(
        spec.model_copy(update={"network": name, "config": {"a": 1}}),
        (3, 4, 4), {"x": LABEL}, embedded=True, text_width=5, outputs=2, **more,
    )  # fmt: skip
    assert of("UNet2DModel") == "quiet" and not zero and off[0] == (("net",), {})
    (name, filled), _ = made[0]
    assert name == "UNet2DModel" and filled["in_channels"] == 3
    assert filled["given"][1:] == ((3, 4, 4), {"x": LABEL}, True, 5, 2)
    of("UNet2DModel", beside=3)
    assert made[1][0][1]["in_channels"] == 6
    assert of("DiTTransformer2DModel") == "zero" and zero[0] == (("quiet",), {})
    assert of("pkg:make") == "own" and own[0] == (("pkg:make", {"a": 1}), {})


def test_encoders_by_the_kind_of_a_column():
    net: Any = nn.Module()
    net.condition_width = 6
    found: Any = conditions.build_encoder(LABEL, "label", net, source(1, 4, 4))
    assert isinstance(found, ClassEncoder) and list(found.classes) == ["a", "b"]
    found = conditions.build_encoder(POSE, "pose", net, source(1, 4, 4))
    assert isinstance(found, VectorEncoder)
    dit: Any = type("DiTTransformer2DModel", (nn.Module,), {})()
    for count, null in ((2, None), (3, 3), (9, 9)):
        dit.config = {"num_embeds_ada_norm": count}
        found = conditions.build_encoder(LABEL, "label", dit, source(1, 4, 4))
        assert isinstance(found, LabelEncoder) and conditions._null_of(dit, LABEL) == null
    dit.config = {"num_embeds_ada_norm": 1}
    with pytest.raises(ValueError, match="must be at least the 2 classes of the data, not 1"):
        conditions._null_of(dit, LABEL)
    with pytest.raises(ValueError, match="DiT takes a class, not the vector 'pose'; leave it out"):
        conditions.build_encoder(POSE, "pose", dit, source(1, 4, 4))


def test_the_width_of_a_conditions_embedding():
    known: Any = SimpleNamespace(condition_width=6, config={"block_out_channels": (8, 16)})
    assert conditions._condition_width(known) == 6
    assert (
        conditions._condition_width(SimpleNamespace(config={"block_out_channels": (8, 16)})) == 32
    )  # type: ignore[arg-type]
    for net in (nn.Identity(), SimpleNamespace(config={}), SimpleNamespace(condition_width="6")):
        with pytest.raises(ValueError, match="has no attribute condition_width, the width of a"):
            conditions._condition_width(net)  # type: ignore[arg-type]


def test_statistics_are_over_rows_that_are_spread_evenly():
    held = source(1, count=10)
    mean, std = conditions.statistics_of(held, "pose", 2)
    rows = torch.arange(20.0).view(10, 2).double()
    assert mean == [9.0, 10.0] and std == pytest.approx([math.sqrt(33)] * 2)
    mean, _ = conditions.statistics_of(held, "pose", 2, most=3)  # rows 0, 4 and 9
    assert mean == pytest.approx(rows[[0, 4, 9]].mean(0).tolist())
    flat = InMemory(x=torch.zeros(3, 1), targets={"pose": torch.ones(3, 2)}, columns={"pose": POSE})
    assert conditions.statistics_of(flat, "pose", 2) == ([1.0, 1.0], [1e-8, 1e-8])
    stream: Any = SimpleNamespace(size=None)
    assert conditions.statistics_of(stream, "pose", 3) == ([0.0] * 3, [1.0] * 3)


def test_pixels_that_come_in_are_of_the_ground_or_of_the_edge():
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    wide = {
        None: [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]],
        -1.0: [[-1, -1, -1, -1], [-1, 1, 2, -1], [-1, 3, 4, -1], [-1, -1, -1, -1]],
    }
    moved = set()
    for seed in range(12):
        draw = Draw([seed])
        down, right = (int(float(draw.uniform(tag)[0]) * 3) for tag in ("down", "right"))
        moved.add((down, right))
        for ground, padded in wide.items():
            found = shifted(x, 1, draw, ground=ground)[0, 0].tolist()
            assert found == [row[right : right + 2] for row in padded[down : down + 2]]
    assert len(moved) > 4 and shifted(x, 0, Draw([0])) is x


def test_pictures_that_are_not_square_are_shifted_each_by_its_own_draw():
    x, draw = torch.arange(24.0).view(2, 2, 2, 3), Draw([3, 8])
    down, right = (
        [int(float(u) * 5) for u in draw.uniform(tag)] for tag in ("down", "right")
    )  # of 0 to 4, and 2 leaves a picture where it is
    assert [*zip(down, right, strict=True)] != [(2, 2), (2, 2)] and down != right
    found = shifted(x, 2, draw, ground=-1.0)
    assert found.shape == x.shape
    for i, c, r, k in itertools.product(range(2), range(2), range(2), range(3)):
        at, to = r + down[i] - 2, k + right[i] - 2
        inside = 0 <= at < 2 and 0 <= to < 3
        assert float(found[i, c, r, k]) == (float(x[i, c, at, to]) if inside else -1.0)


# Latents


def test_latents_are_measured_on_pictures_that_are_spread_evenly(monkeypatch):
    monkeypatch.setattr(autoencoders, "_MOST", 3)
    x = torch.arange(10.0).view(10, 1, 1, 1).expand(10, 2, 2, 2).clone()
    x[:, 1] *= 2
    held = InMemory(x=x, targets={}, columns={})
    seen: list[Any] = []

    def encode(pictures):
        seen.append(pictures[:, 0, 0, 0].tolist())
        return pictures

    monkeypatch.setattr(autoencoders, "raw_latents", lambda x: x)
    vae: Any = SimpleNamespace(encode=encode)
    mean, std = autoencoders.measured_spread(vae, held)
    rows = torch.tensor([0.0, 4.0, 9.0]).double()  # 4.5 is rounded to the even one
    assert seen == [[0.0, 4.0, 9.0]]
    assert mean.tolist() == pytest.approx([float(rows.mean()), float(2 * rows.mean())])
    spread = float(rows.std(correction=0))
    assert std.tolist() == pytest.approx([spread, 2 * spread]) and std.dtype == torch.float64
    monkeypatch.setattr(autoencoders, "_MOST", 100)
    seen.clear()
    big = InMemory(x=torch.rand(40, 1, 2, 2), targets={}, columns={})
    autoencoders.measured_spread(vae, big)
    assert [len(part) for part in seen] == [32, 8]


@pytest.mark.parametrize("by_channel", [True, False])
def test_a_spread_is_stated_as_diffusers_has_it(by_channel):
    stated: dict[str, Any] = {}
    vae: Any = SimpleNamespace(register_to_config=lambda **more: stated.update(more))
    spec: Any = SimpleNamespace(by_channel=by_channel)
    mean, std = torch.tensor([1.0, 2.0]).double(), torch.tensor([2.0, 0.1234567]).double()
    autoencoders.state_spread(vae, spec, mean, std)
    if by_channel:
        assert stated == {"scaling_factor": 1.0, "latents_mean": [1.0, 2.0],
                          "latents_std": [2.0, 0.123457]}  # fmt: skip
    else:
        square = (4 + 0.1234567**2 + 1 + 4) / 2
        assert stated == {"scaling_factor": pytest.approx(1 / math.sqrt(square))}


def test_pictures_are_encoded_where_their_vae_is(monkeypatch, tmp_path):
    read = noted(monkeypatch, data_build, "read_module", "read")
    done = noted(monkeypatch, data_build, "encode_pictures", "latents")
    held = source(3, 8, 8, columns={})
    known = recipe(data={"path": "d/p", "vae": "folder", "size": 8})
    assert data_build.in_latents(known, held, tmp_path) == "latents"
    assert read == [(("folder",), {})]
    pictures, vae, cache = done[-1][0]
    assert pictures is held and vae == "read" and str(cache) == "d/.latents"
    cached = recipe(data={"path": "p", "vae": "folder", "size": 8, "cache": "c"})
    data_build.in_latents(cached, held, None)
    assert str(done[-1][0][2]) == "c"
    own = recipe(data={"path": "d/p", "vae": "autoencoder", "size": 8},
                 autoencoder={"widths": [8], "train": {"steps": 2}})  # fmt: skip
    data_build.in_latents(own, held, tmp_path, vae="trained")
    assert done[-1][0][1:] == ("trained", tmp_path / ".latents")
    data_build.in_latents(own, held, None, vae="trained")
    assert str(done[-1][0][2]) == "d/.latents" and len(done) == 4
    fresh: Any = data_build.in_latents(own, held, tmp_path)
    assert isinstance(fresh, data_build.Unencoded) and fresh.pictures is held
    again: Any = data_build.in_latents(own, fresh, tmp_path, vae="trained")
    assert again == "latents" and done[-1][0][0] is held
    some = data_build.Subset(source=held, kept=(1, 2))
    monkeypatch.setattr(data_build, "encode_pictures", lambda *args: held)
    found: Any = data_build.in_latents(own, some, tmp_path, vae="trained")
    assert isinstance(found, data_build.Subset) and found.kept == (1, 2) and found.source is held


def test_a_noisy_clip_learns_its_pictures_alone(monkeypatch):
    clip = nn.Module()
    clip.text = nn.Linear(2, 2)
    tower = SimpleNamespace(set_attn_implementation=lambda kind: None)
    vision = nn.Linear(2, 2)
    vision.tower = tower  # type: ignore[assignment]
    monkeypatch.setattr(clips, "fresh_clip", lambda *given: clip)
    made = noted(monkeypatch, clips, "make_vision", vision)
    captioned = source(3, 8, 8, columns={"text": Column(kind="text")})
    steps = {"train": {"steps": 2, "batch": 2}}
    spec = recipe(
        clip={"embed": 5, **steps}, noisy_clip={"width": 64, "patch": 4, "shift": 3, **steps}
    )
    assert spec.noisy_clip is not None
    built = clips.build_noisy_clip(spec, spec.noisy_clip, captioned, None)
    assert built.module is clip and clip.vision is vision
    assert not any(p.requires_grad for p in clip.text.parameters())
    assert all(p.requires_grad for p in vision.parameters())
    objective: Any = built.objective
    assert objective.shift == 3 and objective.schedule is not None
    more = made[0][1]
    assert (more["size"], more["channels"], more["embed"], more["noise_aware"]) == (8, 3, 5, True)
    assert (more["width"], more["patch"]) == (64, 4) and "shift" not in more


def test_weights_that_a_folder_holds(tmp_path):
    weights = {"a": torch.ones(2), "b": torch.zeros(1)}
    holds = lambda found: autoencoders._holds(tmp_path, found)
    assert not holds(weights)
    (tmp_path / "config.json").write_text("{}")
    save_file(weights, tmp_path / autoencoders.WEIGHTS)
    assert holds(weights) and not holds({**weights, "b": torch.ones(1)})
    assert not holds({"a": weights["a"]}) and not holds({**weights, "c": torch.zeros(1)})


@pytest.mark.parametrize(
    ("shape", "channels", "groups"), [((3, 8, 8), 3, 4), ((7, 5), 5, 4), ((6,), 6, 1)]
)
def test_a_classifier_of_samples_of_any_shape(shape, channels, groups):
    sizes = {"widths": [8, 12], "layers": 1, "groups": 4, "dropout": 0.25, "column": "label"}
    part = {**sizes, "train": {"steps": 2, "batch": 2}}
    spec = recipe(classifier=part, judge={**part, "shift": 2})
    for name, noise_aware in (("classifier", True), ("judge", False)):
        built = build.build_part(spec, name, source(*shape))
        config = dict(built.module.config)  # type: ignore[union-attr]
        wanted = {"channels": channels, "groups": groups, "widths": (8, 12), "layers": 1,
                  "dropout": 0.25, "noise_aware": noise_aware, "classes": ("a", "b")}  # fmt: skip
        found = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        assert {k: found[k] for k in wanted} == wanted
    objective: Any = built.objective
    assert objective.shift == 2
    targets = {"label": torch.tensor([1, 0]), "pose": torch.zeros(2, 2)}
    assert built.prepare(targets).tolist() == [1, 0]


def test_a_network_of_motions():
    from guidestar.networks.motion import MotionTransformer

    spec = recipe().model.model_copy(
        update={"network": "motion", "width": 8, "layers": 2, "heads": 4}
    )
    given: Any = {"embedded": False, "text_width": 5}
    found: Any = build._network(spec, (6, 3), {}, **given)
    assert isinstance(found, MotionTransformer)
    config = found.config
    assert (config["channels"], config["length"], config["text_width"]) == (3, 6, 5)
    assert (config["width"], config["depth"], config["heads"]) == (8, 2, 4)
    for shape in ((3,), (3, 4, 4)):
        with pytest.raises(ValueError, match=r'network = "motion" is for sequences \[T, C\], not'):
            build._network(spec, shape, {}, **given)
