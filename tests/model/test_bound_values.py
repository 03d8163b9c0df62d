"""Names, scales, targets and lengths of a run, by values by hand (`model/binding.py`,
`model/motions.py`, `networks/lengths.py`, `networks/guidance_scale.py`).
"""

import math
import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from guidestar.core.denoiser import Condition
from guidestar.core.passes import Net
from guidestar.model import binding, motions
from guidestar.networks.condition_encoders import ClassEncoder
from guidestar.networks.conditions import Conditions
from guidestar.networks.guidance_scale import GuidanceScale
from guidestar.networks.lengths import FRAMES, LengthEncoder
from guidestar.networks.windows import Windowed
from helpers.served import toy_model


def student() -> Any:
    model = toy_model()
    vars(model.denoiser)["scale"] = GuidanceScale(width=4, low=1.5, high=6.0, default=2.5)
    return model


def test_a_scale_is_one_number_or_one_for_each_sample():
    model = student()
    for given, count, found in (
        (None, None, (2.5,)), (None, 3, (2.5,) * 3), (4, 2, (4.0, 4.0)), ([1.5], 2, (1.5, 1.5)),
        ([2, 6.0], 2, (2.0, 6.0)), ([2, 3], None, (2.0, 3.0)), (1.5, 1, (1.5,)),
    ):  # fmt: skip
        assert binding.scale_of(model, given, count) == found
    for given, count, line in (
        (1.4, None, "was trained for scales from 1.5 to 6, not for 1.4"),
        ([2, 6.1], 2, "from 1.5 to 6, not for 6.1"),
        ([2, 3], 3, "2 scales were given for 3 samples; give one, or one for each"),
        ([2, 3], 1, "2 scales were given for 1 samples"),
    ):
        with pytest.raises(ValueError, match=line):
            binding.scale_of(model, given, count)
    assert binding.scale_of(toy_model(), None, 3) is None
    for given, written in ((3.5, "3.5"), ([1.0, 2.0], "2")):
        with pytest.raises(ValueError, match=rf"takes no scale as an input; .* cfg\({written}\)"):
            binding.scale_of(toy_model(), given)


def test_a_scale_is_found_within_wrappers():
    embed = GuidanceScale(width=4, low=1.5, high=6.0, default=2.5)
    inner = SimpleNamespace(scale=embed)
    assert binding.find_scale(SimpleNamespace(net=SimpleNamespace(net=inner))) is embed
    assert binding.find_scale(SimpleNamespace(scale=3.0, net=inner)) is embed
    assert binding.find_scale(SimpleNamespace(net=SimpleNamespace(scale=1))) is None
    assert binding.find_scale(None) is None


def test_a_scale_is_embedded_without_biases():
    embed = GuidanceScale(width=4, low=1.0, high=6.0, default=1.0)
    assert embed(torch.tensor([3.0])).eq(0).all()  # before training
    with torch.no_grad():
        embed.second.weight.copy_(torch.eye(4))
    scale = torch.tensor([1.0, 2.5])
    waves = torch.tensor([[math.sin(1.5 * 2 ** (k / 2 - 3)) for k in range(12)]])
    wanted = nn.functional.silu(waves @ embed.first.weight.T)
    torch.testing.assert_close(embed(scale)[1:], wanted)
    assert embed(scale)[0].eq(0).all()
    for low, high, default in ((1, 2, 2.1), (1, 2, 0.9), (2, 1, 1.5)):
        with pytest.raises(ValueError, match="must be in the range of the training"):
            GuidanceScale(width=4, low=low, high=high, default=default)
    for default in (1, 2):
        assert GuidanceScale(width=4, low=1, high=2, default=default).default == default


def test_the_conditions_of_samples_by_name():
    model = toy_model()
    assert model.names(None, 3) is None
    assert model.names("cat", 2) == ("cat", "cat") and model.names(1, 1) == ("dog",)
    assert model.names(["cat", 2], 2) == ("cat", "blurry") and model.names("", 1) == ("",)
    with pytest.raises(ValueError, match="2 conditions were given for 3 samples; give 1, or one"):
        model.names(["cat", "dog"], 3)
    model.encoder = None
    with pytest.raises(ValueError, match="the model 'toy' is unconditional; leave cond out"):
        model.names("cat", 1)


def test_prompts_are_words():
    model: Any = SimpleNamespace(name="m")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        binding._check_prompts(model, ["a", "b c"])
    for empty in ("", " \t"):
        with pytest.warns(UserWarning, match="a prompt is empty, so its samples are uncondition"):
            binding._check_prompts(model, ["a", empty])
    with pytest.raises(ValueError, match=r"takes text prompts, not class names; .* in place of 3"):
        binding._check_prompts(model, ["a", 3])


