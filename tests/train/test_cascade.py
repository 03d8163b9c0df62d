"""Cascades: the condition of a smaller picture, its noise, stage by stage; bad input."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from PIL import Image

import guidestar as gs
from guidestar.cli import main
from guidestar.core.denoiser import Condition
from guidestar.io.images import read_settings
from guidestar.model.cascade_stages import stage_seed
from guidestar.model.upscaling import Pictured, with_pictures
from guidestar.networks.condition_encoders import ClassEncoder
from guidestar.networks.conditions import Conditions
from guidestar.networks.low_resolution import LowResolution, augmented, reduced
from guidestar.sampling import noise
from guidestar.train.cascade import train_cascade
from guidestar.train.objectives.denoising import Conditional, Denoising
from guidestar.train.objectives.level_distributions import LogitNormal
from guidestar.train.objectives.super_resolution import SuperResolution
from guidestar.train.recipe.cascade import read_cascade
from helpers.recipes import write_photos

RECIPE = """
name = "tiny"
[data]
path = "{data}"
size = 16
channels = 1
holdout = 0.25
[stages.base]
size = 4
model = {{ widths = [8, 8], groups = 4, head = 8, train = {{ steps = 2, batch = 4 }} }}
[stages.large]
size = 16
augmentation = 0.4
model = {{ widths = [8, 8], groups = 4, head = 8, train = {{ steps = 2, batch = 4 }} }}
[preview]
every = 2
seeds = 2
steps = 2
guidance = ["cfg(2)"]
[judge]
widths = [8]
train = {{ steps = 2, batch = 4 }}
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve grey pictures in two classes."""
    return write_photos(
        tmp_path_factory.mktemp("photos"), lambda: (torch.rand(16, 16) * 255).byte().numpy()
    )


@pytest.fixture(scope="module")
def trained(photos, tmp_path_factory):
    """A cascade of two stages, trained for a moment; its folder of work, and its folder."""
    out = tmp_path_factory.mktemp("cascade")
    (out / "r.toml").write_text(RECIPE.format(data=photos))
    assert train_cascade(read_cascade(out / "r.toml"), out) is not None
    return out, out / "tiny"


def test_pictures_are_reduced_by_means_over_squares():
    x = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(reduced(x, 2), x.view(2, 3, 2, 4, 2, 4).mean((3, 5)))
    with pytest.raises(ValueError, match="8 x 8 pixels cannot be reduced to 3"):
        reduced(x, 3)


def test_noise_is_added_variance_preserving_and_its_level_beside():
    x, draw = torch.rand(2, 1, 3, 3), gs.Draw([4, 5])
    rows = augmented(x, torch.tensor([0.6, 0.0]), draw)
    noise = draw.normal("augmentation", (1, 3, 3))
    torch.testing.assert_close(rows[0, :1], 0.8 * x[0] + 0.6 * noise[0])
    assert torch.equal(rows[1, :1], x[1])
    assert (rows[0, 1] == 0.6).all() and (rows[1, 1] == 0).all()


def test_the_condition_is_the_enlarged_picture_and_an_embedding_of_the_level():
    torch.manual_seed(0)
    low = LowResolution(channels=1, size=2, to=4, width=5)
    row = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]], [[0.3, 0.3], [0.3, 0.3]]]])
    found = low(torch.cat([row, low.null_row()[None]]))
    # Bilinear with half-pixel centres: weights 1, 3/4, 1/4, 0 along each side.
    w = torch.tensor([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]])
    torch.testing.assert_close(found["low_resolution"][0, 0], w @ row[0, 0] @ w.T)
    f = torch.tensor([0.3 * math.pi * 2**k for k in range(8)])
    features = torch.cat([torch.tensor([0.3]), f.sin(), f.cos()])
    torch.testing.assert_close(
        found["class_labels"][0], low.second(torch.nn.functional.silu(low.first(features)))
    )
    assert (found["low_resolution"][1] == 0).all()
    assert torch.equal(found["class_labels"][1], low.unknown)


class Sees:
    """A network of a training: keeps what it gets, and answers 0."""

    def __init__(self, encoder):
        self.encoder, self.denoiser = encoder, self

    def __call__(self, x_t, level, cond):
        self.x_t, self.level, self.cond = x_t, level, cond
        return torch.zeros_like(x_t)


def objective(size=2, largest=0.5, dropout=0.0):
    plain = Denoising(schedule=gs.VP.linear(), levels=LogitNormal(mean=0.0, std=1.0))
    dropped = {"low_resolution": dropout}
    return SuperResolution(
        conditional=Conditional(denoising=plain, dropout=dropped), size=size, largest=largest
    )


def test_training_draws_a_level_for_each_sample_and_gives_it_to_the_network():
    x0, draw = torch.rand(4, 1, 4, 4), gs.Draw([1, 2, 3, 4], 7)
    seen = []

    class Encoder:
        null_rows = staticmethod(lambda name: torch.full((2, 2, 2), math.nan))

        def __call__(self, rows):
            seen.append(rows["low_resolution"])
            return Condition()

    objective(largest=0.5)(Sees(Encoder()), x0, {}, draw)
    s = (0.5 * draw.uniform("augmentation level")).float().view(-1, 1, 1, 1)
    assert len(set(s.flatten().tolist())) == 4 and s.max() < 0.5
    low = x0.view(4, 1, 2, 2, 2, 2).mean((3, 5))
    noise = draw.normal("augmentation", (1, 2, 2))
    torch.testing.assert_close(seen[0][:, :1], (1 - s**2).sqrt() * low + s * noise)
    torch.testing.assert_close(seen[0][:, 1:], s.expand(4, 1, 2, 2))


def test_a_picture_is_left_out_at_its_own_rate():
    draw = gs.Draw(list(range(200)), 3)
    low = LowResolution(channels=1, size=2, to=4, width=5, droppable=True)
    net = Sees(Conditions({"low_resolution": low}))
    with torch.no_grad():
        objective(dropout=0.3)(net, torch.rand(200, 1, 4, 4), {}, draw)
    gone = draw.uniform("drop low_resolution") < 0.3
    assert 30 < gone.sum() < 90
    assert torch.equal((net.cond["low_resolution"] == 0).flatten(1).all(1), gone)


# A Gaussian of two pixels, each pair (a, b) correlated; the smaller picture is their mean over
# 2 × 2 squares. Everything below is in closed form.
COVARIANCE = 0.5 * torch.eye(4, dtype=torch.float64) + 0.3
MEAN = torch.tensor([0.2, -0.1, 0.4, 0.0], dtype=torch.float64)
POOL = torch.full((1, 4), 0.25, dtype=torch.float64)


def posterior(low, level):
    """Mean and covariance of x0 given z = √(1 − s²) P x0 + s ε."""
    a = math.sqrt(1 - level**2) * POOL
    seen = a @ COVARIANCE @ a.T + level**2 * torch.eye(1, dtype=torch.float64)
    gain = COVARIANCE @ a.T @ torch.linalg.inv(seen)
    return MEAN + (low - MEAN @ a.T) @ gain.T, COVARIANCE - gain @ a @ COVARIANCE


def exact(x_t, level, cond):
    """The minimiser of the objective: E[x0 | x_t, z, s], from the network's own inputs."""
    x, count, eye = x_t.double().flatten(1), len(x_t), torch.eye(4, dtype=torch.float64)
    alpha = torch.as_tensor(level.alpha).double().expand(count).view(-1, 1, 1)
    sigma = torch.as_tensor(level.sigma).double().expand(count).view(-1, 1, 1)
    z, s = cond["low_resolution"][:, :, 0, 0].double(), cond["class_labels"].double()[:, :, None]
    a = (1 - s**2).sqrt() * POOL
    seen = a @ COVARIANCE @ a.mT + s**2
    gain = COVARIANCE @ a.mT / seen
    mean = MEAN + (gain * (z[:, :, None] - a @ MEAN[:, None]))[:, :, 0]
    cov = COVARIANCE - gain @ a @ COVARIANCE
    step = alpha * cov @ torch.linalg.inv(alpha**2 * cov + sigma**2 * eye)
    x0 = mean + (step @ (x - alpha[:, :, 0] * mean)[:, :, None])[:, :, 0]
    return x0.view_as(x_t).to(x_t.dtype)


