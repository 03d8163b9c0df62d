"""Choices that one line makes, and arguments that one call hands on, with values by hand."""

import math
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from torch import nn

import guidestar as gs
from diffusers import DDIMScheduler, DDPMPipeline, UNet2DModel
from guidestar.core.rng import Draw
from guidestar.data import emoji_packages
from guidestar.data.emoji_packages import EmojiNames, Style
from guidestar.data.reduced import Reduced
from guidestar.data.source import Column, InMemory
from guidestar.diffusers.guidance_file import GuidanceRecipe, read_guidance, write
from guidestar.diffusers.guide import pipelines
from guidestar.evaluate.calibration import best_temperature
from guidestar.guidance.methods.classifier import ClassifierGuidance
from guidestar.guidance.methods.discriminator import Discriminator
from guidestar.model import cascade, folder_reading, loading, shipped
from guidestar.networks.classifier import Classifier
from guidestar.networks.sequence import SequenceBlock
from guidestar.sampling import DDIM, DDPM, Restart, UniPC
from guidestar.train import preview
from guidestar.train.students import lora, paths, stages
from guidestar.train.students import run as students
from helpers.noting import noted


@pytest.mark.parametrize(
    ("solver", "times", "drawn"),
    [(DDIM(), 0, False), (DDIM(), 1, True), (DDIM(), 2, True), (DDPM(), 0, True)],
)
def test_a_restart_draws_noise_where_it_takes_place_or_its_solver_does(solver, times, drawn):
    assert Restart(solver=solver, times=times).stochastic is drawn


@pytest.mark.parametrize(("variant", "b"), [("bh1", 0.5), ("bh2", 1 - math.exp(-0.5))])
def test_unipcs_first_weight(variant, b):
    """``B(h)/2`` over the place of the point before, in steps; 0 where that is none."""
    solver = UniPC(variant=variant)
    assert solver.predicting(0.5, 1.0, (-1.0,)) == pytest.approx((b / 2 / -2.0,))
    assert solver.predicting(0.5, 1.0, (0.0,)) == (0.0,)
    assert solver.predicting(0.5, 1.0, (-math.inf,)) == (0.0,)
    assert solver.correcting(0.5, 1.0, (-1.0,), 1) == pytest.approx((b / 2,))
    for h in (math.inf, 0.0):
        assert solver.correcting(h, 1.0, (-1.0,), 1) == (0.0,)


def test_a_recipe_is_written_to_a_file_or_into_a_folder(tmp_path):
    recipe = GuidanceRecipe(guidance="cfg(3)")
    write(recipe, tmp_path / "own.toml")
    write(recipe, tmp_path)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert len(files) == 2 and "own.toml" in files
    for name in files:
        assert read_guidance(tmp_path / name).guidance == "cfg(3)"


@pytest.mark.parametrize(("bound", "wanted"), [(20.0, 2.0), (1.5, 1.5)])
def test_the_best_temperature(bound, wanted):
    """Of four rows [2 ln 3, 0], three of the first class: σ(2 ln 3 / T) = 3/4 at T = 2."""
    logits = torch.tensor([[2 * math.log(3), 0.0]]).double().expand(4, 2)
    found = best_temperature(logits, torch.tensor([0, 0, 1, 0]), bound)
    assert math.log(found / wanted) == pytest.approx(0.0, abs=1e-4)
    turned = best_temperature(-logits, torch.tensor([0, 0, 1, 0]), bound)
    assert turned == pytest.approx(bound, rel=1e-4)  # nothing fits, so as unsure as may be


def test_a_model_that_ships_is_found_by_its_name_alone():
    name = next(iter(shipped.available()))
    assert shipped.home_of(name) == shipped.SHIPPED / name
    assert shipped.home_of(Path(name)) == shipped.SHIPPED / name
    for other in ("models/x", "none", f"./{name}/"):
        assert shipped.home_of(f"{other}/y") == Path(other, "y")
    assert shipped.home_of("none") == Path("none")


def test_a_block_is_the_identity_before_training():
    torch.manual_seed(0)
    block = SequenceBlock(8, 2, 4)
    x, context = torch.randn(2, 3, 8), torch.randn(2, 5, 4)
    assert torch.equal(block(x, torch.randn(2, 8), context, None), x)
    assert block.cross is not None
    for layer in (block.modulation, block.cross.out):
        assert not layer.weight.any() and not layer.bias.any()


