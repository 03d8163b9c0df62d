"""What is shown before a training and kept at its end: lines, cards and digests, of small parts."""

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from guidestar.data.source import Column, InMemory, Subset
from guidestar.networks.from_config import unet
from guidestar.train import dry_run, examine, export, run
from guidestar.train.build import data, limits, networks
from guidestar.train.build.captions import captions, captions_of, text_column
from guidestar.train.loop import origins
from guidestar.train.loop.sharded import _like
from guidestar.train.objectives.objective import Built, Objective
from guidestar.train.recipe.schema import checked

X = torch.arange(12.0).reshape(4, 3)
SOURCE = InMemory(
    x=X,
    targets={
        "label": torch.tensor([1, 0, 1, 0]),
        "text": ["a cat", ("the dog there", "a dog"), "a cat", "owl"],
    },
    columns={
        "label": Column(kind="class", classes=("p", "q")),
        "text": Column(kind="text"),
        "v": Column(kind="vector", width=2),
    },
)


class Stream(InMemory):
    size = None


STREAM = Stream(x=X, targets=SOURCE.targets, columns={})


def recipe(**more):
    model = {"widths": [32], "train": {"steps": 12, "batch": 3, "accumulate": 2}}
    return checked({"name": "r", "data": {"path": "here"}, "model": model, **more}, "r")


class Loss(Objective):
    def __call__(self, net, x0, target, draw):
        return net(x0).square().mean(1)


def parts(monkeypatch, source, aside=None):
    module = nn.Linear(3, 2)
    built = Built(module=module, objective=Loss(), prepare=lambda targets: None)
    monkeypatch.setattr(dry_run, "sources", lambda *given: (source, aside))
    monkeypatch.setattr(dry_run, "build_part", lambda *given: built)
    monkeypatch.setattr(dry_run, "foresee", lambda recipe, built, source: None)
    return built


def test_a_dry_run_says_what_there_is(monkeypatch):
    parts(monkeypatch, SOURCE, Subset(source=SOURCE, kept=(1, 2)))
    lines, first = dry_run.dry_run(recipe())
    assert torch.equal(first, X[:3])
    assert lines == [
        "data: 4 samples of [3], 2 held out; columns: label (class, 2 classes), text (text), "
        "v (vector); the first batch has mean 4 and standard deviation 2.58",
        # 3 · 2 weights and 2 more, 12 steps of 3 over 4 samples
        "model: 8 parameters; 12 steps of 3, 9.0 passes over the data; about 0 MB of memory in "
        "one process",
    ]


def test_a_dry_run_of_a_stream(monkeypatch):
    parts(monkeypatch, STREAM)
    lines, first = dry_run.dry_run(recipe())
    assert len(first) == 3 and lines[0].startswith("data: a stream of [3]; columns: none; the ")
    assert lines[1].startswith("model: 8 parameters; 12 steps of 3; about 0 MB")


def test_memory_of_a_step_is_that_of_its_largest_part(monkeypatch):
    """Weights seven-fold, and half a batch of layers' outputs (rounded up)."""
    built = parts(monkeypatch, SOURCE)
    monkeypatch.setattr(dry_run, "training_memory", lambda *given: {"a": 100.0, "b": 20.0})
    monkeypatch.setattr(dry_run, "activations", lambda *given: 1000.0)
    line = dry_run._line(recipe(), "model", built, SOURCE)
    assert line.endswith("; about 2,120 MB of memory in one process")


def test_captions_of_the_data():
    assert text_column(SOURCE) == "text"
    with pytest.raises(ValueError, match=r"the data's columns are none; add a column"):
        text_column(STREAM)
    odd = InMemory(x=X, targets={}, columns={"v": Column(kind="vector", width=2)})
    with pytest.raises(ValueError, match=r"the data's columns are v \(vector\); add a column"):
        text_column(odd)
    assert captions_of(SOURCE, [1, 3]) == ["the dog there", "owl"]
    assert captions_of(SOURCE, [1, 3], shortest=True) == ["a dog", "owl"]
    nested = Subset(source=Subset(source=SOURCE, kept=(3, 1, 0)), kept=(1, 2))
    assert captions_of(nested, [0, 1]) == ["the dog there", "a cat"]
    assert sorted(captions(SOURCE)) == ["a cat", "a dog", "owl", "the dog there"]
    assert captions(SOURCE, 1) == ["a cat"]
    streamed = Stream(x=X, targets=SOURCE.targets, columns=SOURCE.columns)
    assert len(captions(streamed, 4)) == 3  # one draw alone