class Level(LowResolution):
    """Gives the network the level itself, in the place of its embedding."""

    def forward(self, rows):
        made = super().forward(rows)
        return Condition({**made, "class_labels": rows[:, -1, :1, 0].expand(-1, 1)})


def stage(largest=1.0, droppable=False):
    low = Level(channels=1, size=1, to=2, width=1, largest=largest, droppable=droppable)
    return gs.Model(
        name="stage",
        denoiser=exact,
        schedule=gs.VP.linear(),
        shape=(1, 2, 2),
        encoder=low,
        decode=lambda x: x,
    )


@pytest.mark.parametrize("level", [0.05, 0.3, 0.8])
def test_the_sampler_reaches_the_exact_posterior_at_every_augmentation(level):
    """Where data are Gaussian, the flow from noise to the posterior of z is known in closed form.

    In an eigenvector of the posterior's covariance, of eigenvalue c, it is
    ``x0 = m + √(c/(α²c + σ²)) (x_T − α m)``.
    """
    seeds, model = range(6), stage()
    pictures = torch.linspace(-0.5, 0.9, 6).view(6, 1, 1, 1)
    found = gs.upscale(
        model, pictures, augmentation=level, guidance="uncond", seeds=seeds, steps=200
    ).x.double()
    draw, first = gs.Draw(seeds), model.grid(200)[0]
    z = math.sqrt(1 - level**2) * pictures + level * draw.normal("augmentation", (1, 1, 1))
    start = noise((1, 2, 2), first, draw).double().flatten(1)
    for k in range(6):
        mean, cov = posterior(z[k].double().flatten(), level)
        c, axes = torch.linalg.eigh(cov)
        c = c.clamp_min(0)
        factor = (c / (first.alpha**2 * c + first.sigma**2)).sqrt()
        wanted = mean + (axes * factor) @ axes.T @ (start[k] - first.alpha * mean)
        torch.testing.assert_close(found[k].flatten(), wanted, atol=0.01, rtol=0)