def test_classes_of_one_name_are_known_by_their_index():
    encoder: Any = ClassEncoder(classes=("a", "b", "a"), width=4)
    named = lambda name: binding._canonical(encoder, name)
    assert named("b") == named(1) == "b" and named("") == ""
    assert named(0) == "a" and named(2) == 2
    plain: Any = SimpleNamespace(encode=print)
    assert binding._canonical(plain, 5) == 5


def test_what_classifiers_take_for_the_class():
    encoder = ClassEncoder(classes=("a", "b"), width=4)
    model: Any = SimpleNamespace(encoder=encoder, classifiers={"c": 1})
    assert binding.target_of(model, ["b", "a"]).tolist() == [1, 0]  # type: ignore[union-attr]
    assert binding.target_of(model, None) is None and binding.target_of(model, ["a", ""]) is None
    index: Any = SimpleNamespace(index=lambda name: 7)
    model.encoder = index
    assert binding.index_of(model) is index.index
    model.classifiers = {}
    assert binding.index_of(model) is None  # names no classes, and no classifier asks
    for parts, found in (({"k": encoder}, True), ({"n": LengthEncoder(frames=4)}, False)):
        model.encoder = Conditions(parts)
        assert (binding.index_of(model) is not None) is found


def test_a_clip_of_clean_pictures_gets_latents_through_the_decoder():
    from guidestar.diffusers.read.vae import ThroughDecoder

    clean = SimpleNamespace(embed_text=1, noise_aware=False)
    aware = SimpleNamespace(embed_text=1, noise_aware=True)
    kind = SimpleNamespace(noise_aware=False)
    given = {"a": clean, "b": aware, "c": kind}
    pixels: Any = SimpleNamespace(classifiers=given, decode=lambda x: x)
    found = binding.guides_of(pixels)
    assert found == given and found is not given
    decoder = type("D", (), {"vae": "v", "__call__": 1, "differentiably": 1, "encode": 1})()
    latents: Any = SimpleNamespace(classifiers=given, decode=decoder)
    found = binding.guides_of(latents)
    through = found["a"]
    assert isinstance(through, ThroughDecoder) and through.vae == "v" and through.inner is clean
    assert found["b"] is aware and found["c"] is kind


def test_all_passes_have_the_lengths_of_the_samples():
    frames = torch.tensor([[1.0, 0], [1, 1]])
    cond = Condition({"c": torch.tensor([5.0, 6.0]), FRAMES: frames})
    one = Condition({"c": torch.tensor([7.0])})
    full = Condition({"c": torch.tensor([7.0]), FRAMES: torch.ones(1, 2)})
    three = Condition({"c": torch.ones(3)})
    net = Net(denoiser=print, cond=cond, null=full, negative=one,  # type: ignore[arg-type]
              encode=lambda names: three if len(names) > 1 else one,
              part=lambda name: one)  # fmt: skip
    found = binding._with_lengths(net)
    for made in (found.null, found.negative, found.encode(["x"]), found.part("x")):  # type: ignore[misc]
        assert made is not None and made[FRAMES].tolist() == frames.tolist()
        assert made["c"].tolist() == [7.0, 7.0]
    assert found.encode(["x", "y"]) is three and found.cond is cond  # type: ignore[misc]
    plain = Net(denoiser=print, cond=one, null=full)  # type: ignore[arg-type]
    assert binding._with_lengths(plain) is plain
    bare = binding._with_lengths(Net(denoiser=print, cond=cond))  # type: ignore[arg-type]
    assert (bare.null, bare.negative, bare.encode, bare.part) == (None,) * 4


# --- lengths of motions ---


def test_lengths_are_masks():
    encoder = LengthEncoder(frames=4, least=2)
    assert encoder(torch.tensor([0, 3, 4]))[FRAMES].tolist() == [
        [0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]
    ]  # fmt: skip
    assert [encoder.parse(n) for n in ("", "2", 4, "3")] == [4, 2, 4, 3]
    for bad in ("1", 5, "x", "-2", "2.0"):
        with pytest.raises(ValueError, match=f"the length '{bad}' should be a whole number of"):
            encoder.parse(bad)
    assert encoder.encode(["2", ""])[FRAMES].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert encoder.null(2)[FRAMES].tolist() == [[1] * 4] * 2 and int(encoder.null_row()) == 4
    assert encoder.rows([2, 3]).dtype == torch.int64
    assert LengthEncoder(frames=4).least == 1


def moving(encoder) -> Any:
    return SimpleNamespace(name="m", encoder=encoder, shape=(8, 3), card={}, denoiser=print)