def about(monkeypatch, trained, source, aside=None, **more):
    monkeypatch.setattr(export, "read_checkpoint", lambda path: {"seconds": 7.6, "loss": 0.1234567})
    monkeypatch.setattr(export, "machine", lambda: "m")
    monkeypatch.setattr(export, "identify", lambda source: "i")
    monkeypatch.setattr(export, "examine_parts", lambda *given: {"examined": given[1:]})
    return export._about(recipe(**more), Path("out"), trained, source, aside, "run me")


def test_the_card_of_a_training(monkeypatch):
    model = nn.Linear(3, 2)
    found = about(monkeypatch, {"model": model}, SOURCE, "aside")
    assert {k: v for k, v in found.items() if k not in ("recipe", "scheduler")} == {
        "summary": "samples of [3], conditional on label, text, v, v-prediction (vp)",
        "licence": "unknown",
        "data": "here (images, 4 training samples)",
        "data_identity": "i",
        "shape": [3],
        "averages": ["ema-0.999"],
        "command": "run me",
        "machine": "m",
        "parameters": {"model": 8},
        "seconds": {"model": 8},
        "loss": {"model": 0.12346},
        "examined": ({"model": model}, SOURCE, "aside"),
    }
    assert found["recipe"]["model"]["widths"] == [32]
    assert found["scheduler"]["_class_name"] == "DDPMScheduler"
    told = {"summary": "mine", "licence": "MIT", "data": {"path": "here", "about": "ours"}}
    found = about(monkeypatch, {"model": model}, STREAM, **told)
    assert (found["summary"], found["licence"], found["data"]) == ("mine", "MIT", "ours")
    found = about(monkeypatch, {"model": model}, STREAM)
    assert found["data"] == "here (images, a stream)"
    assert found["summary"] == "samples of [3], unconditional, v-prediction (vp)"
    found = about(monkeypatch, {"model": model}, SOURCE, conditions={"label": {}})
    assert found["summary"] == "samples of [3], conditional on label, v-prediction (vp)"


def test_the_card_names_what_can_be_measured_by(monkeypatch):
    clip = {"model": nn.Linear(3, 2), "measuring_clip": nn.Linear(1, 1)}
    assert about(monkeypatch, clip, SOURCE)["captions"] == ["a cat", "a dog", "owl"]
    assert "captions" not in about(monkeypatch, {"model": clip["model"]}, SOURCE)
    assert "captions" not in about(monkeypatch, clip, STREAM)  # which has no end


class Tower(nn.Module):
    tokenizer = "t"

    def __init__(self, frozen=False):
        super().__init__()
        self.text = nn.Linear(2, 2).requires_grad_(not frozen)


@pytest.fixture
def plain(monkeypatch):
    monkeypatch.setattr(origins, "CLIP", Tower)
    monkeypatch.setattr(origins, "ConditionalModel", SimpleNamespace)
    monkeypatch.setattr(origins, "TextEncoder", Tower)
    monkeypatch.setattr(origins, "of_tokenizer", lambda tokenizer: f"digest of {tokenizer}")
    monkeypatch.setattr(origins, "of_tensors", lambda tensors: f"digest of {sorted(tensors)}")
    monkeypatch.setattr(origins, "of_files", lambda folder: f"digest of {folder}")


def test_what_a_training_reads_from_elsewhere_is_named(plain):
    clip = {"clip": {"train": {"steps": 1}}}
    assert origins.read_origins(recipe(**clip), "clip", Tower()) == {
        "clip (its tokenizer)": "digest of t"
    }
    model = SimpleNamespace(
        encoder=SimpleNamespace(parts={"a": Tower(True), "b": Tower(), "c": nn.Linear(1, 1)})
    )
    assert origins.read_origins(recipe(), "model", model) == {
        "conditions.a.encoder (its tokenizer)": "digest of t",
        "conditions.a.encoder (its text encoder)": "digest of ['bias', 'weight']",
        "conditions.b.encoder (its tokenizer)": "digest of t",
    }
    classifier = {"classifier": {"widths": [8], "train": {"steps": 1}}}
    assert origins.read_origins(recipe(**classifier), "classifier", nn.Linear(1, 1)) == {}
    latent = {"data": {"path": "here", "vae": "there"}, **classifier}
    assert origins.read_origins(recipe(**latent), "classifier", nn.Linear(1, 1), Path("there")) == {
        "data.vae (its files)": "digest of there"
    }