@pytest.mark.parametrize("told", [-0.25, 0.25])
def test_the_objective_is_least_where_the_right_level_is_used(told):
    """A network that takes the noise in the picture for more or less than it is, does worse."""
    torch.manual_seed(0)
    root = torch.linalg.cholesky(COVARIANCE)
    x0 = (MEAN + torch.randn(1500, 4, dtype=torch.float64) @ root.T).view(-1, 1, 2, 2)
    low = Level(channels=1, size=1, to=2, width=1)
    losses = []
    for by in (0.0, told):

        class Net(Sees):
            def __call__(self, x_t, level, cond, by=by):
                wrong = (cond["class_labels"] + by).clamp(0.01, 0.99)
                return exact(x_t, level, Condition({**cond, "class_labels": wrong}))

        net = Net(Conditions({"low_resolution": low}))
        draw = gs.Draw(range(1500))
        losses.append(objective(size=1, largest=0.75)(net, x0, {}, draw).mean())
    assert losses[0] < losses[1]


def test_a_sample_depends_on_its_seed_alone():
    x = torch.rand(3, 1, 1, 1)
    every = gs.upscale(stage(), x, augmentation=0.3, seeds=[5, 6, 7], steps=3, solver="ddpm").x
    alone = gs.upscale(stage(), x[1:2], augmentation=0.3, seeds=[6], steps=3, solver="ddpm").x
    assert torch.equal(every[1:2], alone)