def test_how_long_each_sample_is():
    lengths = LengthEncoder(frames=8)
    both = Conditions({"kind": ClassEncoder(classes=("a", "b"), width=4), "long": lengths})
    assert both.length == "long"
    found = lambda encoder, names, count: motions.lengths_of(moving(encoder), names, count)
    assert found(both, ["a; long=5", "b"], 2) == [5, 8]
    assert found(lengths, ["3", ""], 2) == [3, 8]
    assert found(both, None, 2) == [8, 8] and found(None, ["a"], 3) == [8] * 3
    assert found(Conditions({"kind": both.parts["kind"]}), ["a", "b"], 2) == [8, 8]
    long = moving(lengths)
    long.denoiser = object.__new__(Windowed)
    assert motions.lengths_of(long, ["3", "4"], 2) == [8, 8]
    put = lambda encoder, names, length: motions.with_length(moving(encoder), names, length)
    assert put(both, ["a", "b; long=3"], 5) == ["a; long=5", "b; long=5"]
    assert put(lengths, None, 5) == ["5"] and put(lengths, ["1", "2"], 6) == ["6", "6"]
    assert put(both, None, 5) == ["; long=5"]
    for encoder in (both, lengths):
        with pytest.raises(ValueError, match="the length '9' should be a whole number of frames"):
            put(encoder, None, 9)
    for encoder in (None, Conditions({"kind": both.parts["kind"]})):
        with pytest.raises(ValueError, match="the model 'm' takes no length; leave it out"):
            put(encoder, None, 5)
    samples: Any = SimpleNamespace(
        settings=SimpleNamespace(cond=["2", "8"]), x=torch.zeros(2, 8, 3),
        images=torch.arange(48.0).view(2, 8, 3),
    )  # fmt: skip
    one, two = motions.motions(moving(lengths), samples)
    assert one.tolist() == samples.images[0, :2].tolist() and two.shape == (8, 3)


def test_motions_are_written_with_their_joints(monkeypatch, tmp_path):
    import numpy as np

    format = SimpleNamespace(skeleton=SimpleNamespace(names=("a", "b"), parents=(-1, 0)))
    body = SimpleNamespace(
        format=format, rate=12.5, to_bvh=lambda x: f"bvh of {tuple(x.shape)}",
        joints=lambda x: x[:, :, None] * torch.ones(1, 1, 3, dtype=x.dtype),
    )  # fmt: skip
    monkeypatch.setattr(motions, "need_body", lambda model: body)
    monkeypatch.setattr(motions, "write_bvh", lambda motion, path: path.write_text(motion))
    monkeypatch.setattr(motions, "file_name", lambda settings, k, number: f"{k}-{number:03d}.png")
    samples: Any = SimpleNamespace(
        settings=SimpleNamespace(cond=["2", "8"]), x=torch.zeros(2, 8, 2),
        images=torch.arange(32.0).view(2, 8, 2),
    )  # fmt: skip
    model = moving(LengthEncoder(frames=8))
    paths = motions.write_motions(model, samples, tmp_path / "new", [7, 9])
    assert [p.name for p in paths] == ["0-007.bvh", "1-009.bvh"]
    assert paths[0].read_text() == "bvh of (2, 2)"
    with np.load(paths[0].with_suffix(".npz")) as held:
        assert held["names"].tolist() == ["a", "b"] and held["parents"].tolist() == [-1, 0]
        assert float(held["rate"]) == 12.5 and held["joints"].dtype == np.float32
        assert held["joints"].shape == (2, 2, 3) and held["joints"][1, 1, 0] == 3
    names = [p.name for p in motions.write_motions(model, samples, str(tmp_path))]
    assert names == ["0-000.bvh", "1-001.bvh"]


def test_models_that_make_no_motions():
    model = moving(None)
    assert motions.body_of_model(model) is None
    with pytest.raises(ValueError, match="the model 'm' makes no motions; give one of data of the"):
        motions.need_body(model)
    model.card = {"motion": {"rate": "x"}}
    with pytest.raises(ValueError, match="the card of 'm'"):
        motions.need_body(model)


def test_arguments_that_a_run_does_not_have():
    """Of `model/request.py` and `model/model.py`: no misspelt argument is taken in silence."""
    model: Any = toy_model()
    for call in (model.request, model.sample, lambda c, **more: list(model.trajectory(c, **more))):
        with pytest.raises(TypeError, match=r"has no argument 'step'; did you mean 'steps'\?$"):
            call("cat", step=3)
    with pytest.raises(TypeError, match=r"a run has no argument 'zzz'; it has .*\bsolver\b"):
        model.request("cat", zzz=3)
    with pytest.raises(TypeError, match=r"no argument .stp.; did you mean .steps."):
        model.steer(print, "cat", particles=2, stp=3)