def test_what_is_not_spread_over_processes_is_taken_as_it_is():
    parameter = torch.zeros(2, 3)
    for values in (3.0, None, torch.ones(()), torch.ones(2, 3), torch.ones(3)):
        assert _like(values, parameter) is values


@pytest.mark.parametrize("widths", [(8, 16), (8, 8, 16), (16,)])
def test_attention_is_at_the_lowest_resolution_alone(widths):
    given = {"size": 8, "channels": 2, "widths": widths, "layers": 1, "groups": 4, "head": 8}
    plain = unet(**given)
    more = len(widths) - 1
    config = plain.config
    assert tuple(config.down_block_types) == ("DownBlock2D",) * more + ("AttnDownBlock2D",)
    assert tuple(config.up_block_types) == ("AttnUpBlock2D",) + ("UpBlock2D",) * more
    assert (config.in_channels, config.out_channels, config.sample_size) == (2, 2, 8)
    assert (config.layers_per_block, config.norm_num_groups) == (1, 4)
    assert (config.attention_head_dim, config.class_embed_type) == (8, "identity")
    assert tuple(config.block_out_channels) == widths
    assert unet(**given, embedded=False).config.class_embed_type is None
    text = unet(**given, text_width=6).config
    assert tuple(text.down_block_types) == ("DownBlock2D",) * more + ("CrossAttnDownBlock2D",)
    assert tuple(text.up_block_types) == ("CrossAttnUpBlock2D",) + ("UpBlock2D",) * more
    assert (text.attention_head_dim, text.cross_attention_dim) == (2, 6)  # heads, of 8 channels
    assert unet(**{**given, "head": 32}, text_width=6).config.attention_head_dim == 1


@pytest.mark.parametrize("agreed", [False, True])
@pytest.mark.parametrize("main", [False, True])
def test_parts_are_trained_one_after_the_other(monkeypatch, tmp_path, agreed, main):
    """Until all processes agree to stop, reported by the main one."""
    shown, asked, closed = [], [], []

    def train_part(*given, **more):
        asked.append((given[1:], more))
        try:
            yield "one"
            yield "two"
        finally:
            closed.append(given[1])

    monkeypatch.setattr(run, "train_part", train_part)
    monkeypatch.setattr(run, "sources", lambda *given: (SOURCE, None))
    monkeypatch.setattr(run, "build_part", lambda *given: "built")
    monkeypatch.setattr(run, "foresee", lambda recipe, built, source: shown.append(built))
    accelerator = SimpleNamespace(
        is_main_process=main, main_process_first=nullcontext, wait_for_everyone=lambda: None
    )
    stop = SimpleNamespace(agreed=agreed)
    found = run._train(
        recipe(weak={"widths": [32], "train": {"steps": 7}}),
        ["model", "weak"],
        tmp_path,
        accelerator,
        report=lambda *given: shown.append(given),
        stop=stop,
        say=None,
        accept_data=True,
    )
    assert found is not agreed and closed == (["model"] if agreed else ["model", "weak"])
    more = {"aside": None, "stop": stop, "accelerator": accelerator, "accept_data": True}
    assert asked == [((part, tmp_path, SOURCE), more) for part in closed]
    steps = {"model": 12, "weak": 7}
    reports = [(part, word, steps[part]) for part in closed for word in ("one", "two")]
    assert shown == [{"model": "built", "weak": "built"}, *(reports if main else [])]


def test_nothing_is_held_out_of_a_stream(monkeypatch):
    monkeypatch.setattr(data, "_read", lambda *given: STREAM)
    assert data.sources(recipe()) == (STREAM, None)
    monkeypatch.setattr(data, "_read", lambda *given: SOURCE)
    train, aside = data.sources(recipe(data={"path": "here", "holdout": 0.25}))
    assert (train.size, aside.size) == (3, 1)
    monkeypatch.setattr(data, "_to_test", lambda spec, whole, bad: "test")
    assert data.sources(recipe(data={"path": "here", "test": "there"})) == (SOURCE, "test")


@pytest.mark.parametrize(("vae", "channels"), [(True, 5), (False, 1)])
def test_pictures_have_the_channels_that_the_vae_takes(monkeypatch, tmp_path, vae, channels):
    (tmp_path / "config.json").write_text('{"in_channels": 5}')
    looks = []
    monkeypatch.setattr(data, "image_folder", lambda path, look, **more: looks.append(look))
    spec = {"path": "here", "size": 16, "channels": 1, "flip": not vae}
    whole = recipe(data={**spec, "vae": str(tmp_path)} if vae else spec)
    data._read(whole, whole.data, "here", None)
    (look,) = looks
    assert (look.size, look.channels, look.crop, look.flip) == (16, channels, "center", not vae)
    (tmp_path / "config.json").write_text("{}")
    data._read(whole, whole.data, "here", None)
    assert looks[1].channels == (3 if vae else 1)


