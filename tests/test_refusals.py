"""What is refused, and by which words: each line says what was wrong and what to do."""

import base64
import io
import json
import re
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import guidestar as gs
from guidestar import cli
from guidestar.apps import measure, measure_text, observe, strip
from guidestar.data.source import Column, InMemory, Source, split
from guidestar.diffusers.guider import Guider
from guidestar.diffusers.read import clip as read_clip
from guidestar.guidance.methods.tfg import TFG
from guidestar.model import cascade, folder
from guidestar.model.manifest import NAME, read_about
from guidestar.networks.from_config import from_callable
from guidestar.sampling import get_solver
from guidestar.sampling.names import _make
from guidestar.serve.studio.comparing import difference_picture
from guidestar.train.build import clips
from guidestar.train.build import data as build
from guidestar.train.recipe.cascade import read_cascade
from guidestar.train.students import data as student_data
from guidestar.train.students import lora, paths, stages
from guidestar.train.students import run as students
from helpers.noting import NET, recipe
from helpers.served import toy_model
from helpers.toys import Spy

RECIPE = """name = "r"
[data]
path = "p"
[model]
widths = [8]
train = { steps = 1 }
"""


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text and "Traceback" not in text
    return text


# The command line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["distill", "m", "--lora", "4", "--variant", "v"], "--variant does not go with --lora"),
        (["distill", "m", "--samples", "3"], "--prompts and --samples are for --lora; give a rank"),
        (["distill", "m", "--prompts", "r.toml"], "--prompts and --samples are for --lora"),
        (["distill", "r.toml", "--train-steps", "3"], "is a recipe, which says everything; leave "
         "--train-steps out, or change the recipe"),
        (["distill", "r.toml"], "r.toml has no table [student]; train it: guidestar train"),
        (["distill", "m", "--lora", "4", "--steps", "3"], "--steps does not go with --lora; leave"),
        (["distill", "m", "--lora", "4", "--scale", "1,2"], "--scale does not go with --lora"),
        (["distill", "m", "--lora", "4"], "--lora needs --prompts, a file of prompts, one a line"),
        (["distill", "m", "--lora", "4", "--prompts", "r.toml"], "--lora needs --guidance, e.g. "),
        (["plan", "fashion-mnist", "--stage", "base:steps=2"], "is one model and has no stages; "),
        (["evaluate", "fashion-mnist", "--guidance", "cond", "--stage", "base:steps=2"],
         "fashion-mnist is one model and has no stages; leave --stage out"),
        (["sample", "fashion-mnist", "--stage", "base:steps=2"], "has no stages; leave"),
        (["sample"], "name a model (guidestar models lists those that ship), or give a picture"),
        (["strip", "fashion-mnist", "0", "1", "2"], "a strip goes between two prompts, or raises "
         "the scale of one, not 3"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(capsys, tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    Path("r.toml").write_text(RECIPE)
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    _, err = capsys.readouterr()
    said = [text for text in err.splitlines() if text.startswith("guidestar: ")]
    assert stop.value.code == 2 and len(said) == 1 and "Traceback" not in err, err
    assert line in said[0], err


# Measuring and observing


def test_models_that_cannot_be_measured(monkeypatch):
    model = toy_model()
    with pytest.raises(ValueError, match="the model 'toy' has no judge of classes to measure with"):
        next(measure.measure(model, ["cond"], seeds=[0]))
    with pytest.raises(ValueError, match="the model 'toy' has no CLIP to measure with; train one"):
        next(measure_text.measure_text(model, ["cond"], count=1, seed=0))
    noted = {"data_identity": "before"}
    given: Any = SimpleNamespace(name="toy", card=noted)
    from guidestar.data import identity

    monkeypatch.setattr(identity, "identify", lambda source: "now")
    answers: dict[str, Any] = {"found": ("other classes", False)}
    monkeypatch.setattr(identity, "compare", lambda before, now: answers["found"])
    line = r"the data are not those that 'toy' was trained on \(other classes\)"
    with pytest.raises(ValueError, match=line + r"; give those by --data"):
        measure._check_data(given, "source")  # type: ignore[arg-type]
    answers["found"] = ("other classes", True)
    with pytest.warns(UserWarning, match=line + ", so what is held out may have been trained on"):
        measure._check_data(given, "source")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("inpaint", "inpaint needs its mask: write inpaint(mask='mask.png')"),
        ("inpaint(mask=3)", "inpaint: mask must be the name of a picture, not 3"),
        ("downsample(factor=2, x=1)", "downsample has no option 'x'; it has factor, noise"),
        ("downsample(factor=1.5)", "downsample: factor"),
        ("downsample(2)", "the operator 'downsample(2)' cannot be read; write its name and its"),
        ("blur(", "the operator 'blur(' cannot be read"),
    ],
)
def test_operators_that_are_refused(tmp_path, text, line):
    model = toy_model(shape=(1, 4, 4))
    picture = tmp_path / "p.png"
    Image.new("L", (4, 4)).save(picture)
    with pytest.raises(ValueError, match=re.escape(line)) as found:
        observe.read_observation(model, gs.parse("uncond + dps(1)"), picture, text)
    one_line(found.value)


