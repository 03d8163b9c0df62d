"""What a training writes is one folder that samples here, loads with Diffusers' own classes, and
says what it is.
"""

import json
import subprocess
import sys

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import diffusers
import guidestar as gs
import guidestar.core.rng
import guidestar.model.model
from guidestar.apps.measure import measure
from guidestar.io.files import Damaged
from guidestar.model.folder import WeightsError
from guidestar.train import run, snapshots
from guidestar.train.build.data import sources, standardiser_of
from guidestar.train.export import assemble
from guidestar.train.recipe import schema as recipes
from helpers import commands
from networks.test_conditions import clip
from train.test_distributed import launch

HEAD = """
name = "it"
licence = "CC0-1.0"
[data]
kind = "tensors"
path = "{path}"
holdout = 0.2
{data}
{tables}
[model]
{network}
snapshots = [0.5]
train = {{ steps = 4, batch = 4, warmup = 1, power = [0.1] }}
[export]
steps = 3
guidance = "cfg(2)"
{more}
"""
UNET = "widths = [8, 8]\nhead = 8"
PARTS = (
    "[classifier]\nwidths = [8, 8]\ntrain = { steps = 3, batch = 4 }\n[judge]\nwidths = [8, "
    "8]\ntrain = { steps = 3, batch = 4 }"
)


def trained(tmp_path, *, shape=(1, 8, 8), data="", tables="", network=UNET, more=""):
    generator = torch.Generator().manual_seed(0)
    content = {
        "x": torch.randn(20, *shape, generator=generator),
        "label": torch.arange(20) % 3,
        "pose": torch.randn(20, 2, generator=generator),
    }
    save_file(
        content, tmp_path / "d.safetensors", {"classes": json.dumps({"label": ["a", "b", "c"]})}
    )
    (tmp_path / "r.toml").write_text(
        HEAD.format(
            path=tmp_path / "d.safetensors", data=data, tables=tables, network=network, more=more
        )
    )
    recipe = recipes.read_recipe(tmp_path / "r.toml", trust=True)
    run.train(recipe, tmp_path / "out")
    return assemble(recipe, tmp_path / "out"), tmp_path / "out" / "it"


LABEL = "[conditions.label]"


def same_samples(model, folder, names=("b", "c"), **more):
    again = gs.load(folder, **more)
    one, two = (m.sample(list(names) if names else None, seeds=[0, 1]) for m in (model, again))
    assert one.settings.guidance == two.settings.guidance
    assert (one.x - two.x).abs().max() < 0.02 * one.x.abs().max()  # weights are written in float16
    return again


def test_a_folder_samples_as_what_was_trained_and_loads_with_diffusers(tmp_path):
    model, folder = trained(tmp_path, tables=LABEL, more=PARTS)
    again = same_samples(model, folder)
    unet = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet")
    scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    assert scheduler.config.prediction_type == "v_prediction"
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([10.0, 700.0])
    told = again.encoder.encode(["a", "c"])["class_labels"]
    with torch.no_grad():
        torch.testing.assert_close(
            unet(x, t, class_labels=told).sample,
            again.denoiser.net.net(x, t, class_labels=told).sample,
            atol=1e-5,
            rtol=1e-4,
        )
    assert (
        set(again.nets) == {"step-2"}
        and again.judge is not None
        and "classifier" in again.classifiers
    )
    card = (folder / "README.md").read_text()
    for fact in (
        "license: cc0-1.0",
        "d.safetensors",
        "| model |",
        "guidestar train",
        "16 training samples",
        "judge",
    ):
        assert fact in card, fact
    about = json.loads((folder / "guidestar.json").read_text())
    assert about["recipe"]["model"]["train"]["steps"] == 4 and about["loss"]["model"] > 0
    rows = list(measure(again, ["cond", "cfg(2)"], seeds=range(6)))
    assert [r["guidance"] for r in rows] == ["real", "cond", "cfg(2)"] and rows[1]["nfe"] == 3