def test_icons_have_names_of_their_own_and_other_sets_those_of_emoji(tmp_path):
    icons = '{"icons": {"apple": {"body": "<a/>"}, "Red_Apple": {"body": "<b/>"}}}'
    (tmp_path / "icons.json").write_text(icons)
    known = {"1f34e": EmojiNames("red apple", ("fruit",))}
    codes = {"apple": "none", "redapple": "1f34e"}
    found = lambda name: list(
        emoji_packages._icons(tmp_path, Style(name, "p", "l", "o"), codes, known)
    )
    assert [(d.concept, d.style) for d in found("noto")] == [("red apple", "noto")]
    own = found("icon")
    assert [d.concept for d in own] == ["apple", "Red_Apple"] and own[0].style == "icon"
    codes["apple"] = "1f34e"  # the same concept once
    assert [d.svg for d in found("noto")] == [own[0].svg]


@pytest.mark.parametrize(
    ("scale", "guidance", "default"),
    [
        (None, "cond", 1.0),
        (None, "cfg(3)", 1.0),
        ((1.5, 6.0), "cfg(3)", 3.0),
        ((1.5, 6.0), "cfg(9)", 6.0),
        ((1.5, 6.0), "cfg(1)", 1.5),
        ((1.5, 6.0), "cond", 3.75),
        ((1.5, 6.0), "apg(3)", 3.75),
    ],
)
def test_the_scale_of_a_student_where_none_is_given(scale, guidance, default):
    spec: Any = SimpleNamespace(scale=scale)
    model: Any = SimpleNamespace(expression=lambda given: gs.parse(guidance))
    assert stages.default_scale(spec, model) == default