def test_pictures_that_are_no_observation(tmp_path):
    file = tmp_path / "p.png"
    Image.new("L", (4, 5)).save(file)
    with pytest.raises(ValueError, match=r"p\.png is 4 × 5 pixels, but they are 4 × 4"):
        observe.read_observed(file, (1, 4, 4), "they")
    with pytest.raises(ValueError, match="they have 2 channels, which no picture has"):
        observe.read_observed(file, (2, 4, 5), "they")
    assert observe.read_observed(file, (3, 5, 4), "they").shape == (3, 5, 4)
    file.write_text("x")
    with pytest.raises(ValueError, match=r"p\.png cannot be read as a picture: "):
        observe.read_observed(file, (1, 4, 4), "they")


def test_strips_that_cannot_be():
    model = toy_model()
    with pytest.raises(ValueError, match="a strip has at least 2 frames, not 1"):
        strip.morph(model, "cat", "dog", frames=1)
    model.encoder = None
    with pytest.raises(ValueError, match="'toy' is unconditional, so there is nothing to go from"):
        strip.morph(model, "cat", "dog", frames=2)


def test_pictures_of_other_sizes_have_no_difference():
    def sent(side):
        made = io.BytesIO()
        Image.new("L", (side, side)).save(made, "PNG")
        return base64.b64encode(made.getvalue()).decode()

    with pytest.raises(ValueError, match="the pictures are of different sizes"):
        difference_picture(sent(2), sent(3))


# Numbers and words of terms and solvers


def test_words_of_terms():
    line = "rescale: along must be .*, not 'x'"
    with pytest.raises(ValueError, match=line):
        gs.parse("cfg(2) | rescale(0.5, along='x')")
    with pytest.raises(ValueError, match=line):
        gs.rescale(0.5, along="x")  # type: ignore[arg-type]
    for name in ("mean_course", "variance_course"):
        with pytest.raises(ValueError, match="tfg: a course must be increase, decrease or constan"):
            TFG(1.0, **{name: "x"})  # type: ignore[arg-type]


def test_settings_of_solvers_of_another_kind():
    kind = type(get_solver("ddim"))
    with pytest.raises(ValueError, match="the solver 'ddim' has no setting 'x'; it has "):
        _make(kind, {"x": 1})

    class Odd(kind):  # type: ignore[misc,valid-type]
        def __init__(self, **more):
            raise TypeError("'<' not supported")

    with pytest.raises(ValueError, match=r"ddim: a setting is of the wrong kind \('<' not sup"):
        _make(Odd, {})


# Networks


def test_networks_that_cannot_be_made(monkeypatch):
    own: Any = types.ModuleType("own_networks")
    own.make = lambda width: width
    monkeypatch.setitem(sys.modules, "own_networks", own)
    with pytest.raises(ValueError, match=r"own_networks:make refuses its settings \(.*; correct"):
        from_callable("own_networks:make", {"depth": 2})
    with pytest.raises(ValueError, match=r"must return a torch.nn.Module, not int"):
        from_callable("own_networks:make", {"width": 2})