def test_every_average_and_snapshot_can_be_sampled(tmp_path):
    _, folder = trained(tmp_path, tables=LABEL)
    default, power = gs.load(folder), gs.load(folder, average="power-0.1")
    state = torch.load(tmp_path / "out" / "parts" / "model.pt", weights_only=True)
    name = "denoiser.net.net.conv_in.weight"
    for loaded, average in ((default, "ema-0.999"), (power, "power-0.1")):
        assert torch.equal(
            loaded.denoiser.net.net.conv_in.weight,
            state["averages"][average]["weights"][name].half().float(),
        )
    assert not torch.equal(
        default.denoiser.net.net.conv_in.weight, power.denoiser.net.net.conv_in.weight
    )
    assert torch.equal(
        default.nets["step-2"][0].net.net.conv_in.weight,
        load_file(snapshots.snapshot_file(tmp_path / "out", "model", 2))[name].float(),
    )
    with pytest.raises(
        ValueError, match=r"has no average 'power-0.2'; it has ema-0.999, power-0.1$"
    ):
        gs.load(folder, average="power-0.2")
    snapshots.snapshot_file(tmp_path / "out", "model", 2).write_bytes(b"torn")
    with pytest.raises(
        Damaged,
        match=r"model-000002.safetensors: cannot be read .*; set export.snapshots = false to "
        r"finish the model without it$",
    ):
        assemble(recipes.read_recipe(tmp_path / "r.toml"), tmp_path / "out")


@pytest.mark.parametrize(
    ("tables", "schedule", "predicts"),
    [
        ('[schedule]\nkind = "flow"\nshift = 2.0', gs.Flow(shift=2.0), "velocity"),
        ('[schedule]\nkind = "flow"\n[objective]\npredicts = "x0"', gs.Flow(), "x0"),
        (
            '[schedule]\nkind = "edm"\nsigma_max = 50.0\n[levels]\nmean = -1.2\nstd = 1.2',
            gs.VE(t_max=50.0),
            "edm",
        ),
        (
            '[schedule]\nbeta_schedule = "squaredcos_cap_v2"\n[objective]\npredicts = '
            '"eps"\nweighting = "min-snr"',
            gs.VP.cosine(),
            "eps",
        ),
        (
            "[schedule]\nzero_terminal_snr = true\n[levels]\nkind = "
            '"uniform"\n[objective]\nweighting = "snr+1"',
            gs.VP.linear().zero_terminal_snr(),
            "v",
        ),
    ],
)
def test_every_schedule_and_prediction_goes_out_and_in(tmp_path, tables, schedule, predicts):
    model, folder = trained(tmp_path, tables=f"{LABEL}\n{tables}")
    again = same_samples(model, folder)
    assert (
        again.denoiser.predicts == predicts and again.denoiser.predicts == model.denoiser.predicts
    )
    for t in torch.linspace(schedule.t_min, schedule.t_max, 5).tolist():
        assert again.schedule(t) == pytest.approx(schedule(t), rel=1e-6, abs=1e-9)
        assert again.denoiser.time(t) == model.denoiser.time(t)


def test_a_regressor_is_trained_examined_and_guides(tmp_path):
    regressor = '[classifier]\ncolumn = "pose"\nwidths = [8, 8]\ntrain = { steps = 3, batch = 4 }'
    _, folder = trained(tmp_path, tables="[conditions.pose]", more=regressor)
    again = gs.load(folder)
    told = again.classifiers["classifier"]
    source = sources(recipes.read_recipe(tmp_path / "r.toml"))[0]
    pose = torch.cat([source.batch([k], gs.Draw([k]))[1]["pose"] for k in range(source.size)])
    torch.testing.assert_close(torch.tensor(told.config["centre"]), pose.mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        torch.tensor(told.config["spread"]), pose.std(0, correction=0), atol=1e-5, rtol=0
    )
    about = json.loads((folder / "guidestar.json").read_text())
    assert (
        len(told.temperatures) == len(about["regressor"]) > 5
        and "## The noise-aware regressor" in (folder / "README.md").read_text()
    )
    free, pulled, other = (
        again.sample(["1,2"], seeds=[0], guidance=g).x
        for g in ("uncond", "uncond + classifier(5)", "uncond + classifier(5, target='-9,9')")
    )
    assert not torch.equal(free, pulled) and not torch.equal(pulled, other)


