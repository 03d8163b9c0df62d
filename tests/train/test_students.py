"""Students as people use them: from a teacher's folder to a folder that samples in few passes."""

from __future__ import annotations

import json

import pytest
import torch

import guidestar as gs
from guidestar.core.denoiser import Condition
from guidestar.core.levels import VP
from guidestar.networks.condition_encoders import ClassEncoder
from guidestar.networks.conditions import Conditions
from guidestar.networks.from_config import from_diffusers, unet
from guidestar.networks.guidance_scale import GuidanceScale, ScaledNetwork, embedding_width
from guidestar.networks.network import Network
from guidestar.networks.sequence import SequenceTransformer
from guidestar.train.loop.signals import Stop
from guidestar.train.objectives.teacher import Teacher
from guidestar.train.students.export import assemble_student
from guidestar.train.students.run import distill, plan_distillation
from guidestar.train.students.stages import fresh_student
from helpers.students import CLASSES, recipe_of


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("student")
    lesson = distill(recipe_of(teacher), out)
    assert lesson is not None
    assemble_student(lesson, out)
    return gs.load(out / "pupil")


@pytest.mark.slow
def test_a_student_is_an_ordinary_model_of_one_pass_a_step(student, teacher):
    assert student.defaults["guidance"] == "cond" and student.defaults["steps"] == 2
    assert (student.defaults["solver"], student.defaults["grid"]) == ("ddim", "uniform")
    samples = student.sample("b", seeds=[3, 4])
    assert samples.nfe == 2 and student.plan(cond="b").nfe == 2
    assert student.card["student"]["guidance"] == "cfg(w)"
    assert student.card["student"]["stages"] == ["student-4", "student-2"]
    assert student.classifiers.keys() == gs.load(teacher).classifiers.keys()


def test_the_scale_is_an_input_of_each_sample(student):
    one, other = (student.sample("b", seeds=[3, 4], scale=s).x for s in (1.5, 3.5))
    both = student.sample("b", seeds=[3, 4], scale=[1.5, 3.5])
    assert not torch.equal(one, other)
    torch.testing.assert_close(both.x, torch.stack([one[0], other[1]]), rtol=0, atol=1e-6)
    assert both.settings.scale == (1.5, 3.5)
    assert torch.equal(student.again(vars(both.settings)).x, both.x)
    default = student.sample("b", seeds=[3, 4])
    assert default.settings.scale == (2.0, 2.0)  # the teacher's own cfg(2)


def test_the_scale_one_is_the_network_alone(student):
    net = student.denoiser.net
    assert isinstance(net, ScaledNetwork)
    x, level = torch.randn(2, 1, 8, 8), student.schedule.at_rho(1.0)
    cond = student.encoder.encode(["a", "c"])
    alone = Network(net.net, predicts=student.denoiser.predicts)(x, level, cond)
    given = student.denoiser(x, level, Condition({**cond, "guidance_scale": torch.ones(2)}))
    more = student.denoiser(x, level, Condition({**cond, "guidance_scale": torch.full((2,), 2.0)}))
    assert torch.equal(alone, given) and not torch.equal(alone, more)


@pytest.mark.parametrize(
    "guidance",
    ["cfg(1.5)", "cond + pag(1, layers='mid_block.attentions.0')", "cfg(2) + classifier(1)"],
)
def test_a_student_can_be_guided_on(student, guidance):
    samples = student.sample("b", guidance=guidance, scale=2.0, seeds=[1])
    assert bool(samples.x.isfinite().all()) and samples.nfe > 1


def test_guiding_on_contrasts_the_told_scale_with_the_plain_null(student):
    x, grid = torch.randn(2, 1, 8, 8), student.grid()
    cond, null = student.encoder.encode(["b", "b"]), student.encoder.null(2)
    at = lambda c, w: student.denoiser(
        x, grid[0], Condition({**c, "guidance_scale": torch.full((2,), w)})
    )
    expected = at(null, 1.0) + 3 * (at(cond, 2.0) - at(null, 1.0))
    guided = student.guided("cfg(3)", cond=["b", "b"], scale=2.0)
    found = guided(x, grid.step(0)).prediction.x0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 5.0}, "trained for scales from 1 to 4, not for 5"),
        ({"scale": [1.0, 2.0, 3.0]}, "3 scales were given for 2 samples"),
    ],
)
def test_scales_it_was_not_trained_for_are_refused(student, arguments, message):
    with pytest.raises(ValueError, match=message):
        student.sample("b", seeds=[0, 1], **arguments)