def test_a_guider_without_inputs():
    guider: Any = Guider("cfg(2)", {"_class_name": "DDIMScheduler"})
    with pytest.raises(ValueError, match="has not got the network's input; the pipeline must call"):
        guider._combine([])


def test_a_clip_that_is_not_whole(monkeypatch, tmp_path):
    monkeypatch.setattr(read_clip, "_read_tower", lambda folder, part: part)
    monkeypatch.setattr(read_clip, "read_pixels", lambda folder: {})
    monkeypatch.setattr(read_clip, "weights_file", lambda folder, name: folder / name)
    for tensors in ({}, {"logit_scale": torch.zeros(2)}):
        monkeypatch.setattr(read_clip, "read_tensors", lambda file, tensors=tensors: tensors)
        with pytest.raises(ValueError, match="hold no number logit_scale, so it is no whole CLIP"):
            read_clip._read_whole(tmp_path)


# Model folders


def test_folders_of_another_format(tmp_path):
    (tmp_path / NAME).write_text(json.dumps({"format": 99}))
    with pytest.raises(ValueError, match="is of the format 99; this version of guidestar reads"):
        read_about(tmp_path)


def test_a_network_whose_samples_have_no_size(monkeypatch, tmp_path):
    monkeypatch.setattr(folder, "readable_of", lambda path: "family")
    parts = SimpleNamespace(shape=None)
    monkeypatch.setattr(folder, "read_pipeline", lambda path, **more: parts)
    with pytest.raises(ValueError, match="its network leaves the size of a sample open"):
        folder._read_foreign(tmp_path, "n", None, torch.float32)


def test_a_cascade_needs_stages():
    with pytest.raises(ValueError, match="a cascade needs a base; give it stages by name"):
        cascade.Cascade(name="c", stages={})


# Recipes


VAE = {"widths": [8, 8], "groups": 4, "train": {"steps": 2}}


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ({"model": {"train": {"steps": 1}}}, "a unet needs widths, e.g. [32, 64, 96]"),
        ({"model": {**NET, "config": {"a": 1}}}, "config goes with a class of Diffusers or your"),
        ({"model": {**NET, "head": 9}}, "head must be at most the last width (8), not 9"),
        ({"data": {"kind": "tensors", "path": "p", "vae": "v"}}, "a vae encodes images or parquet,"
         " once; data of the kind 'tensors' are taken as they are"),
        ({"data": {"path": "p", "vae": "v", "reduced": 8}}, "latents are not reduced; leave"),
        ({"data": {"path": "p", "vae": "v", "flip": True}}, "leave flip or vae out"),
        ({"data": {"path": "p", "vae": "v", "crop": "random"}}, "leave crop or vae out"),
        ({"data": {"kind": "images"}}, 'say where the data are: path = "…"'),
        ({"data": {"path": "p", "vae": "autoencoder"}}, "needs the recipe to train one: add a "
         "table [autoencoder]"),
        ({"autoencoder": VAE}, "nothing would use it; say that the model works on its latents"),
        ({"autoencoder": {**VAE, "network": "AutoencoderTiny", "widths": [8, 16]},
          "data": {"path": "p", "vae": "autoencoder"}}, "has one width at all resolutions, not 8 "
         "and 16"),
        ({"autoencoder": {**VAE, "network": "AutoencoderTiny", "kl": 0.1},
          "data": {"path": "p", "vae": "autoencoder"}}, "kl is of AutoencoderKL; AutoencoderTiny"),
        ({"autoencoder": {**VAE, "network": "AutoencoderTiny", "kl": 0.0, "spread": "channel"},
          "data": {"path": "p", "vae": "autoencoder"}}, "has no latents_mean and latents_std in "
         'its config; write spread = "scalar"'),
        ({"upscale": {"size": 8}, "data": {"path": "p", "vae": "v"}}, "upscale: a super-resolution"
         " stage learns pixels; leave vae out"),
        ({"upscale": {"size": 8}, "model": {"network": "sequence", "train": {"steps": 1}}},
         "a super-resolution stage is a U-Net"),
    ],
)  # fmt: skip
def test_recipes_that_are_refused(tables, line):
    with pytest.raises(ValueError, match=re.escape(line)) as found:
        recipe(**tables)
    assert one_line(found.value).startswith("r.toml: ")