def test_several_conditions_go_out_and_in(tmp_path):
    model, folder = trained(tmp_path, tables=f"{LABEL}\n[conditions.pose]\ndropout = 0.3")
    again = same_samples(model, folder, ("label=b; pose=1,2", "pose=0,0"))
    nothing, label = (
        again.sample([""], seeds=[0], guidance="cond"),
        again.sample(["label=b"], seeds=[0], guidance="cond"),
    )
    assert torch.equal(
        nothing.x, again.sample(None, seeds=[0], guidance="uncond").x
    ) and not torch.equal(nothing.x, label.x)


def test_text_goes_out_and_in_by_its_own_clip(tmp_path):
    text = clip()
    text.text.save_pretrained(tmp_path / "clip" / "text_encoder")
    text.tokenizer.save_pretrained(tmp_path / "clip" / "tokenizer")
    from PIL import Image

    folder = tmp_path / "photos"
    folder.mkdir()
    words = ["a cat", "a dog", "a red cat", "a bag"]
    for i in range(8):
        Image.effect_noise((8, 8), 50).convert("RGB").save(folder / f"{i}.png")
    (folder / "metadata.jsonl").write_text(
        "".join(
            json.dumps({"file_name": f"{i}.png", "text": words[i % 4]}) + "\n" for i in range(8)
        )
    )
    network = "widths = [8, 8]\nhead = 8\ncondition_dropout = 0.3"
    text_of = HEAD.format(
        path=folder,
        data="size = 8",
        tables=f'[conditions.text]\nencoder = "{tmp_path / "clip"}"',
        network=network,
        more="",
    ).replace('"tensors"', '"images"')
    (tmp_path / "r.toml").write_text(text_of)
    recipe = recipes.read_recipe(tmp_path / "r.toml")
    run.train(recipe, tmp_path / "out")
    model, where = assemble(recipe, tmp_path / "out"), tmp_path / "out" / "it"
    assert (
        diffusers.UNet2DConditionModel.from_pretrained(
            where, subfolder="unet"
        ).config.cross_attention_dim
        == 8
    )
    again = same_samples(model, where, ("a cat", "a bag"))
    state = torch.load(tmp_path / "out" / "parts" / "model.pt", weights_only=True)["module"]
    key = next(k for k in state if k.endswith("token_embedding.weight"))
    assert torch.equal(
        state[key],
        dict(text.text.named_parameters())[
            key.split("text.text.")[-1] if "text.text." in key else key.split(".text.")[-1]
        ],
    )  # CLIP itself is not trained
    assert not torch.equal(
        again.sample(["a cat"], seeds=[0], guidance="cond").x,
        again.sample(["a dog"], seeds=[0], guidance="cond").x,
    )


def test_a_network_of_diffusers_is_built_by_its_settings(tmp_path):
    blocks = (
        'down_block_types = ["DownBlock2D", "AttnDownBlock2D"], up_block_types = '
        '["AttnUpBlock2D", "UpBlock2D"]'
    )
    config = (
        f'network = "UNet2DModel"\nconfig = {{ block_out_channels = [8, 16], {blocks}, '
        "layers_per_block = 1, norm_num_groups = 4, attention_head_dim = 8 }"
    )
    model, folder = trained(tmp_path, tables=LABEL, network=config)
    assert same_samples(model, folder).denoiser.net.net.config.layers_per_block == 1
    assert (
        diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet").config.class_embed_type
        == "identity"
    )
    assert model.encoder.table.weight.shape == (
        4,
        32,
    )  # three classes and the null, four times the first width


def test_dit_drops_labels_by_our_draws_alone(tmp_path):
    config = (
        'network = "DiTTransformer2DModel"\nconfig = { num_layers = 1, num_attention_heads '
        "= 2, attention_head_dim = 4, patch_size = 2, norm_num_groups = 1 }"
    )
    model, folder = trained(tmp_path, tables=LABEL, network=config)
    same_samples(model, folder)
    assert (
        diffusers.DiTTransformer2DModel.from_pretrained(
            folder, subfolder="transformer"
        ).config.num_embeds_ada_norm
        == 3
    )
    embedders = [m for m in model.denoiser.modules() if hasattr(m, "token_drop")]
    assert embedders and all(m.dropout_prob == 0 for m in embedders)
    assert model.encoder.null(1)["class_labels"].tolist() == [3]