def test_a_model_that_takes_no_scale_says_what_to_write(teacher):
    with pytest.raises(
        ValueError, match=r"takes no scale as an input; write it in the guidance.*cfg\(3\)"
    ):
        gs.load(teacher).sample("b", scale=3)


NETS = {
    "unet": lambda: unet(size=8, channels=1, widths=(8, 8), layers=1, groups=4, head=8),
    "sequence": lambda: SequenceTransformer(channels=1, length=8, width=16, depth=1, heads=2),
    "dit": lambda: from_diffusers(
        "DiTTransformer2DModel",
        {
            "in_channels": 1,
            "out_channels": 1,
            "sample_size": 8,
            "patch_size": 4,
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_embeds_ada_norm": 3,
            "norm_num_groups": 1,
        },
    ),
}


@pytest.mark.parametrize("interval", [False, True])
@pytest.mark.parametrize("kind", NETS)
def test_any_scale_of_a_fresh_student_is_the_teachers_conditional_pass_to_the_bit(kind, interval):
    from guidestar.diffusers.read.network import Adapter

    torch.manual_seed(0)
    net = NETS[kind]()
    for p in net.parameters():  # zero-initialised gates would hide what goes through them
        torch.nn.init.normal_(p, std=0.1)
    width = getattr(net, "condition_width", 32)
    wrapped = net if kind == "sequence" else Adapter(net)
    denoiser = Network(wrapped, predicts="v")
    if kind == "dit":
        from guidestar.networks.condition_encoders import LabelEncoder

        encoder = Conditions({"label": LabelEncoder(CLASSES)})
    else:
        encoder = Conditions({"label": ClassEncoder(CLASSES, width)})
    schedule = VP.linear()
    plain = Teacher(denoiser=denoiser, encoder=encoder, guidance="cfg(w)", schedule=schedule)
    pupil = fresh_student(plain, (1.0, 8.0), 2.0, interval=interval).eval()
    net.eval()
    x = torch.randn(3, 8, 1) if kind == "sequence" else torch.randn(3, 1, 8, 8)
    level, rows = schedule.at_rho(1.3), {"label": torch.tensor([0, 2, 1])}
    given = Condition({**pupil.encoder(rows), "guidance_scale": torch.tensor([1.0, 3.0, 8.0])})
    if interval:
        given = given.with_interval(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), x)
    with torch.no_grad():
        before, after = denoiser(x, level, encoder(rows)), pupil.denoiser(x, level, given)
        assert torch.equal(before, after)
        torch.nn.init.normal_(pupil.denoiser.net.scale.second.weight)
        changed = pupil.denoiser(x, level, given)
    assert torch.equal(changed[0], before[0])  # w = 1 stays the pass without a scale
    assert not torch.allclose(changed[1], before[1]) and not torch.allclose(changed[2], before[2])
    assert torch.equal(denoiser(x, level, encoder(rows)), before)  # the teacher is untouched


def test_the_embedding_is_its_formula():
    embed = GuidanceScale(6, 0.0, 5.0, 1.0)
    torch.nn.init.normal_(embed.second.weight)
    w = torch.tensor([0.0, 1.0, 2.5])
    waves = torch.stack([torch.sin(2 ** (k / 2 - 3) * (w - 1)) for k in range(12)], 1)
    hidden = waves @ embed.first.weight.T
    expected = (hidden * torch.sigmoid(hidden)) @ embed.second.weight.T
    torch.testing.assert_close(embed(w), expected)
    assert torch.equal(embed(w)[1], torch.zeros(6))


def test_networks_without_a_time_embedding_are_refused():
    with pytest.raises(ValueError, match="no kinds of time embedding of Diffusers"):
        embedding_width(torch.nn.Linear(2, 2))


def weights(out, stage):
    return torch.load(out / "parts" / f"{stage}.pt", weights_only=True)["module"]