def test_a_stage_that_is_made_by_code(tmp_path):
    net = '{ network = "own:make", train = { steps = 1 } }'
    (tmp_path / "c.toml").write_text(
        'name = "c"\n[data]\npath = "p"\nsize = 8\n'
        f"[stages.base]\nsize = 4\nmodel = {net}\n[stages.large]\nsize = 8\nmodel = {net}\n"
    )
    with pytest.raises(ValueError, match=r"stages.base: a stage's network is not made by code"):
        read_cascade(tmp_path / "c.toml")


# Data


class Stream(Source):
    """Data without an end."""

    shape: Any = (1, 4, 4)
    size = None
    columns: Any = {}

    def batch(self, rows, draw):
        raise AssertionError


def test_streams_have_no_end():
    with pytest.raises(ValueError, match="no share of it can be held out; name other data to mea"):
        split(Stream(), 0.1, 0)
    with pytest.raises(ValueError, match="a Stream does not hold all captions of its column 'a'"):
        Stream().captions("a", [0])
    lesson: Any = SimpleNamespace(source=Stream(), recipe=SimpleNamespace(student=None))
    with pytest.raises(ValueError, match="so runs cannot be conditioned on its rows; give other"):
        paths.make_paths(lesson, Path("o"))


def held(*shape: int, columns: Any = None):
    return InMemory(x=torch.zeros(2, *shape), targets={}, columns=columns or {})


@pytest.mark.parametrize(
    ("test", "line"),
    [
        (held(1, 4, 5, columns={"a": Column(kind="class", classes=("x",))}),
         r"t holds samples of \[1, 4, 5\] with a, but p samples of \[1, 4, 4\] with a; they"),
        (held(1, 4, 4), "t holds samples of .* with no columns, but p samples of .* with a"),
        (held(1, 4, 4, columns={"a": Column(kind="class", classes=("y",))}),
         "t has other classes of 'a' than p, or another width; they should be alike"),
    ],
)  # fmt: skip
def test_data_to_measure_on_are_like_those_to_train_on(monkeypatch, test, line):
    asked: list[Any] = []
    monkeypatch.setattr(build, "_read", lambda *given: asked.append(given) or test)
    whole = held(1, 4, 4, columns={"a": Column(kind="class", classes=("x",))})
    known = recipe(data={"path": "p", "test": "t", "flip": True, "crop": "random"})
    with pytest.raises(ValueError, match=line):
        build._to_test(known, whole, None)
    spec = asked[0][1]
    assert (spec.flip, spec.crop, spec.standardise, spec.classes) == (
        False,
        "center",
        False,
        ("x",),
    )
    assert asked[0][2] == "t"


# Students


def teacher(**more: Any) -> Any:
    given: Any = {"name": "t", "shape": (1, 4, 4), "encoder": None, "denoiser": Spy(), "card": {}}
    return SimpleNamespace(**{**given, **more})


class Rows(nn.Module):
    """An encoder of rows."""

    classes = ("x", "y")

    def rows(self, values):
        return values


def test_conditions_that_data_do_not_have():
    label = {"a": Column(kind="class", classes=("x", "z"))}
    of = lambda encoder, columns: stages.conditions_of(
        teacher(), encoder, held(1, 4, 4, columns=columns)
    )
    with pytest.raises(ValueError, match="the conditions of 't' are those of a Diffusers pipeline"):
        of(object(), label)
    with pytest.raises(ValueError, match=r"takes a class, and the data have no such column \(they"):
        of(Rows(), {})
    with pytest.raises(ValueError, match="classes of 'a' in the data are not those of the teacher"):
        of(Rows(), label)
    found = of(Rows(), {"a": Column(kind="class", classes=("x", "y"))})
    assert list(found.parts) == ["a"] and list(of(None, label).parts) == []
    with pytest.raises(
        ValueError, match="takes the condition 'a', which is not a column of the da"
    ):
        of(found, {"b": Column(kind="class", classes=("x", "y"))})