def test_latents_of_a_vae_are_trained_on_and_decoded(tmp_path):
    """Encoded once, by the mean of the posterior; samples come out as pictures."""
    from PIL import Image

    torch.manual_seed(0)
    kinds = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8),
    }
    vae = diffusers.AutoencoderKL(
        **kinds, norm_num_groups=4, latent_channels=2, scaling_factor=0.7, shift_factor=0.1
    ).eval()
    vae.save_pretrained(tmp_path / "vae")
    for k, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            Image.effect_noise((16, 16), 20 + 40 * k).save(
                tmp_path / "photos" / name / f"{i}.png"
            )  # grey, but the VAE wants colours
    data = f'size = 16\nvae = "{tmp_path / "vae"}"'
    more = "[preview]\nevery = 4\nseeds = 2\nsteps = 2"
    text = HEAD.format(
        path=tmp_path / "photos", data=data, tables="", network=UNET, more=more
    ).replace('"tensors"', '"images"')
    (tmp_path / "r.toml").write_text(text)
    recipe = recipes.read_recipe(tmp_path / "r.toml")
    source = sources(recipe)[0]
    x, kept = source.batch([0, 3], gs.Draw([0, 1]))[0], source.kept
    assert source.shape == (2, 8, 8)
    for latent, row in zip(x, (kept[0], kept[3]), strict=True):
        file = sorted((tmp_path / "photos").rglob("*.png"))[row]
        picture = (
            torch.from_numpy(numpy.array(read_grey(file))).movedim(-1, 0)[None].float() / 127.5 - 1
        )
        with torch.no_grad():
            wanted = (vae.encode(picture).latent_dist.mean[0] - 0.1) * 0.7
        torch.testing.assert_close(latent, wanted, atol=2e-3, rtol=2e-3)  # kept in float16
    run.train(recipe, tmp_path / "out")
    model, folder = assemble(recipe, tmp_path / "out"), tmp_path / "out" / "it"
    again = same_samples(model, folder, ("cat", "dog"))
    samples = again.sample(["cat"], seeds=[0])
    with torch.no_grad():
        torch.testing.assert_close(
            samples.images, vae.decode(samples.x / 0.7 + 0.1).sample.clamp(-1, 1), atol=2e-2, rtol=0
        )  # written in float16
    assert samples.images.shape == (1, 3, 16, 16)
    with Image.open(tmp_path / "out" / "previews" / "model-000004.png") as preview:
        assert (
            preview.width < 300
        )  # pictures of 16 pixels, not drawings of latents, which are of 96
    # Pictures that change in place are encoded anew; others are not.
    assert len(list((tmp_path / ".latents").iterdir())) == 1
    sources(recipe)
    assert len(list((tmp_path / ".latents").iterdir())) == 1
    Image.effect_noise((16, 16), 5).save(tmp_path / "photos" / "cat" / "0.png")
    sources(recipe)
    assert len(list((tmp_path / ".latents").iterdir())) == 2


@pytest.mark.parametrize("tables", ["[conditions.pose]", "[conditions.label]\n[conditions.pose]"])
def test_previews_are_guided_whatever_the_conditions_are(tmp_path, tables, monkeypatch):
    asked = []
    sample = gs.Model.sample
    monkeypatch.setattr(
        gs.Model,
        "sample",
        lambda self, names, **more: (
            asked.append((names, more["guidance"], list(more["seeds"])))
            or sample(self, names, **more)
        ),
    )
    trained(
        tmp_path,
        tables=tables,
        more='[preview]\nevery = 4\nseeds = 2\nsteps = 2\nguidance = ["cfg(1)", "cfg(3)"]',
    )
    source = sources(recipes.read_recipe(tmp_path / "r.toml"))[0]
    known = source.batch([0, 1], gs.Draw([0, 1]))[1]
    poses = [",".join(f"{v:g}" for v in p) for p in known["pose"].tolist()]
    names = (
        poses
        if "label" not in tables
        else [f"label={k}; pose={p}" for k, p in zip(known["label"].tolist(), poses, strict=True)]
    )
    assert asked == [(names, "cfg(1)", [0, 1]), (names, "cfg(3)", [0, 1])]