def bound(droppable=True):
    low = LowResolution(channels=1, size=1, to=2, width=3, droppable=droppable)
    low.unknown.data += 1
    both = Conditions({"label": ClassEncoder(("cat", "dog"), 3), "low_resolution": low})
    rows = augmented(torch.tensor([0.2, 0.9]).view(2, 1, 1, 1), torch.zeros(2), gs.Draw([0, 1]))
    return Pictured(both, rows), both, rows


def test_names_keep_the_picture_and_parts_address_it():
    encoder, both, rows = bound()
    null, table = both.parts["low_resolution"].null_row()[None], torch.tensor([1, 1])
    same = lambda a, b: all(torch.equal(a[k], b[k]) for k in b)
    with torch.no_grad():
        assert same(encoder.encode(["dog"]), both({"label": table, "low_resolution": rows}))
        picture = both({"label": table + 1, "low_resolution": rows})
        assert same(encoder.encode([encoder.only("dog", "low_resolution")]), picture)
        label = both({"label": table, "low_resolution": null.expand(2, -1, -1, -1)})
        assert same(encoder.encode([encoder.only("dog", "label")]), label)
        nothing = both({"label": table + 1, "low_resolution": null.expand(2, -1, -1, -1)})
        assert same(encoder.null(1), nothing)
    assert encoder.classes == ("cat", "dog")


def test_the_null_keeps_a_picture_that_was_never_left_out():
    encoder, both, rows = bound(droppable=False)
    with torch.no_grad():
        found = encoder.null(1)
        wanted = both({"label": torch.tensor([2, 2]), "low_resolution": rows})
    assert all(torch.equal(found[k], wanted[k]) for k in wanted)
    with pytest.raises(ValueError, match="never learned without its smaller picture"):
        encoder.only("dog", "low_resolution")


def test_pix2pix_addresses_the_picture(trained):
    model = gs.load(trained[1] / "large")
    with pytest.raises(ValueError, match="train it with dropout > 0"):
        gs.upscale(
            model,
            torch.zeros(1, 1, 4, 4),
            "cat",
            guidance="pix2pix(1, text=3, keep='low_resolution')",
        )
    # With a picture that may be left out, the push is the formula's.
    low = model.encoder.parts["low_resolution"]
    low.droppable = True
    x_t, step = torch.randn(1, 1, 16, 16), model.grid(4).step(1)
    one = with_pictures(model, torch.rand(1, 1, 4, 4), seeds=[0])
    text = "pix2pix(1.5, text=3, keep='low_resolution')"
    found = one.guided(text, cond=["cat"])(x_t, step).prediction.x0
    ask = lambda cond: model.denoiser(x_t, step.t, cond)
    with torch.no_grad():
        u, i, both = (
            ask(c)
            for c in (
                one.encoder.null(1),
                one.encoder.encode(["label="]),
                one.encoder.encode(["cat"]),
            )
        )
    torch.testing.assert_close(found, u + 1.5 * (i - u) + 3 * (both - i), atol=1e-4, rtol=1e-4)


def test_a_cascade_is_its_stages_one_after_the_other(trained):
    cascade = gs.load(trained[1])
    assert isinstance(cascade, gs.Cascade) and list(cascade.stages) == ["base", "large"]
    wanted = {"large": gs.StageSettings(steps=3, guidance="cfg(1.5)", augmentation=0.2)}
    made = cascade.sample(["cat", "dog"], seeds=[3, 4], stages=wanted, steps=2)
    base, large = cascade.stages.values()
    small = base.sample(["cat", "dog"], seeds=[stage_seed(s, "base") for s in (3, 4)], steps=2)
    same = gs.upscale(
        large,
        small.images,
        ["cat", "dog"],
        seeds=[stage_seed(s, "large") for s in (3, 4)],
        steps=3,
        guidance="cfg(1.5)",
        augmentation=0.2,
    )
    assert torch.equal(made.images, same.images) and made.nfe == small.nfe + same.nfe
    alone = cascade.sample(["dog"], seeds=[4], stages=wanted, steps=2)
    torch.testing.assert_close(alone.images, made.images[1:], atol=1e-5, rtol=0)
    plans = cascade.plan(stages=wanted, steps=2)
    assert [p.nfe for p in plans.values()] == [4, 6]