class Sure:
    """Tells class 0 with the logits (1.7, 0), whatever it sees, by its temperature."""

    def __init__(self):
        self.config, self.shown, self.rho_max = {"classes": ["a", "b"]}, [], "unset"

    def __call__(self, x, level):
        t = dict(self.shown[-1])[round(float(level.rho), 6)] if self.shown else 1.0
        return torch.tensor([[1.7 / t, 0.0]], dtype=torch.float64).expand(len(x), -1)

    def calibrate(self, temperatures):
        self.shown.append(temperatures)

    def register_to_config(self, **more):
        self.config.update(more)


@pytest.mark.parametrize("calibrate", [True, False])
def test_a_classifier_is_calibrated_on_every_other_sample(calibrate):
    """Of the even ones 9 of 12 are of class 0, of the odd ones 9 of 11."""
    y = torch.tensor([0] * 18 + [1] * 5)
    spec = {"widths": [8], "calibrate": calibrate, "train": {"steps": 1}}
    edm = {"kind": "edm", "sigma_min": 0.5, "sigma_max": 1.0}
    classifier = Sure()
    found = examine.examine(
        classifier, recipe(classifier=spec, schedule=edm), torch.zeros(23, 3), y
    )
    sure, right = math.exp(1.7) / (1 + math.exp(1.7)), 9 / 11
    if calibrate:
        (temperatures,) = classifier.shown
        best = 1.7 / math.log(3)
        assert [rho for rho, _ in temperatures] == [0.5, 1.0]
        assert all(abs(t - best) < 2e-3 and t == round(t, 4) for _, t in temperatures)
        told = 1 / (1 + math.exp(-1.7 / temperatures[0][1]))
        before, after = round(abs(right - sure), 4), round(abs(right - told), 4)
    else:
        assert not classifier.shown
        before = after = round(abs(right - sure), 4)
    assert found["classifier_accuracy"] == {"0.5": 0.8182, "1": 0.8182}
    assert found["classifier_ece"] == {"0.5": [before, after], "1": [before, after]}
    assert found["classifier_rho_max"] is None is classifier.rho_max  # 9/11 ≥ 1.2/2 throughout
    assert classifier.config["rho_max"] is None


@pytest.mark.parametrize(
    ("batch", "accumulate", "world", "precision", "wanted"),
    [
        (7, 1, None, "float32", (7, 12)),
        (7, 2, None, "float32", (4, 12)),
        (8, 2, "2", "float64", (2, 24)),
        (9, 4, "1", "bfloat16", (3, 12)),
    ],
)
def test_a_batch_is_counted_before_a_network_is_built(
    monkeypatch, batch, accumulate, world, precision, wanted
):
    """What one process takes at once: samples, and the bytes of one."""

    class Counted(Exception):
        pass

    def check(*given):
        raise Counted(given)

    monkeypatch.setattr(networks, "check_batch", check)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    train = {"steps": 1, "batch": batch, "accumulate": accumulate, "precision": precision}
    with pytest.raises(Counted) as caught:
        networks.build_part(recipe(model={"widths": [32], "train": train}), "model", SOURCE)
    assert caught.value.args == (wanted,)


def test_a_batch_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "available_memory", lambda gpu: 1_000_000)
    limits.check_batch(1000, 1000)
    with pytest.raises(ValueError, match=r"^1,001 samples at once need 0.001 GB .*; lower batch"):
        limits.check_batch(1001, 1000)
    assert limits.copies_of(SimpleNamespace(power=(0.1, 0.2), precision="float32")) == 7
    assert limits.copies_of(SimpleNamespace(power=(), precision="float64")) == 10
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "True")
    assert limits.copies_of(SimpleNamespace(power=(), precision="float64")) == 1


def test_a_network_is_counted_as_it_is_built():
    def two():
        nn.Linear(10, 9, bias=False)  # 90 numbers of 4 bytes
        nn.Linear(5, 2, bias=False)

    with limits.count_memory(2, 800):
        two()
    for copies, most in ((2, 799), (3, 1199)):
        with (
            pytest.raises(limits.TooLarge, match="needs more than"),
            limits.count_memory(copies, most),
        ):
            two()
    with limits.count_memory(0, 1):
        two()
