"""A text model from pictures with captions to guided samples, in small: real parts, few steps."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from transformers import (
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

import guidestar as gs
from diffusers import PixArtTransformer2DModel
from guidestar.apps.measure_text import Ruler, measure_text, read_captioned, read_prompts
from guidestar.apps.strip import between, morph, rising, write_strip
from guidestar.cli import main
from guidestar.train.export import assemble
from guidestar.train.recipe import schema as recipes
from guidestar.train.run import train

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 220), "black": (0, 0, 0)}
RECIPE = """
name = "tiny"
[data]
path = "{data}"
test = "{data}"
size = 16
channels = 3
columns = {{ text = "text" }}
[conditions.text]
encoder = "clip"
dropout = 0.2
[schedule]
kind = "flow"
[clip]
width = 16
layers = 1
heads = 2
text_width = 16
text_layers = 1
text_heads = 2
embed = 12
vocabulary = 540
length = 12
train = {{ steps = 8, batch = 12, warmup = 1, decay = 0.5 }}
[measuring_clip]
width = 24
layers = 1
heads = 2
text_width = 16
text_layers = 1
text_heads = 2
embed = 8
vocabulary = 530
length = 12
train = {{ steps = 8, batch = 12, warmup = 1, decay = 0.5 }}
[model]
network = "PixArtTransformer2DModel"
train = {{ steps = 6, batch = 8, warmup = 1, decay = 0.5 }}
[model.config]
num_layers = 2
num_attention_heads = 2
attention_head_dim = 16
patch_size = 4
interpolation_scale = 1
[noisy_clip]
width = 16
layers = 1
heads = 2
train = {{ steps = 4, batch = 12, warmup = 1, decay = 0.5 }}
[preview]
every = 6
prompts = ["red square", "blue disc"]
seeds = 2
steps = 2
[export]
guidance = "cfg(3)"
steps = 4
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Coloured squares with two captions each."""
    root = tmp_path_factory.mktemp("text")
    (root / "train").mkdir()
    rows = []
    for i, (name, colour) in enumerate(COLOURS.items()):
        for k in range(4):
            picture = Image.new("RGB", (16, 16), "white")
            picture.paste(colour, (k, k, 8 + k, 8 + k))
            picture.save(root / "train" / f"test-{i}{k}.png")
            rows.append(
                {
                    "file_name": f"test-{i}{k}.png",
                    "text": [f"{name} square, style {k}", f"{name} square"],
                }
            )
    (root / "train" / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (root / "tiny.toml").write_text(RECIPE.format(data=root / "train"))
    recipe = recipes.read_recipe(root / "tiny.toml")
    assert train(recipe, root / "out")
    assemble(recipe, root / "out")
    return root


@pytest.fixture(scope="module")
def model(folder):
    return gs.load(folder / "out" / "tiny")


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_the_folder_is_of_parts_that_others_read(folder):
    home = folder / "out" / "tiny"
    net = PixArtTransformer2DModel.from_pretrained(home, subfolder="transformer")
    text = CLIPTextModelWithProjection.from_pretrained(home / "text_encoder", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(home / "tokenizer")
    for tower in ("clip", "clean_clip"):
        CLIPVisionModelWithProjection.from_pretrained(home / tower)
    CLIPModel.from_pretrained(home / "judge")
    model = gs.load(home)
    told = model.encoder.encode(["red square"])
    rows = tokenizer(["red square"], padding="max_length", return_tensors="pt")
    with torch.no_grad():
        states = text(rows.input_ids, attention_mask=rows.attention_mask).last_hidden_state
        torch.testing.assert_close(told["encoder_hidden_states"], states.float())
        assert torch.equal(told["encoder_attention_mask"], rows.attention_mask)
        x, t = torch.randn(1, 3, 16, 16), 0.4
        more = {
            "encoder_attention_mask": rows.attention_mask,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }
        velocity = net(
            x, encoder_hidden_states=states.float(), timestep=torch.tensor([1000 * t]), **more
        ).sample
        torch.testing.assert_close(
            model.denoiser(x, model.schedule(t), told), x - t * velocity, rtol=1e-4, atol=1e-4
        )


def test_the_null_is_the_empty_caption(model):
    assert all(
        torch.equal(model.encoder.null(1)[k], v) for k, v in model.encoder.encode([""]).items()
    )
    plain = model.sample(["red square"], guidance="cfg(2)", seeds=[3])
    assert torch.equal(
        plain.x, model.sample(["red square"], guidance="cfg(2)", seeds=[3], negative="").x
    )
    other = model.sample(["red square"], guidance="cfg(2)", seeds=[3], negative="blue square")
    assert not torch.equal(plain.x, other.x)


def test_a_prompt_is_told_and_the_formula_is_cfg(model):
    x, level = torch.randn(2, 3, 16, 16), model.schedule(0.6)
    step = model.grid(4).step(0)._replace(t=level)
    guided = model.guided("cfg(3)", cond=["red square", "blue square"])
    with torch.no_grad():
        c, u = (
            model.denoiser(x, level, told)
            for told in (model.encoder.encode(["red square", "blue square"]), model.encoder.null(2))
        )
    torch.testing.assert_close(guided(x, step)[0].x0, u + 3 * (c - u), rtol=1e-4, atol=1e-4)


def test_an_empty_prompt_is_unconditional_and_said_so(model):
    with pytest.warns(UserWarning, match="a prompt is empty") as said:
        asked = model.sample([""], guidance="cfg(5)", seeds=[1])
    assert len(said) == 1
    torch.testing.assert_close(
        asked.x, model.sample(guidance="uncond", seeds=[1]).x, rtol=1e-4, atol=1e-4
    )
    with pytest.warns(UserWarning, match="a prompt is empty") as said:
        model.steer(lambda images: images.flatten(1).mean(1), "", particles=2, steps=2)
    assert len(said) == 1


@pytest.mark.parametrize(
    "guidance",
    [
        "uncond + clip(3, 'red square', interval=(0, 99))",
        "cfg(2) + clip(0.5, interval=(0, 99))",
        "uncond + clip(2, through='uncond')",
        "AND(2, 'red square') + NOT(1, 'blue square')",
    ],
)
def test_every_way_of_steering_runs_and_steers(model, guidance):
    run = model.sample(["red square"] * 2, guidance=guidance, seeds=[0, 1])
    free = model.sample(guidance="uncond", seeds=[0, 1])
    assert (
        run.images.shape == (2, 3, 16, 16)
        and run.x.isfinite().all()
        and not torch.allclose(run.x, free.x)
    )
    alone = model.sample(["red square"], guidance=guidance, seeds=[1])
    torch.testing.assert_close(alone.x[0], run.x[1], rtol=1e-3, atol=1e-3)


def test_clip_guidance_raises_what_clip_sees(model):
    """Along the gradient of the CLIP that guides, its own score of the result must rise."""
    step = model.grid(6).step(3)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    clip = model.classifiers["clip"]
    free, _ = model.guided("uncond")(x, step)
    pushed, _ = model.guided("uncond + clip(1, 'red square', interval=(0, 99))", cond=None)(x, step)
    target = clip.embed_text(["red square"])
    fit = [
        clip.log_prob(x + 1e-3 * d, step.t, target).sum()
        for d in (torch.zeros_like(x), pushed.x0 - free.x0)
    ]
    assert fit[1] > fit[0]


def test_the_card_and_the_examination(folder):
    about = json.loads((folder / "out" / "tiny" / "guidestar.json").read_text())
    assert (
        set(about["retrieval"]) == {"clip", "measuring_clip"}
        and about["retrieval"]["clip"]["of"] == 16
    )
    assert set(about["clips"]) == {"clip", "clean_clip"} and about["captions"] == sorted(
        f"{c} square" for c in COLOURS
    )
    card = (folder / "out" / "tiny" / "README.md").read_text()
    assert "image to text R@5" in card and "noise-aware CLIP" in card
    assert (folder / "out" / "previews" / "model-000006.png").is_file()


def test_measured_by_a_clip_that_guides_nothing(model, folder):
    rows = list(measure_text(model, ["cfg(1)", "cfg(3)"], count=8, data=folder / "train"))
    assert [r["guidance"] for r in rows] == ["real", "real, captions shuffled", "cfg(1)", "cfg(3)"]
    assert all(0 <= r["top 1"] <= r["top 5"] <= 1 for r in rows) and rows[0][
        "nearest"
    ] == pytest.approx(1, abs=1e-5)
    held = read_captioned(folder / "train", 16)
    assert held.labels[0] == "red square" and held.prompts[0] == "red square, style 0"


def test_scores_by_hand():
    """Three captions, two of them the same: the second picture fits the third caption best."""

    class Fake:
        def embed_captions(self, captions):
            at = {"a": [1.0, 0.0], "a too": [1.0, 0.0], "b": [0.0, 1.0]}
            return torch.tensor([at[c] for c in captions])

    ruler = Ruler.of(Fake(), ["a", "a too", "b"])
    assert len(ruler.texts) == 2
    seen = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    assert ruler.scores(seen, ["a too", "a"]) == {"top 1": 0.5, "top 5": 1.0, "score": 0.7}


def test_strips(model, tmp_path):
    first, second = (model.encoder.encode([c]) for c in ("red square", "blue square now"))
    mixed = between(first, second, 3)
    a, b = first["encoder_hidden_states"], second["encoder_hidden_states"]
    torch.testing.assert_close(mixed["encoder_hidden_states"][1:2], (a + b) / 2)
    assert torch.equal(
        mixed["encoder_attention_mask"][1:2],
        first["encoder_attention_mask"] | second["encoder_attention_mask"],
    )
    frames = morph(model, "red square", "blue square", frames=3, seed=7)
    ends = model.sample(["red square", "blue square"], seeds=[7, 7]).images
    torch.testing.assert_close(frames[[0, 2]], ends, rtol=1e-3, atol=1e-3)
    scales = rising(model, "red square", [1, 4], seed=7)
    torch.testing.assert_close(
        scales[1:],
        model.sample(["red square"], guidance="cfg(4)", seeds=[7]).images,
        rtol=1e-3,
        atol=1e-3,
    )
    for name, count in (("a.png", 1), ("a.gif", 4), ("a.webp", 4)):
        write_strip(frames, tmp_path / name)
        with Image.open(tmp_path / name) as picture:
            assert getattr(picture, "n_frames", 1) == count
    with pytest.raises(ValueError, match=r"\.png"):
        write_strip(frames, tmp_path / "a.jpg")


@pytest.mark.slow
@pytest.mark.filterwarnings("default::UserWarning")
def test_the_command_line(folder, capsys, tmp_path):
    home = folder / "out" / "tiny"
    code, out, _ = run(
        capsys,
        "sample",
        home,
        "red square",
        "a blue 🍎 квадрат",
        "--num",
        2,
        "--negative",
        "green",
        "--guidance",
        "cfg(2)",
        "--grid",
        "--out",
        tmp_path / "a",
    )
    assert code == 0 and "4 images" in out and len(list((tmp_path / "a").glob("*.png"))) == 5
    again = next((tmp_path / "a").glob("0001*.png"))
    assert run(capsys, "sample", "--like", again, "--out", tmp_path / "b")[0] == 0
    with Image.open(again) as one, Image.open(tmp_path / "b" / again.name) as other:
        assert one.tobytes() == other.tobytes()
    code, out, err = run(capsys, "sample", home, "", "--out", tmp_path / "c")
    assert code == 0 and err.count("note: a prompt is empty") == 1
    (tmp_path / "prompts.txt").write_text("# mine\nred square\n\nblue square\n")
    assert (
        "2 images"
        in run(
            capsys, "sample", home, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "d"
        )[1]
    )
    code, _, err = run(capsys, "sample", home, "red square " * 900, "--out", tmp_path / "e")
    assert code == 0 and "was cut after" in err
    assert (
        run(capsys, "strip", home, "red square", "--scales", "1,3", "--out", tmp_path / "s.png")[0]
        == 0
    )
    assert run(capsys, "plan", home, "--guidance", "cfg(2) + clip(1, interval=(0, 99))")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cond", "all"], "no classes for 'all'"),
        (["red\x07square"], "control character"),
        (["x" * 10_001], "at most 10,000 characters"),
        (["red", "--guidance", "clip(3, net='judge')"], "no CLIP 'judge'"),
        (["red", "--guidance", "clip(3, net='clean_clip')"], "was trained without noise"),
        (["red", "--guidance", "classifier(3)"], "no classifier 'classifier'"),
    ],
)
def test_bad_input_is_one_line(folder, capsys, tmp_path, arguments, said):
    code, _, err = run(
        capsys, "sample", folder / "out" / "tiny", *arguments, "--out", tmp_path / "x"
    )
    assert (
        code == 2 and said in err and "Traceback" not in err and len(err.strip().splitlines()) == 1
    )
    assert not list(tmp_path.rglob("*.png"))


def test_a_bad_line_of_a_prompts_file_is_named(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"red square\nbad \x01 line\n")
    with pytest.raises(ValueError, match=r"prompts\.txt, line 2: .*control character"):
        read_prompts(file)
    file.write_bytes(b"red\n\xff\xfe\n")
    with pytest.raises(ValueError, match="line 2: is not UTF-8"):
        read_prompts(file)
    file.write_bytes(b"\n# nothing\n")
    with pytest.raises(ValueError, match="holds no prompts"):
        read_prompts(file)


def test_a_class_is_not_a_prompt_and_a_prompt_no_class(model, capsys, tmp_path):
    with pytest.raises(ValueError, match="takes text prompts, not class names"):
        model.sample([3])
    code, _, err = run(capsys, "sample", "fashion-mnist", "a red heart", "--out", tmp_path)
    assert code == 2 and "unknown class 'a red heart'" in err


def test_a_missing_tokenizer_is_named(folder, tmp_path, capsys):
    import shutil

    home = tmp_path / "tiny"
    shutil.copytree(folder / "out" / "tiny", home)
    shutil.rmtree(home / "tokenizer")
    code, _, err = run(capsys, "sample", home, "red", "--out", tmp_path / "x")
    assert code == 1 and "tokenizer: holds no tokenizer" in err


def test_a_recipe_that_needs_a_clip_says_so():
    text = (
        '[data]\npath = "x"\n[conditions.text]\nencoder = "clip"\n[model]\nwidths = '
        "[16]\nhead = 8\ntrain = {{ steps = 1 }}\n"
    )
    import tomllib

    with pytest.raises(
        ValueError, match=r"conditions.text.encoder needs the recipe to train a clip"
    ):
        recipes.Recipe.model_validate(
            {"name": "a", **tomllib.loads(text.replace("{{", "{").replace("}}", "}"))}
        )