def test_a_picture_of_a_cascade_repeats_its_run(trained, tmp_path):
    cascade = gs.load(trained[1])
    wanted = {"large": gs.StageSettings(augmentation=0.3)}
    made = cascade.sample("cat", seeds=[9], steps=2, stages=wanted)
    settings = read_settings(made.save(tmp_path)[0])
    assert settings["stages"]["large"]["augmentation"] == 0.3
    assert torch.equal(cascade.again(settings).images, made.images)


def test_pixel_stages_are_thresholded_by_default(trained):
    assert gs.load(trained[1] / "large").defaults["guidance"] == "cfg(2) | threshold(0.995)"
    assert gs.load(trained[1] / "base").defaults["guidance"] == "cfg(2) | threshold(0.995)"


def test_stages_have_previews_cards_and_go_on_to_the_bit(trained, photos):
    out, folder = trained
    for name in ("base", "large"):
        assert (out / "stages" / name / "previews" / "model-000002.png").is_file()
        assert (folder / name / "README.md").is_file()
    assert "augment" not in (folder / "README.md").read_text() and (folder / "README.md").is_file()
    before = (folder / "large" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert train_cascade(read_cascade(out / "r.toml"), out, only=["large"]) is not None
    after = (folder / "large" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert before == after


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    return stopped.value.code, "".join(capsys.readouterr())


def test_the_command_line_serves_cascades(trained, tmp_path, capsys):
    folder = trained[1]
    code, text = run(
        capsys,
        "sample",
        folder,
        "--cond",
        "all",
        "--steps",
        2,
        "--stage",
        "large:augmentation=0.2",
        "--out",
        tmp_path / "a",
    )
    assert code == 0 and "2 images" in text
    code, text = run(capsys, "plan", folder, "--steps", 2)
    assert code == 0 and "all stages: NFE 8 a sample" in text
    Image.new("L", (4, 4), 90).save(tmp_path / "p.png")
    code, text = run(
        capsys,
        "upscale",
        folder / "large",
        tmp_path / "p.png",
        "--cond",
        "cat",
        "--steps",
        2,
        "--out",
        tmp_path / "b",
    )
    assert code == 0 and "1 images" in text
    with Image.open(next((tmp_path / "b").glob("*.png"))) as picture:
        assert picture.size == (16, 16)


def test_a_cascade_is_measured_by_the_judge_of_its_last_stage(trained, tmp_path, capsys):
    code, text = run(
        capsys,
        "evaluate",
        trained[1],
        "--guidance",
        "cfg(1)",
        "--seeds",
        "0-3",
        "--steps",
        2,
        "--stage",
        "large:augmentation=0.2",
        "--out",
        tmp_path / "rows.json",
    )
    assert code == 0, text
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [r["guidance"] for r in rows] == ["real", "cfg(1)"] and rows[1]["nfe"] == 4


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("sample", "F", "--stage", "large:augmentation=0.6"), "from 0 to 0.4, the largest"),
        (("sample", "F", "--stage", "huge:steps=2"), "no stage 'huge'"),
        (("sample", "F", "--stage", "base:augmentation=0.1"), "the base 'base' enlarges nothing"),
        (("sample", "F", "--stage", "large"), "should be NAME:KEY=VALUE"),
        (("upscale", "F", "P"), "is a cascade"),
        (("upscale", "F/base", "P"), "enlarges no pictures"),
        (("upscale", "F/large", "P"), "has 5 x 4 pixels, and this model enlarges 4 x 4"),
        (("upscale", "F/large", "P", "--augmentation", "nan"), "5 x 4"),
    ],
)
def test_bad_input_is_one_line(trained, tmp_path, capsys, more, message):
    Image.new("L", (5, 4)).save(tmp_path / "p.png")
    names = {"P": str(tmp_path / "p.png")}
    words = [names.get(w, w.replace("F", str(trained[1]), 1) if w[0] == "F" else w) for w in more]
    code, text = run(capsys, *words, "--steps", 2, "--out", tmp_path / "out")
    assert code == 2 and message in text and len(text.strip().splitlines()) == 1, text