def test_sequences_come_out_in_their_own_units(tmp_path):
    model, folder = trained(
        tmp_path,
        shape=(6, 2),
        data="standardise = true",
        tables=LABEL,
        network='network = "sequence"\nwidth = 16\nlayers = 1\nheads = 2',
        more=PARTS,
    )
    again = same_samples(model, folder)
    samples = again.sample(["a", "b"], seeds=[0, 1])
    kept = sources(recipes.read_recipe(tmp_path / "r.toml"))[0]
    scale = standardiser_of(kept)
    torch.testing.assert_close(samples.images, samples.x * scale.std + scale.mean)
    assert len(list(measure(again, ["cond"], seeds=range(6)))) == 2


def read_grey(file):
    from PIL import Image

    with Image.open(file) as picture:
        return picture.convert("RGB")


OWN = """
from torch import nn

class Own(nn.Module):
    condition_width = 6
    def __init__(self, width=4):
        super().__init__()
        self.into, self.told = nn.Conv2d(1, width, 3, padding=1), nn.Linear(6, width)
        self.out = nn.Conv2d(width, 1, 3, padding=1)
    def forward(self, x, t, class_labels):
        return self.out(self.into(x).tanh() * self.told(class_labels)[:, :, None, None])
"""


def test_a_network_of_ones_own_is_run_where_it_is_trusted(tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    model, folder = trained(
        tmp_path, tables=LABEL, network='network = "own_network:Own"\nconfig = { width = 5 }'
    )
    with pytest.raises(
        WeightsError,
        match=r"made by the code 'own_network:Own', which is only run where you trust it",
    ):
        gs.load(folder)
    again = same_samples(model, folder, trust=True)
    assert again.denoiser.net.into.out_channels == 5


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            {"network": 'network = "nowhere_at_all:Net"'},
            r"cannot import 'nowhere_at_all' of 'nowhere_at_all:Net'",
        ),
        ({"network": 'network = "torch.nn:Nothing"'}, r"the module 'torch.nn' has no 'Nothing'"),
        (
            {"network": 'network = "torch:zeros"\nconfig = { size = [1] }'},
            r"torch:zeros must return a torch.nn.Module, not Tensor",
        ),
        ({"network": 'network = "UNet3"'}, r"'UNet3' is not a network of Diffusers"),
        (
            {"network": 'network = "UNet2DModel"\nconfig = { widths = [3] }'},
            r"UNet2DModel has no setting 'widths'",
        ),
        (
            {"network": 'network = "UNet2DModel"\nconfig = { block_out_channels = [3] }'},
            r"UNet2DModel refuses these settings",
        ),
        (
            {"network": "widths = [8, 8, 8, 8, 8]\nhead = 8"},
            r"a unet of 5 widths halves square images 4 times, which samples of \[1, 8, 8\] do "
            r"not allow",
        ),
        ({"network": 'network = "sequence"'}, r"is for vectors and sequences"),
        (
            {"tables": "[conditions.lable]"},
            r"the recipe's condition 'lable' is not a column of the data, which are label, pose",
        ),
        (
            {
                "tables": LABEL,
                "more": '[judge]\ncolumn = "pose"\nwidths = [8]\ntrain = { steps = 1 }',
            },
            r"a judge predicts classes, and 'pose' is a vector",
        ),
        (
            {
                "tables": LABEL,
                "more": '[judge]\ncolumn = "colour"\nwidths = [8]\ntrain = { steps = 1 }',
            },
            r"no class or vector 'colour'; their columns are label \(class\), pose \(vector\)",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_training(tmp_path, how, message):
    with pytest.raises(ValueError, match=message) as caught:
        trained(tmp_path, **{"tables": LABEL, **how})
    assert "\n" not in str(caught.value) and not list((tmp_path / "out" / "parts").glob("*.pt"))


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            '[schedule]\nkind = "edm"\n[objective]\npredicts = "v"',
            "'edm' goes with schedule.kind 'edm'",
        ),
        ('[objective]\npredicts = "velocity"', "a velocity goes with schedule.kind 'flow'"),
        (
            "[schedule]\nzero_terminal_snr = true\n[levels]\nkind = "
            '"uniform"\n[objective]\npredicts = "eps"',
            "eps says nothing about data at pure noise",
        ),
    ],
)
def test_schedules_and_predictions_that_do_not_go_together_are_refused(tmp_path, tables, message):
    with pytest.raises(ValueError, match=message):
        trained(tmp_path, tables=f"{LABEL}\n{tables}")


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """The same commands run by one process and by two: a folder in which each has its own."""
    folder = tmp_path_factory.mktemp("one_and_two")
    generator = torch.Generator().manual_seed(0)
    content = {
        "x": torch.randn(30, 1, 8, 8, generator=generator).clamp(-1, 1),
        "label": torch.arange(30) % 3,
    }
    save_file(
        content, folder / "d.safetensors", {"classes": json.dumps({"label": ["a", "b", "c"]})}
    )
    text = HEAD.format(
        path=folder / "d.safetensors", data="", tables=LABEL, network=UNET, more=PARTS
    ).replace("holdout = 0.2", "holdout = 0.3")
    text = text.replace(
        "power = [0.1]", 'precision = "float64"'
    )  # Adam divides by gradients that may be rounding alone
    (folder / "r.toml").write_text(text)
    classes = [word for name in ("coat", "bag", "shirt") for word in ("--cond", name)]
    for name in ("one", "two"):
        own = folder / name
        train = ["train", folder / "r.toml", "--out", own]
        evaluate = ["evaluate", folder / "one" / "it", "--guidance", "cfg(2)", "--seeds", "0-6"]
        evaluate += ["--out", folder / f"{name}.json"]
        sample = ["sample", "fashion-mnist", *classes, "--steps", 2, "--grid"]
        sample += ["--out", folder / f"pictures-{name}"]
        every = json.dumps([[str(word) for word in line] for line in (train, evaluate, sample)])
        if name == "one":
            subprocess.run(
                [sys.executable, commands.__file__, every], check=True, capture_output=True
            )
        else:
            launch(commands.__file__, every)
    return folder


