"""Motions from a folder to a model and its samples, by a recipe."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import guidestar
from guidestar.apps.measure_motion import (
    MotionJudge,
    measure_motions,
    motions_of,
    names_like,
    real_motions,
    sample_like,
    score_motions,
)
from guidestar.cli import main
from guidestar.data.motions import Motions
from guidestar.data.source import InMemory
from guidestar.model.motions import (
    body_of_model,
    lengthen,
    lengths_of,
    motions,
    need_body,
    with_length,
    write_motions,
)
from guidestar.motion import parse_bvh, read_bvh
from guidestar.networks.lengths import LengthEncoder
from guidestar.networks.windows import Windowed
from guidestar.train.build.data import sources
from guidestar.train.build.networks import build_part
from guidestar.train.export import assemble
from guidestar.train.recipe.schema import read_recipe
from guidestar.train.run import train
from helpers.clips import save_clip
from helpers.motions import NAMES, walker, write_walkers

RECIPE = """
name = "walkers"
[data]
kind = "motion"
path = "PATH"
crop = "random"
holdout = 0.25
[data.motion]
frames = 24
names = "{action}_{mood}_{}"
[conditions.action]
dropout = 0.5
[schedule]
beta_schedule = "squaredcos_cap_v2"
num_train_timesteps = 50
[levels]
kind = "uniform"
[objective]
predicts = "x0"
[objective.motion]
positions = 1.0
velocities = 1.0
contacts = 1.0
[model]
network = "motion"
width = 16
layers = 2
heads = 2
train = { steps = 3, batch = 4, warmup = 1 }
[judge]
column = "action"
widths = [8, 8]
train = { steps = 2, batch = 4, warmup = 1 }
[preview]
every = 3
seeds = 2
steps = 2
[export]
steps = 3
"""


def recipe_in(tmp_path, *changes, text=RECIPE):
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "recipe.toml").write_text(text.replace("PATH", str(tmp_path / "clips")))
    return read_recipe(tmp_path / "recipe.toml")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("motion")
    write_walkers(folder / "clips", each=2)
    recipe = recipe_in(folder)
    assert train(recipe, folder / "out")
    assemble(recipe, folder / "out")
    return folder


@pytest.fixture(scope="module")
def model(home):
    return guidestar.load(home / "out" / "walkers")


def test_the_model_keeps_its_skeleton_and_units(home, model):
    source, aside = sources(recipe_in(home))
    assert model.shape == (24, 87) and aside.size == 2
    assert model.classes == ("fast", "slow") and "judge_accuracy" in model.card
    body = body_of_model(model)
    assert body.format == source.source.body.format and body.rate == 20
    x = torch.randn(2, 24, 87)
    torch.testing.assert_close(
        model.decode(x), x * source.source.scale.std + source.source.scale.mean
    )
    assert need_body(model).to_json() == body.to_json()
    with pytest.raises(ValueError, match="makes no motions; give one of data of the kind"):
        need_body(guidestar.load("fashion-mnist"))


def test_samples_have_the_lengths_that_they_are_given(model):
    names = ["fast", "1; length=9", "; length=12", "action=fast; length=24"]
    found = model.sample(names, seeds=[0, 1, 2, 3])
    assert found.settings.cond == ("fast", "slow; length=9", "; length=12", "fast; length=24")
    assert lengths_of(model, found.settings.cond, 4) == [24, 9, 12, 24]
    assert [len(x) for x in motions(model, found)] == [24, 9, 12, 24]
    assert lengths_of(model, None, 2) == [24, 24]
    again = model.again(json.loads(json.dumps(vars(found.settings))))
    torch.testing.assert_close(again.x, found.x)
    assert with_length(model, ["fast", "slow; length=9"], 7) == ["fast; length=7", "slow; length=7"]
    assert with_length(model, None, 7) == ["; length=7"]
    with pytest.raises(
        ValueError, match="'30' should be a whole number of frames from 4 to 24, the"
    ):
        model.sample("fast; length=30")
    with pytest.raises(
        ValueError, match="'30' should be a whole number of frames from 4 to 24, the"
    ):
        with_length(model, None, 30)
    with pytest.raises(ValueError, match="takes no length; leave it out"):
        with_length(guidestar.load("fashion-mnist"), None, 30)


def test_motions_longer_than_trained_are_blended_from_windows(home, model, tmp_path, capsys):
    long = lengthen(model, 50, overlap=8)
    found = long.sample(["fast", "slow"], seeds=[0, 1], steps=2, guidance="cfg(2)")
    assert [len(x) for x in motions(long, found)] == [50, 50]
    # The same run by hand: windows begin 16 frames apart, and the last one ends with the motion.
    sizes = {"size": 24, "overlap": 8, "dim": 0}
    encode = lambda names: model.encoder.encode([f"{n}; length=24" for n in names])
    guided = guidestar.Guided(
        "cfg(2)",
        Windowed(model.denoiser, **sizes),
        cond=encode(["fast", "slow"]),
        null=model.encoder.null(2),
    )
    grid = model.grid(2, model.defaults["grid"])
    x = guidestar.sample(guided, grid=grid, seeds=[0, 1], shape=(50, 87), solver=model.solver(None))
    torch.testing.assert_close(found.x, x)
    assert Windowed(model.denoiser, **sizes).starts(50) == [0, 16, 26]
    with pytest.raises(ValueError, match="motions of 24 frames need no windows, as"):
        lengthen(model, 24, overlap=8)
    with pytest.raises(ValueError, match="windows of 24 should overlap by 0 to 23, not 24"):
        lengthen(model, 50, overlap=24)
    with pytest.raises(ValueError, match="makes no motions"):
        lengthen(guidestar.load("fashion-mnist"), 50, overlap=8)
    command = ["sample", str(home / "out" / "walkers"), "--cond", "fast", "--steps", "2"]
    with pytest.raises(SystemExit) as end:
        main([*command, "--length", "40", "--overlap", "4", "--out", str(tmp_path)])
    assert end.value.code == 0
    (file,) = tmp_path.glob("*.bvh")
    assert len(read_bvh(file).values) == 40
    with pytest.raises(SystemExit) as end:
        main([*command, "--overlap", "4", "--out", str(tmp_path)])
    assert end.value.code == 2
    assert "--overlap goes with --length" in capsys.readouterr().err


def test_every_pass_of_a_run_is_as_long(model):
    seen = []
    network = model.denoiser.net.net
    hook = network.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["frame_mask"].sum(1).tolist()),
        with_kwargs=True,
    )
    run = {"guidance": "cfg(2) + AND(2, 'slow')", "negative": "slow", "steps": 1}
    model.sample(["fast; length=9", "slow; length=5"], seeds=[0, 1], **run)
    hook.remove()
    passes = sorted(length for call in seen for length in call)
    assert passes == [5.0] * 4 + [9.0] * 4  # cond, negative, uncond and "slow"


def test_motions_become_files(model, tmp_path):
    found = model.sample(["fast", "slow; length=9"], seeds=[0, 1])
    paths = write_motions(model, found, tmp_path / "files", numbers=[4, 5])
    assert [p.name for p in paths] == ["0004-fast-seed0.bvh", "0005-slow-length-9-seed1.bvh"]
    body = need_body(model)
    for path, x in zip(paths, motions(model, found), strict=True):
        motion = read_bvh(path)
        assert [j.name for j in motion.joints] == list(NAMES)
        assert len(motion.values) == len(x) and math.isclose(motion.rate, 20)
        joints = body.rig.pose(motion).joints(body.format.skeleton)
        held = np.load(path.with_suffix(".npz"))
        np.testing.assert_allclose(held["joints"], joints, atol=1e-2)
        assert held["names"].tolist() == list(NAMES) and float(held["rate"]) == 20
        assert held["parents"].tolist() == list(body.format.skeleton.parents)


def test_a_motion_without_classes_takes_a_length_alone(home):
    recipe = recipe_in(home, ("[conditions.action]\ndropout = 0.5\n", "[conditions]\n"))
    source, _ = sources(recipe)
    built = build_part(recipe, "model", source)
    encoder = built.module.encoder.alone()
    assert isinstance(encoder, LengthEncoder) and (encoder.frames, encoder.least) == (24, 4)


def test_captions_guide_motions_and_none_is_the_zero_vector(home, tmp_path):
    save_clip(tmp_path / "clip", 6)
    text = f'encoder = "{tmp_path / "clip"}"\noutput = "projected"\n'
    recipe = recipe_in(
        home,
        ("[conditions.action]\ndropout = 0.5\n", f"[conditions.text]\ndropout = 0.5\n{text}"),
        (
            'names = "{action}_{mood}_{}"',
            'names = "{action}_{mood}_{}"\ncaption = "a {action} walk"',
        ),
    )
    recipe = recipe.model_copy(update={"judge": None, "name": "told"})
    assert train(recipe, tmp_path / "out")
    assemble(recipe, tmp_path / "out")
    model = guidestar.load(tmp_path / "out" / "told")
    assert model.takes_prompts and model.denoiser.net.net.config["text_width"] == 6
    assert not model.encoder.null(1)["encoder_hidden_states"].any()
    found = model.sample("a fast walk; length=9", seeds=[0, 1], guidance="cfg(2.5)")
    assert found.settings.cond == ("a fast walk; length=9",) * 2
    assert lengths_of(model, found.settings.cond, 2) == [9, 9]
    whole = model.sample("a fast walk", seeds=[0], guidance="cfg(2.5)")
    other = model.sample("a slow walk", seeds=[0], guidance="cfg(2.5)")
    assert not torch.equal(whole.x, other.x)


def test_two_conditions_are_named_and_lengths_are_told_always(home):
    recipe = recipe_in(home, ("[conditions.action]", "[conditions.mood]\n[conditions.action]"))
    source, _ = sources(recipe)
    built = build_part(recipe, "model", source)
    assert set(built.module.encoder.parts) == {"mood", "action", "length"}
    found = built.module.encoder.parse("action=slow; mood=calm; length=8")
    assert found == {"mood": 0, "action": 1, "length": 8}


def test_data_to_measure_on_get_the_units_of_those_to_train_on(home):
    write_walkers(home / "test", each=1)
    recipe = recipe_in(home, ("holdout = 0.25", f'test = "{home / "test"}"'))
    whole, test = sources(recipe)
    assert isinstance(test, Motions) and test.size == 4 and test.crop == "center"
    assert test.scale is whole.scale and test.body is whole.body
    (home / "test" / "fast_calm_0.bvh").write_text(walker(names=("Hips", *NAMES[1:6], "Toe")))
    with pytest.raises(ValueError, match="another skeleton than that of the first file"):
        sources(recipe)


def test_a_resumed_training_keeps_its_units(home, tmp_path):
    from guidestar.train.run import train_part

    recipe = recipe_in(home)
    with pytest.raises(
        ValueError, match="standardisation of motions takes its units from the data"
    ):
        next(train_part(recipe, "model", tmp_path, sources(recipe)[0], accept_data=True))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('kind = "motion"', 'kind = "images"', 'data: motion goes with kind = "motion", not'),
        ("crop =", "flip = true\ncrop =", "flip is of images; leave it out of motions"),
        ("crop =", "reduced = 4\ncrop =", "reduced is of images; leave it out of motions"),
        ("crop =", 'vae = "vae"\ncrop =', "latents are encoded once|a vae encodes images"),
        ("frames = 24", "frames = 3", "data.motion.frames: .*greater than or equal to 4"),
        ("frames = 24", "rate = 0.0", "data.motion.rate: .*greater than 0"),
        ("frames = 24", 'up = "X"', "data.motion.up: .*'Y' or 'Z'"),
        ("positions = 1.0", "positions = -1.0", "objective.motion.positions: .*greater than"),
        ("positions = 1.0", "joints = 1.0", "unknown key 'objective.motion.joints'"),
        ("[judge]\n", "[clip]\ntrain = { steps = 1 }\n[judge]\n", "clip: it learns from pictures"),
        ("width = 16", "config = { a = 1 }", "'motion' is set by keys of its own"),
        ("[preview]", "[upscale]\nsize = 4\n[preview]", "a super-resolution stage learns pixels"),
    ],
)
def test_recipes_that_are_refused(tmp_path, old, new, words):
    with pytest.raises(ValueError, match=words):
        recipe_in(tmp_path, (old, new))


def test_motions_need_a_network_that_takes_their_lengths(home):
    recipe = recipe_in(home, ('network = "motion"', 'network = "sequence"'))
    with pytest.raises(
        ValueError, match="a SequenceTransformer takes no 'frame_mask', so it canno"
    ):
        build_part(recipe, "model", sources(recipe)[0])


def test_a_motion_network_is_of_sequences(tmp_path):
    from guidestar.data.source import InMemory

    write_walkers(tmp_path / "clips", each=1)
    images = InMemory(x=torch.zeros(4, 3, 8, 8), targets={}, columns={})
    recipe = recipe_in(tmp_path, ("[conditions.action]\ndropout = 0.5\n", "[conditions]\n"))
    with pytest.raises(
        ValueError, match=r"is for sequences \[T, C\], not for samples of \[3, 8, 8\]"
    ):
        build_part(recipe, "model", images)


def test_losses_of_motions_need_motions(tmp_path):
    text = 'name = "a"\n[data]\nkind = "tensors"\npath = "x"\n[objective.motion]\npositions = 1.0\n'
    text += '[model]\nnetwork = "sequence"\ntrain = { steps = 1 }\n'
    with pytest.raises(ValueError, match=r"objective\.motion: it goes with data\.kind = .motion"):
        recipe_in(tmp_path, text=text)


def test_the_command_line_writes_an_animation_and_files(home, tmp_path, capsys):
    from PIL import Image

    from guidestar import cli

    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        cli.main(
            [
                *("sample", str(home / "out" / "walkers"), "fast", "--cond", "slow", "--num", "2"),
                *("--length", "9", "--steps", "2", "--animation", "gif", "--out", str(out)),
            ]
        )
    written = capsys.readouterr()
    assert not stop.value.code, written.err
    assert "4 motions in " in written.out and "motion.gif" in written.out
    names = sorted(p.name for p in out.iterdir())
    assert names[:2] == ["0000-slow-length-9-seed0.bvh", "0000-slow-length-9-seed0.npz"]
    assert len(names) == 10 and names[-2:] == ["motion.gif", "samples.safetensors"]
    assert len(read_bvh(out / names[0]).values) == 9
    with Image.open(out / "motion.gif") as drawn:
        assert drawn.n_frames == 9
    with pytest.raises(SystemExit):
        cli.main(["sample", str(home / "out" / "walkers"), "fast", "--length", "25"])
    assert "'25' should be a whole number of frames from 4 to 24" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["sample", "fashion-mnist", "--length", "25", "--out", str(out)])
    assert "takes no length; leave it out" in capsys.readouterr().err


def test_the_command_line_keeps_a_part_of_a_clip(home, tmp_path, capsys):
    from guidestar import cli
    from guidestar.cli.motions import read_frames

    def run(*more):
        with pytest.raises(SystemExit) as stop:
            cli.main(["sample", str(home / "out" / "walkers"), "slow", "--steps", "2", *more])
        return stop.value.code, capsys.readouterr()

    clip, out = tmp_path / "clip.bvh", tmp_path / "out"
    clip.write_text(walker(40, speed=1.5))
    kept = ("--keep", str(clip), "--keep-frames", "0-4,20-23", "--out", str(out))
    code, written = run(*kept)
    assert not code, written.err
    model = guidestar.load(home / "out" / "walkers")
    form = need_body(model).format
    made = need_body(model).encode(read_bvh(out / "0000-slow-seed0.bvh"))
    wanted = need_body(model).encode(parse_bvh(walker(40, speed=1.5)))
    where = form.parts["positions"]
    near = (made - wanted[:24])[:, where].abs().amax(1)
    assert float(near[[*range(5), *range(20, 24)]].max()) < 0.01 * form.size
    assert float(near[5:20].max()) > 0.02 * form.size
    for more, words in (
        (kept[:2], "--keep with all frames and joints leaves nothing to sample"),
        (kept[2:4], "are of a clip; give it with --keep"),
        (("--keep", str(clip), "--keep-frames", "0-4,a"), "'0-4,a' cannot be read at 'a'"),
        (("--keep", str(clip), "--keep-frames", "0-24"), "has the frames 0 to 23, not 24"),
        (("--keep", str(clip), "--keep-joints", "Tail"), "no joint 'Tail'; its joints are Hips"),
        (("--keep", str(tmp_path / "no.bvh"), "--keep-frames", "0"), "there is no such file"),
    ):
        code, written = run(*more, "--out", str(out))
        assert code and words in written.err, written.err
    assert read_frames("3, 5 - 7") == [3, 5, 6, 7]


def test_evaluate_measures_motions_by_their_judge(home, model, tmp_path, capsys):
    seeds, folder = range(5), str(home / "out" / "walkers")
    rows = list(measure_motions(model, ["cfg(1)", "cfg(2)"], seeds=seeds))
    assert [row["guidance"] for row in rows] == ["real", "cfg(1)", "cfg(2)"]
    # By hand: the training clips against the held-out ones, and samples of their conditions.
    source, aside = sources(recipe_in(home))
    whole, other = motions_of(source), motions_of(aside)
    assert (whole.size, other.size) == (6, 2)
    every = real_motions(source.source)
    for kept, part in ((source.kept, whole), (aside.kept, other)):
        for k, x in zip(kept, real_motions(part), strict=True):
            torch.testing.assert_close(x, every[k])
        assert part.targets["action"].tolist() == [
            source.source.targets["action"].tolist()[k] for k in kept
        ]
    judge = MotionJudge(net=model.judge, data=whole, column="action")
    reference = judge.run(real_motions(other), other.targets["action"])
    names = names_like(whole, ["action"])[:5]
    made = sample_like(model, names, "cfg(2)")
    wanted = score_motions(
        made, whole.targets["action"][:5], judge=judge, body=whole.body, reference=reference
    )
    for name, value in vars(wanted).items():
        assert rows[2][name] == pytest.approx(value, rel=1e-3, abs=1e-6)
    assert rows[2]["nfe"] == 6 and rows[0]["nfe"] == 0  # 3 steps of two passes
    out = tmp_path / "rows.json"
    with pytest.raises(SystemExit) as end:
        main(["evaluate", folder, "--guidance", "cfg(2)", "--seeds", "0-4", "--out", str(out)])
    assert end.value.code == 0
    again = json.loads(out.read_text())[1]
    assert again["jerk"] == pytest.approx(rows[2]["jerk"], rel=1e-3)
    assert "skating" in capsys.readouterr().out
    with pytest.raises(ValueError, match="walkers' has no judge to measure with; train one"):
        next(measure_motions(replace(model, judge=None), ["cfg(1)"], seeds=seeds))
    with pytest.raises(ValueError, match="these are no motions but samples of"):
        motions_of(InMemory(x=torch.zeros(2, 3, 8, 8), columns={}, targets={}))