@pytest.mark.parametrize("level", ["nan", "0.41", "-0.1"])
def test_an_augmentation_outside_of_what_was_trained_is_one_line(trained, tmp_path, capsys, level):
    Image.new("L", (4, 4)).save(tmp_path / "p.png")
    words = ("upscale", trained[1] / "large", tmp_path / "p.png", f"--augmentation={level}")
    code, text = run(capsys, *words, "--steps", 2, "--out", tmp_path / "out")
    assert code == 2 and len(text.strip().splitlines()) == 1, text
    assert "the augmentation must be from 0 to 0.4, the largest that" in text
    assert not list(tmp_path.glob("out/*.png"))


def test_a_folder_of_stages_that_do_not_fit_is_one_line(trained, tmp_path, capsys):
    folder = shutil.copytree(trained[1], tmp_path / "mixed")
    shutil.rmtree(folder / "base")
    shutil.copytree(folder / "large", folder / "base")
    words = ("sample", folder, "--cond", "cat", "--steps", 2, "--out", tmp_path / "out")
    code, text = run(capsys, *words)
    assert code == 1 and len(text.strip().splitlines()) == 1, text
    assert "'large' enlarges pictures of [1, 4, 4], but 'base' before it makes [1, 16, 16]" in text
    shutil.rmtree(folder / "large")
    code, text = run(capsys, *words)
    assert code == 1 and len(text.strip().splitlines()) == 1, text
    assert "large" in text


def test_stages_that_do_not_fit_are_refused(trained):
    cascade = gs.load(trained[1])
    base, large = cascade.stages.values()
    with pytest.raises(ValueError, match=r"'top' enlarges pictures of .1, 4, 4., but 'large'"):
        gs.Cascade(name="c", stages={"base": base, "large": large, "top": large})
    with pytest.raises(ValueError, match="enlarges no pictures"):
        gs.Cascade(name="c", stages={"base": base, "again": base})


class Doubled:
    """A decoder of latents, whose pictures have twice their sides."""

    vae = None

    def __call__(self, x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    differentiably = encode = __call__


@pytest.mark.parametrize(("side", "fits"), [(1, False), (2, True)])
def test_the_pictures_of_a_base_of_latents_must_fit_not_its_latents(trained, side, fits):
    large = gs.load(trained[1]).stages["large"]  # enlarges 4 x 4
    base = gs.Model(
        name="b",
        denoiser=exact,
        schedule=gs.VP.linear(),
        shape=(1, side, side),
        decode=Doubled(),
    )
    if fits:
        gs.Cascade(name="c", stages={"base": base, "large": large})
        return
    with pytest.raises(ValueError, match=r"of .1, 4, 4., but 'base' before it makes .1, 2, 2."):
        gs.Cascade(name="c", stages={"base": base, "large": large})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("size = 4", "size = 5"), "stages.large.size must be a multiple"),
        (("size = 4\n", "size = 4\naugmentation = 0.1\n"), "the first stage enlarges nothing"),
        (("channels = 1", 'channels = 1\nvae = "x"'), "learn pixels"),
        (("size = 16\nchannels", "size = 32\nchannels"), "last stage makes pictures of 16"),
        (("augmentation = 0.4", "augmentation = 1.5"), "augmentation"),
        (("augmentation = 0.4", "augmentations = 0.4"), "did you mean 'augmentation'"),
    ],
)
def test_recipes_that_cannot_be_are_refused(tmp_path, photos, change, message):
    (tmp_path / "r.toml").write_text(RECIPE.format(data=photos).replace(*change, 1))
    with pytest.raises(ValueError, match=message):
        read_cascade(tmp_path / "r.toml")