def test_curves_are_tried_once_and_written_by_one_process(monkeypatch, tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    made = noted(monkeypatch, tensorboard, "SummaryWriter", "writer")
    trainer: Any = SimpleNamespace(done=7, accelerator=SimpleNamespace(is_main_process=True))
    board = preview.Board(tmp_path, trainer)
    assert board._open() == "writer" and board._open() == "writer"
    assert made == [((str(tmp_path),), {"purge_step": 7})]
    failed = preview.Board(tmp_path, trainer)
    failed.failed = True
    assert failed._open() is None
    trainer.accelerator.is_main_process = False
    assert preview.Board(tmp_path, trainer)._open() is None and len(made) == 1


@pytest.mark.parametrize("main", [True, False])
def test_a_distillation_reports_each_stage(monkeypatch, tmp_path, main):
    lesson = SimpleNamespace(teacher="teacher")
    accelerator = SimpleNamespace(
        is_main_process=main,
        main_process_first=nullcontext,
        wait_for_everyone=lambda: None,
        device="cpu",
    )
    monkeypatch.setattr(accelerate, "Accelerator", lambda cpu: accelerator)
    read = noted(monkeypatch, students, "read_lesson", lesson)
    asked: list[Any] = []

    def train(*args):
        asked.append(args)
        yield from ("first", "second")

    monkeypatch.setattr(students, "_train_stage", train)
    monkeypatch.setattr(students, "stage_settings", lambda recipe, index: SimpleNamespace(steps=9))
    student = SimpleNamespace(method="progressive", stages=lambda: [("a", 4), ("b", 2)])
    recipe: Any = SimpleNamespace(student=student)
    heard: list[Any] = []
    found = students.distill(recipe, tmp_path, lambda *words: heard.append(words), say=print)  # type: ignore[arg-type]
    assert found is lesson and read == [((recipe, print), {})]
    assert asked == [(lesson, k, tmp_path, accelerator, None, None) for k in (0, 1)]
    wanted = [(s, p, 9) for s in ("a", "b") for p in ("first", "second")]
    assert heard == (wanted if main else [])
    stop: Any = SimpleNamespace(agreed=True)
    heard.clear()
    assert students.distill(recipe, tmp_path, stop=stop) is None and len(asked) == 3


def test_a_lora_is_trained_as_its_spec_says(monkeypatch, tmp_path):
    net = nn.Linear(1, 1)
    model = SimpleNamespace(denoiser="denoiser", schedule="schedule")
    loaded = noted(monkeypatch, lora, "load", model)
    noted(monkeypatch, lora, "_network_of", net)
    prompts = noted(monkeypatch, lora, "Prompts", "encoder")
    samples = noted(monkeypatch, lora, "_samples", "data")
    student = SimpleNamespace(off="off")
    adapted = noted(monkeypatch, lora, "Adapted", student)
    checked: list[int] = []
    teacher = SimpleNamespace(check=lambda: checked.append(1))
    teachers = noted(monkeypatch, lora, "Teacher", teacher)
    noted(monkeypatch, lora, "weighting", "weights")
    objective = noted(monkeypatch, lora, "GuidedDistillation", "objective")
    average = SimpleNamespace(applied=lambda student: nullcontext())
    trainers = noted(monkeypatch, lora, "Trainer", SimpleNamespace(ema=average))
    fitted: list[Any] = []

    def fit(trainer, file, **more):
        fitted.append((file, more))
        yield from ("first", "second")

    monkeypatch.setattr(lora, "fit", fit)
    wrote = noted(monkeypatch, lora, "write_lora", "file")
    spec = lora.LoRA(teacher="t", guidance="cfg(2)", prompts=("a", "b"), rank=3, seed=5,
                     train=SimpleNamespace(steps=7))  # type: ignore[arg-type]  # fmt: skip
    heard: list[Any] = []
    stop: Any = SimpleNamespace(agreed=False)
    found = lora.distil_lora(spec, tmp_path, lambda *w: heard.append(w), stop=stop, watch=print)  # type: ignore[arg-type]
    assert found == "file" and checked == [1] and loaded == [(("t",), {})]
    assert prompts == [((model, ("a", "b")), {})] and samples == [((model, spec, print), {})]
    assert adapted == [(("denoiser", "encoder", net, 3), {})]
    assert teachers[0][1] == {
        "denoiser": "denoiser",
        "encoder": "encoder",
        "guidance": "cfg(2)",
        "schedule": "schedule",
        "context": "off",
    }
    (_, given) = objective[0]
    assert (given["teacher"], given["weighting"], given["dropout"]) == (teacher, "weights", 0.0)
    assert (given["levels"].mean, given["levels"].std) == (0.0, 1.5)
    (args, more) = trainers[0]
    assert args[:4] == (student, "objective", "data", spec.train)
    assert args[4]["rank"] == 3 and args[4]["seed of the samples"] == 5
    assert more["prepare"]({"prompt": 1, "other": 2}) == {"rows": {"prompt": 1}}
    assert fitted == [(tmp_path / "parts" / f"{lora._STAGE}.pt", {"stop": stop})]
    assert heard == [(lora._STAGE, p, 7) for p in ("first", "second")]
    assert wrote == [((student, "t", tmp_path), {})]
    stop.agreed = True
    assert lora.distil_lora(spec, tmp_path, stop=stop) is None and len(wrote) == 1


def test_the_samples_of_a_lora_are_of_the_prompts_in_turn():
    asked, walked, seen = [], [], []

    def request(prompts, **more):
        asked.append((prompts, more))
        return len(prompts)

    def states(count):
        for k in range(2):  # the last is kept
            walked.append(k)
            yield SimpleNamespace(x=torch.full((count, 1), 10.0 * len(asked) + k).double())

    model: Any = SimpleNamespace(request=request, states=states)
    spec = lora.LoRA(teacher="t", guidance="cfg(2)", prompts=("a", "b", "c"), samples=10, steps=6,
                     seed=4, train=None)  # type: ignore[arg-type]  # fmt: skip
    found = lora._samples(model, spec, lambda done, of: seen.append((done, of)))
    assert [p for p, _ in asked] == [["a", "b", "c", "a", "b", "c", "a", "b"], ["c", "a"]]
    assert [m["seeds"] for _, m in asked] == [[4, 5, 6, 7, 8, 9, 10, 11], [12, 13]]
    assert all((m["guidance"], m["steps"]) == ("cfg(2)", 6) for _, m in asked)
    assert found.x.flatten().tolist() == [11.0] * 8 + [21.0] * 2 and found.x.dtype == torch.float32
    assert found.targets["prompt"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]  # type: ignore[union-attr]
    assert found.columns == {"prompt": Column(kind="class", classes=("0", "1", "2"))}
    assert seen == [(8, 10), (10, 10)]


class Stage:
    """A stage that writes down what it is asked for."""

    def __init__(self, name: str, calls: list[Any]) -> None:
        self.name, self.calls = name, calls

    def sample(self, cond, **run):
        self.calls.append((self.name, cond, run))
        return SimpleNamespace(images=f"of {self.name}")


def test_a_cascade_hands_on_all_that_its_stages_take(monkeypatch):
    calls: list[Any] = []
    subject: Any = object.__new__(cascade.Cascade)
    names = {"base": Stage("base", calls), "large": Stage("large", calls)}
    object.__setattr__(subject, "stages", names)
    common: list[Any] = []
    settings = {
        "base": cascade.StageSettings(guidance="cfg(2)", steps=3, solver="ddim", grid="karras",
                                      negative="n", seeds=(5, 6)),
        "large": cascade.StageSettings(guidance="cond", steps=2, augmentation=0.3),
    }  # fmt: skip
    kind = cascade.Cascade
    choose = lambda self, *given: common.append(given) or settings
    monkeypatch.setattr(kind, "_settings", choose)
    monkeypatch.setattr(kind, "_carried", lambda self, *args: args)
    ran: list[Any] = []
    monkeypatch.setattr(
        cascade,
        "upscale",
        lambda *args, **run: ran.append((args, run)) or SimpleNamespace(images=9),
    )
    monkeypatch.setattr(cascade, "CascadeSamples", lambda **made: made)
    monkeypatch.setattr(cascade, "stage_seed", lambda seed, name: seed * 100 + len(name))
    given: Any = {"base": 1}
    found = subject.sample("cat", seeds=[1, 2], stages=given, guidance="g", negative="m", steps=9,
                           solver="heun", grid="uniform", augmentation=0.2, max_rows=4,
                           watch=print)  # fmt: skip
    own = cascade.StageSettings(guidance="g", negative="m", steps=9, solver="heun",
                                grid="uniform", augmentation=0.2)  # fmt: skip
    assert common == [(given, own)]
    shared = {"max_rows": 4, "watch": print}
    assert calls == [("base", "cat", {"guidance": "cfg(2)", "seeds": [5, 6], "negative": "n",
                      "steps": 3, "solver": "ddim", "grid": "karras", **shared})]  # fmt: skip
    assert ran == [
        ((names["large"], "of base", "cat"),
         {"augmentation": 0.3, "guidance": "cond", "seeds": [105, 205], "negative": None,
          "steps": 2, "solver": None, "grid": None, **shared})
    ]  # fmt: skip
    assert list(found["stages"]) == ["base", "large"]
    done, cond, seeds, chosen = found["settings"]
    assert (list(done), cond, seeds, chosen) == (["base", "large"], "cat", [1, 2], settings)
    settings["large"] = cascade.StageSettings(seeds=(1,))
    with pytest.raises(ValueError, match="the stage 'large' has 1 seeds for 2 samples"):
        subject.sample("cat", seeds=[1, 2])


@pytest.mark.parametrize("side", [4, 2, 1])
def test_pictures_are_reduced_by_means_over_squares(side):
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    source = InMemory(x=x, targets={"a": torch.tensor([3])}, columns={"a": Column(kind="class")})
    found = Reduced(source=source, side=side)
    assert found.shape == (2, side, side) and found.size == 1 and found.columns is source.columns
    pictures, targets = found.batch([0], Draw([0]))
    k = 4 // side
    for r in range(side):
        for c in range(side):
            square = x[0, :, r * k : (r + 1) * k, c * k : (c + 1) * k]
            assert torch.allclose(pictures[0, :, r, c], square.mean((1, 2)))
    assert targets["a"].tolist() == [3]  # type: ignore[union-attr]


@pytest.mark.parametrize(("shape", "side"), [((2, 4, 4), 3), ((2, 4, 2), 2), ((4, 4), 2)])
def test_pictures_that_cannot_be_reduced(shape, side):
    source = InMemory(x=torch.zeros(1, *shape), targets={}, columns={})
    with pytest.raises(ValueError, match=r"cannot be reduced to . x . pixels; choose a size that"):
        Reduced(source=source, side=side)


def test_classifiers_may_look_through_a_pipelines_vae_or_there_are_none(monkeypatch):
    made = noted(monkeypatch, pipelines, "_guided_kind", object)
    noted(monkeypatch, pipelines, "become", "pipe")
    seen = noted(monkeypatch, pipelines, "_through_vae", "seen")
    blocks: Any = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    net = UNet2DModel(sample_size=8, block_out_channels=(8,), norm_num_groups=2, **blocks)
    pipe = DDPMPipeline(net, DDIMScheduler())
    for through in (True, False):
        assert gs.guide(pipe, "uncond", through_vae=through) == "pipe"
        assert made[-1][0][1].classifiers == {}
    judge: Any = object()
    gs.guide(pipe, "uncond", classifiers={"c": judge}, through_vae=True)
    assert made[-1][0][1].classifiers == {"c": "seen"} and seen[0][0] == (pipe, judge)
    gs.guide(pipe, "uncond", classifiers={"c": judge})
    assert made[-1][0][1].classifiers == {"c": judge}


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_each_width_after_the_first_halves_the_resolution_once(layers):
    net = Classifier(("a", "b"), widths=(4, 6, 8), layers=layers, groups=2)
    blocks: Any = net.blocks
    shapes = [(b.conv1.in_channels, b.conv1.out_channels, b.conv1.stride[0]) for b in blocks]
    wanted: list[tuple[int, int, int]] = []
    for first, width, stride in ((4, 4, 1), (4, 6, 2), (6, 8, 2)):
        wanted += [(first, width, stride), *[(width, width, 1)] * (layers - 1)]
    assert shapes == wanted
    assert [b.skip.stride[0] for b in blocks] == [s for _, _, s in wanted]


def test_what_turns_samples_into_data(monkeypatch, tmp_path):
    x = torch.tensor([[2.0, -3.0]])
    of = lambda **about: folder_reading.read_decode(tmp_path, about)(x).tolist()
    assert of(shape=[1, 4, 4]) == of() == [[1.0, -1.0]]
    assert of(shape=[2]) == of(shape=[3, 2]) == [[2.0, -3.0]]
    assert of(shape=[2], scale={"mean": [1.0, 2.0], "std": [2.0, 0.5]}) == [[5.0, 0.5]]
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    read = noted(monkeypatch, folder_reading, "read_decoder", "decoder")
    assert folder_reading.read_decode(tmp_path, {"scale": {}}) == "decoder"
    assert read == [((tmp_path / "vae",), {})]


def test_what_a_classifier_climbs():
    own = lambda x, level, target: x.flatten(1).sum(1)
    assert ClassifierGuidance(1.0, log_prob=own).climbed == (own, None)
    log_prob, target = ClassifierGuidance(1.0, log_prob=own, target=(2, 0)).climbed
    assert log_prob is own and target is not None and target.tolist() == [2, 0]


def test_a_discriminators_gradient_is_taken_with_those_of_others():
    class Model:
        def log_odds(self, x, level):
            return (x**2).flatten(1).sum(1) * level.alpha

    model = Model()
    level = gs.Level(0.5, 0.8, 1.0)
    x = torch.tensor([[1.0, 2.0]])
    group: Any = SimpleNamespace(x_t=x, step=SimpleNamespace(t=level))
    found = Discriminator(1.0, log_odds=model.log_odds).slope(group)
    assert found is not None and found.x is x and found.level is level and found.target is None
    assert found.key == model.log_odds
    assert found.gradient.tolist() == [[1.0, 2.0]]  # 2 x α
    for own in (None, lambda x, level: x.sum(1)):
        assert Discriminator(1.0, log_odds=own).slope(group) is None
    bad = Discriminator(1.0, log_odds=SimpleNamespace(log_odds=None).log_odds)
    assert bad.slope(group) is None


def test_runs_are_visited_where_a_straight_step_misses_least(monkeypatch):
    """The root mean square of what a step from i misses at j, averaged over the runs."""
    asked: list[Any] = []
    monkeypatch.setattr(paths, "shortest", lambda *given: asked.append(given) or [0, 2])
    levels = [gs.Level(0.5, 0.5 * rho, rho) for rho in (4.0, 2.0, 1.0)]
    states = torch.tensor(
        [[[0.0, 0.0], [1.0, 0.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 2.0], [0.0, 3.0]]]
    )
    grid: Any = levels
    assert paths.choose_visits(states, grid, 1) == (0, 2)
    (cost, steps) = asked[0]
    # y = x/α is twice the states; the step 4 → 2 leads, at its slope, to (3, 0) and (0, 6) at 1
    first = ((3 - 6) ** 2 + (0 - 8) ** 2) / 2
    second = (0 + (6 - 6) ** 2) / 2
    inf = math.inf
    assert steps == 1 and cost.flatten().tolist() == pytest.approx(
        [inf, 0.0, (first**0.5 + second**0.5) / 2, inf, inf, 0.0, inf, inf, inf]
    )


@pytest.mark.parametrize("given", [{"average": "a"}, {"variant": "v"}, {"size": 8},
                                   {"dtype": torch.float32}])  # fmt: skip
def test_what_only_a_stage_of_a_cascade_takes(tmp_path, given):
    (tmp_path / "cascade.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is a cascade; average=, variant=, size= and dtype= are"):
        loading.load(tmp_path, **given)