@pytest.mark.slow
def test_two_processes_sample_the_same_images_as_one(one_and_two):
    from PIL import Image, ImageChops

    folders = [one_and_two / f"pictures-{name}" for name in ("one", "two")]
    one, two = (sorted(p.name for p in folder.iterdir()) for folder in folders)
    assert one == two and len(one) == 4
    for name in one:
        difference = ImageChops.difference(
            *(Image.open(folder / name).convert("L") for folder in folders)
        )
        assert difference.getextrema()[1] <= 1  # other batches, other last bits


def test_a_classifier_is_calibrated_on_other_samples_than_it_is_reported_on(tmp_path, monkeypatch):
    from guidestar.evaluate import calibration

    looked = {"fit_temperatures": [], "by_level": []}

    def watched(name, function):
        return lambda classifier, data, *more, **others: (
            looked[name].append(data[0].flatten(1)) or function(classifier, data, *more, **others)
        )

    for name in looked:
        monkeypatch.setattr(calibration, name, watched(name, getattr(calibration, name)))
    trained(tmp_path, tables=LABEL, more=PARTS)
    (fitted,), (before, after) = looked["fit_temperatures"], looked["by_level"]
    assert torch.equal(before, after) and len(fitted) == len(before) == 2  # of four held out
    assert (torch.cdist(fitted, before) > 0).all()


@pytest.mark.slow
def test_two_processes_train_and_evaluate_on_the_command_line_as_one(one_and_two):
    rows = {
        name: [
            {k: v for k, v in row.items() if k != "seconds"}
            for row in json.loads((one_and_two / f"{name}.json").read_text())
        ]
        for name in ("one", "two")
    }
    states = [
        torch.load(one_and_two / n / "parts" / "model.pt", weights_only=True)
        for n in ("one", "two")
    ]
    assert states[1]["where"]["processes"] == 2
    for key, tensor in states[0]["module"].items():
        torch.testing.assert_close(states[1]["module"][key], tensor, atol=1e-7, rtol=1e-6)
    for one, two in zip(rows["one"], rows["two"], strict=True):
        assert one.pop("shares") == pytest.approx(two.pop("shares")) and one.pop(
            "guidance"
        ) == two.pop("guidance")
        assert one == pytest.approx(two, rel=1e-3, abs=1e-3)