@pytest.mark.slow
@pytest.mark.parametrize("halt", [2, 6])
def test_a_stopped_distillation_goes_on_to_the_bit(teacher, tmp_path, halt):
    """Within a halving (after 2 steps of 4), and within the next."""
    recipe = recipe_of(teacher)
    assert distill(recipe, tmp_path / "whole") is not None
    stop, done = Stop(), []

    def count(stage, progress, steps):
        done.append(stage)
        stop.requested = len(done) == halt

    assert distill(recipe, tmp_path / "parts", count, stop=stop) is None
    assert len(done) == halt + 1
    assert distill(recipe, tmp_path / "parts") is not None
    for stage in ("student-4", "student-2"):
        one, other = weights(tmp_path / "whole", stage), weights(tmp_path / "parts", stage)
        assert [k for k in one if not torch.equal(one[k], other[k])] == []


def test_other_guidance_does_not_go_on_from_a_checkpoint(teacher, tmp_path):
    distill(recipe_of(teacher), tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(.*guidance.*\)"):
        distill(recipe_of(teacher, guidance="cfg(w, interval=(0.1, 1))"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "student",
    [
        {"guidance": "cfg(2, interval=(0.1, 5)) + autoguidance(1.3)", "scale": None},
        {"guidance": "cfg(2) + classifier(1) | rescale(0.7)", "scale": None, "method": "guided"},
        {
            "guidance": "cond + pag(2, layers='mid_block.attentions.0')",
            "scale": None,
            "method": "consistency",
        },
        {"method": "guided"},
        {"method": "consistency", "start": 16},
        {"first": {"steps": 2, "batch": 4}},
    ],
    ids=lambda s: str(s.get("guidance", "")) + s.get("method", "progressive"),
)
def test_any_sum_of_guidances_becomes_one_pass(teacher, tmp_path, student):
    recipe = recipe_of(teacher, **student)
    lesson = distill(recipe, tmp_path)
    model = assemble_student(lesson, tmp_path)
    loaded = gs.load(tmp_path / "pupil")
    samples = loaded.sample("c", seeds=[5])
    assert samples.nfe == loaded.defaults["steps"]
    assert bool(samples.x.isfinite().all())
    torch.testing.assert_close(model.sample("c", seeds=[5]).x, samples.x, rtol=0, atol=0.05)
    card = (tmp_path / "pupil" / "README.md").read_text()
    assert f"One pass gives what `{recipe.student.guidance}` of" in card
    about = json.loads((tmp_path / "pupil" / "guidestar.json").read_text())
    assert about["student"]["guidance"] == recipe.student.guidance


def test_a_dry_run_says_what_each_stage_is(teacher):
    lines = plan_distillation(recipe_of(teacher, first={"steps": 7}))
    assert "guided by cfg(w)" in lines[0] and "30 samples of [1, 8, 8]" in lines[1]
    assert [line.split(":")[0] for line in lines[2:]] == ["guided", "student-4", "student-2"]
    assert "7 training steps of 64" in lines[2] and "for 4 steps" in lines[3]


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"steps": 8, "start": 4}, "needs a teacher of more steps, not of 4"),
        (
            {"steps": 4, "start": 12},
            "12 steps cannot be halved to 4; start must be 4 times",
        ),
        ({"scale": None}, r"leaves its scale w open; give the range"),
        ({"guidance": "cfg(2)"}, "holds no w; write e.g. cfg\\(w\\)"),
        ({"scale": [4, 1]}, r"scale must be a range \[low, high\]"),
        ({"guidance": "cgf(w)"}, "guidance"),
        ({"grid": "even"}, "unknown grid 'even'; the grids are"),
        ({"guidence": "cfg(2)"}, "unknown key 'student.guidence' .*did you mean 'guidance'"),
        ({"method": "consistency", "finest": 1}, "finest .1. must be at least the student's steps"),
    ],
)
def test_mistakes_in_a_recipe_are_named(teacher, student, message):
    with pytest.raises(ValueError, match=message) as error:
        recipe_of(teacher, **student)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"guidance": "cfgpp(0.6)", "scale": None}, "cfgpp splits the prediction"),
        ({"grid": "log_snr"}, "a grid that holds its levels"),
        ({"guidance": "cfg(w) + autoguidance(w)"}, None),
    ],
)
def test_what_cannot_be_learned_is_refused_before_training(teacher, tmp_path, student, message):
    recipe = recipe_of(teacher, **student)
    if message is None:
        assert distill(recipe, tmp_path) is not None
        return
    with pytest.raises(ValueError, match=message):
        distill(recipe, tmp_path)


def test_a_student_is_no_teacher(student, teacher, tmp_path):
    recipe = recipe_of(student.name)
    with pytest.raises(ValueError, match="is a student already; distil its teacher"):
        distill(recipe, tmp_path)