def test_teachers_that_cannot_teach():
    spec: Any = SimpleNamespace(guidance="cond")
    with pytest.raises(ValueError, match=r"makes samples of \[1, 4, 4\], and the data are of \[2"):
        stages.teacher_of(teacher(), spec, held(2, 4, 4))
    from guidestar.networks.guidance_scale import GuidanceScale

    scaled = SimpleNamespace(scale=GuidanceScale(width=4, low=1.0, high=2.0, default=1.5))
    with pytest.raises(ValueError, match="is a student already; distil its teacher"):
        stages.teacher_of(teacher(denoiser=scaled), spec, held(1, 4, 4))
    bare: Any = SimpleNamespace(denoiser=Spy(), encoder=None)
    with pytest.raises(ValueError, match="the teacher's denoiser is a Spy; only networks wrapped"):
        stages.fresh_student(bare, None, 1.0)
    nothing: Any = SimpleNamespace(data=None)
    for card in ({}, {"recipe": {}}, {"recipe": {"data": "p"}}):
        with pytest.raises(ValueError, match="the card of 't' does not name its training data"):
            student_data.data_of(nothing, teacher(card=card))


def test_stages_that_are_not_trained(monkeypatch, tmp_path):
    student = SimpleNamespace(stages=lambda: [("a", 4)])
    lesson: Any = SimpleNamespace(recipe=SimpleNamespace(student=student))
    monkeypatch.setattr(students, "checkpoint", lambda out, stage: out / stage)
    monkeypatch.setattr(students, "read_checkpoint", lambda file: {"done": 3})
    monkeypatch.setattr(students, "stage_settings", lambda recipe, k: SimpleNamespace(steps=4))
    with pytest.raises(ValueError, match="holds no trained stage 'a' yet; run the same command"):
        students.finished_stage(lesson, 0, tmp_path)
    (tmp_path / "a").write_text("")
    with pytest.raises(ValueError, match="the stage 'a' is trained for 3 of its 4 steps; run the"):
        students.finished_stage(lesson, 0, tmp_path)


def test_pipelines_that_take_no_lora(monkeypatch, tmp_path):
    import diffusers
    from guidestar.diffusers import export

    nets: dict[str, Any] = {"now": nn.Linear(1, 1)}
    monkeypatch.setattr(export, "network_of", lambda denoiser: nets["now"])
    with pytest.raises(ValueError, match="f: its network is a Linear, which takes no LoRA; distil"):
        lora._network_of(teacher(), "f")
    nets["now"].config = {"guidance_embeds": True}
    with pytest.raises(
        ValueError, match=r"takes the guidance scale as an input .* distilled alrea"
    ):
        lora._network_of(teacher(), "f")
    with pytest.raises(ValueError, match="the pipeline 't' takes no condition, so it has no guida"):
        lora.Prompts(teacher(), ["a"])
    with pytest.raises(ValueError, match="Linear has no linear layers of attention that a LoRA"):
        lora.Adapted(nn.Identity(), None, nn.Linear(1, 1), 2)  # type: ignore[arg-type]
    (tmp_path / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    line = f"a DDPMPipeline loads no LoRA in Diffusers {diffusers.__version__}"
    with pytest.raises(ValueError, match=line):
        lora.write_lora(SimpleNamespace(network=None), str(tmp_path), tmp_path)  # type: ignore[arg-type]


def test_patches_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(clips, "fresh_clip", lambda *given: None)
    monkeypatch.setattr(clips, "pictures_of", lambda source: source)
    known: Any = SimpleNamespace(clip="clip")
    spec: Any = SimpleNamespace(patch=3)
    with pytest.raises(ValueError, match=r"noisy_clip.patch: samples of \[3, 8, 8\] cannot be cut"):
        clips.build_noisy_clip(known, spec, held(3, 8, 8), None)
