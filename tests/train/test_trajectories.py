"""Students that learn runs of their teacher: its runs, the visits, and the variant in a folder."""

from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import guidestar as gs
from guidestar import cli
from guidestar.core.levels import VP
from guidestar.data.identity import identify
from guidestar.model.variants import keep_variant, variants_of
from guidestar.sampling.grids import log_snr
from guidestar.train.loop.signals import Stop
from guidestar.train.students import paths as paths_module
from guidestar.train.students.export import assemble_student
from guidestar.train.students.paths import choose_visits, make_paths
from guidestar.train.students.run import distill, plan_distillation, read_lesson
from helpers.students import recipe_of

GUIDANCE = "cfg(2, interval=(0.1, 5))"


def trajectory_of(teacher, **student):
    more = {
        "method": "trajectory",
        "guidance": GUIDANCE,
        "scale": None,
        "start": 6,
        "steps": 2,
        "before": [4],
        "paths": 12,
    }
    return recipe_of(teacher, **{**more, **student})


@pytest.fixture(scope="module")
def made(teacher, tmp_path_factory):
    out = tmp_path_factory.mktemp("trajectory")
    lesson = distill(trajectory_of(teacher), out)
    return lesson, out, assemble_student(lesson, out)


def test_runs_are_those_of_the_teachers_own_sampler(teacher, tmp_path):
    lesson = read_lesson(trajectory_of(teacher, dropout=0.0, solver="dpmpp-2m", first_seed=1000))
    paths = make_paths(lesson, tmp_path)
    states, targets = paths.batch([3, 9], None)
    model = gs.load(teacher)
    names = [model.classes[i] for i in targets["label"].tolist()]
    # The same numbers by another door: Model.sample with the same seeds, step by step.
    walked = model.trajectory(
        names, guidance=GUIDANCE, seeds=[1003, 1009], steps=6, solver="dpmpp-2m", grid="log_snr"
    )
    for k, state in enumerate(walked):
        torch.testing.assert_close(states[:, k + 1], state.x, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_a_student_of_runs_samples_on_its_own_levels(made):
    lesson, out, _ = made
    student = gs.load(out / "pupil")
    assert student.defaults["solver"] == "ddim" and student.defaults["steps"] == 2
    grid = student.grid()
    fine = [float(level.rho) for level in log_snr(student.schedule, 6)]
    rhos = [float(level.rho) for level in grid]
    assert len(rhos) == 3 and (rhos[0], rhos[-1]) == (pytest.approx(fine[0]), 0.0)
    assert min(abs(rhos[1] - f) for f in fine) < 1e-6
    assert student.sample("c", seeds=[5]).nfe == 2
    earlier = assemble_student(lesson, out, index=0)
    assert earlier.name == "pupil-4" and gs.load(out / "pupil-4").sample("c", seeds=[5]).nfe == 4


def test_the_command_writes_every_student(teacher, tmp_path, capsys):
    """Those on the way too, each under its number of steps."""
    file = tmp_path / "pupil.toml"
    file.write_text(
        f"""
name = "pupil"
[student]
teacher = {str(teacher)!r}
method = "trajectory"
guidance = "cfg(2)"
start = 5
before = [4, 3]
steps = 2
paths = 4
train = {{ steps = 1, batch = 2, warmup = 1 }}
""",
        encoding="utf-8",
    )
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        cli.main(["distill", str(file), "--out", str(out)])
    assert ended.value.code == 0
    assert capsys.readouterr().out.splitlines() == [
        f"a student on the way is in {out}/pupil-4",
        f"a student on the way is in {out}/pupil-3",
        f"the student is in {out}/pupil; try: guidestar sample {out}/pupil --cond all --grid",
    ]
    found = {f.name: gs.load(f).defaults["steps"] for f in sorted(out.glob("pupil*"))}
    assert found == {"pupil": 2, "pupil-3": 3, "pupil-4": 4}


def test_visits_are_the_levels_of_the_straightest_steps():
    schedule = VP.linear()
    grid = log_snr(schedule, 5)
    rhos = [float(level.rho) for level in grid]
    # y = x/α is straight in ρ up to level 2 and after it, with a bend there alone.
    y = [float(r) if r > rhos[2] else 3 * r - 2 * rhos[2] for r in rhos]
    alphas = [float(level.alpha) for level in grid]
    states = torch.tensor([[v * a] for v, a in zip(y, alphas, strict=True)]).view(1, 6, 1)
    assert choose_visits(states.double(), grid, 2) == (0, 2, 5)


@pytest.mark.slow
def test_a_stopped_distillation_of_runs_goes_on_to_the_bit(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(paths_module, "SHARD", 4)
    recipe = trajectory_of(teacher)
    assert distill(recipe, tmp_path / "whole") is not None
    for halt in (2, 4, 6, 12):  # among the runs, within a stage, and in the next
        stop, count = Stop(), itertools.count(1)

        def report(*_, stop=stop, count=count, halt=halt):
            stop.requested = next(count) == halt

        assert distill(recipe, tmp_path / "parts", report, stop=stop) is None or halt == 12
    assert distill(recipe, tmp_path / "parts") is not None
    for stage in ("student-4", "student-2"):
        one, other = (
            torch.load(tmp_path / where / "parts" / f"{stage}.pt", weights_only=True)["module"]
            for where in ("whole", "parts")
        )
        assert [k for k in one if not torch.equal(one[k], other[k])] == []


def test_runs_of_another_guidance_are_refused(made, teacher, tmp_path):
    shutil.copytree(made[1] / "paths", tmp_path / "paths")
    with pytest.raises(ValueError, match="holds runs of another teacher, guidance or seed"):
        distill(trajectory_of(teacher, guidance="cfg(3)"), tmp_path)
    more = make_paths(read_lesson(trajectory_of(teacher, paths=8)), tmp_path)
    assert more.size == 8  # fewer of the same are read, not sampled again
    first = load_file(tmp_path / "paths" / "00000000.safetensors")["states"][:8]
    assert torch.equal(more.states, first)


def test_the_identity_of_runs_is_that_of_their_states(made):
    paths = make_paths(made[0], made[1])
    before = identify(paths)
    paths.states[0, 1] += 1
    assert identify(paths)["digest"] != before["digest"]


def test_the_scale_of_runs_is_an_input(teacher, tmp_path):
    recipe = trajectory_of(teacher, guidance="cfg(w)", scale=[1, 4], before=None)
    model = assemble_student(distill(recipe, tmp_path), tmp_path)
    assert model.sample("b", seeds=[3], scale=2.5).nfe == 2


def test_a_dry_run_names_the_runs(teacher):
    lines = plan_distillation(trajectory_of(teacher))
    assert lines[2] == "paths: 12 runs of the teacher, 6 steps of dpmpp-2m on log_snr"
    assert [line.split(":")[0] for line in lines[3:]] == ["student-4", "student-2"]


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"before": [2]}, "the steps of students must fall, from at most the teacher's 6, not 2"),
        ({"before": [8]}, "the steps of students must fall, from at most the teacher's 6, not 8"),
        ({"visits": [0, 6]}, "a student of 2 steps visits 3 levels, not 2"),
        ({"method": "progressive", "start": 8}, "before are for method 'trajectory'"),
    ],
)
def test_mistakes_in_a_recipe_of_runs_are_named(teacher, student, message):
    with pytest.raises(ValueError, match=message):
        trajectory_of(teacher, **student)


def test_a_student_becomes_a_variant_of_its_teachers_folder(made, teacher, tmp_path):
    folder = shutil.copytree(teacher, tmp_path / "model")
    keep_variant(folder, made[1] / "pupil", "2-step")
    assert list(variants_of(folder)) == ["2-step"]
    model, student = gs.load(folder, variant="2-step"), gs.load(made[1] / "pupil")
    assert model.name == f"{folder}:2-step" and model.defaults == student.defaults
    assert model.judge is None and model.classifiers.keys() == {"classifier"}
    found = model.sample(["a", "c"], seeds=[1, 2])
    assert torch.equal(found.x, student.sample(["a", "c"], seeds=[1, 2]).x)
    again = gs.load(found.settings.model)
    assert torch.equal(again.again(vars(found.settings)).x, found.x)
    assert gs.load(folder).defaults["steps"] == 8  # the model itself is as it was
    held = {p.name for p in (folder / "variants" / "2-step").iterdir()}
    assert not held & {"classifier", "judge", "scheduler"}
    about = json.loads((folder / "variants" / "2-step" / "guidestar.json").read_text())
    assert about["student"]["guidance"] == GUIDANCE


def test_a_variant_that_is_not_there_is_refused(made, teacher, tmp_path):
    folder = shutil.copytree(teacher, tmp_path / "model")
    with pytest.raises(ValueError, match="model has no variant '3-step'; it has no variants"):
        gs.load(folder, variant="3-step")
    keep_variant(folder, made[1] / "pupil", "2-step")
    with pytest.raises(ValueError, match="no variant '3-step'; its variants are 2-step"):
        gs.load(f"{folder}:3-step")
    with pytest.raises(ValueError, match="the variant '2-step' keeps no averages"):
        gs.load(folder, variant="2-step", average="x")
    with pytest.raises(ValueError, match="the name of a variant"):
        keep_variant(folder, made[1] / "pupil", "../x")


@pytest.fixture(scope="module")
def narrow(teacher, tmp_path_factory):
    """A student whose difference to its teacher is of rank 2."""
    out = tmp_path_factory.mktemp("narrow")
    rate = {"steps": 6, "batch": 6, "warmup": 1, "rate": 3e-2, "decay": 0.5}
    lesson = distill(trajectory_of(teacher, rank=2, before=None, train=rate), out)
    return assemble_student(lesson, out), out / "pupil"


def test_a_student_of_low_rank_is_an_ordinary_model_too(narrow, teacher):
    student, before = gs.load(narrow[1]), gs.load(teacher)
    assert not (narrow[1] / "variants").exists() and student.sample("b", seeds=[1]).nfe == 2
    for (name, one), other in zip(
        student.denoiser.named_parameters(), before.denoiser.parameters(), strict=True
    ):
        if name.endswith("conv1.weight"):
            change = (one - other).flatten(1).double()
            assert torch.linalg.matrix_rank(change, rtol=0.02) == 2  # float16 adds some noise


def test_a_variant_of_low_rank_is_kept_as_its_factors(narrow, teacher, tmp_path):
    folder = shutil.copytree(teacher, tmp_path / "model")
    place = keep_variant(folder, narrow[1], "2-step")
    assert (place / "difference.safetensors").is_file() and not (place / "unet").exists()
    factors = load_file(place / "difference.safetensors")
    base = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    student = gs.load(folder, variant="2-step")
    found = dict(student.denoiser.net.net.named_parameters())
    for name, weight in base.items():
        wanted = weight.float()
        if f"{name}.up" in factors:
            up, down = factors[f"{name}.up"].float(), factors[f"{name}.down"].float()
            assert up.shape[1] == 2
            wanted = wanted + (up @ down).view_as(wanted)
        elif name in factors:
            wanted = wanted + factors[name].float()
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-7, msg=name)
    whole = gs.load(narrow[1]).sample(["a", "c"], seeds=[1, 2])
    torch.testing.assert_close(
        student.sample(["a", "c"], seeds=[1, 2]).x, whole.x, rtol=0, atol=0.02
    )


def test_a_difference_to_another_teacher_is_refused(narrow, teacher, tmp_path):
    folder = shutil.copytree(teacher, tmp_path / "model")
    keep_variant(folder, narrow[1], "2-step")
    shutil.copytree(narrow[1] / "unet", folder / "unet", dirs_exist_ok=True)
    message = r"difference.safetensors: it is the difference to other weights"
    with pytest.raises(RuntimeError, match=message):
        gs.load(folder, variant="2-step")


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_of_nothing_is_refused(teacher, rank):
    with pytest.raises(
        ValueError, match=f"student.rank: input should be greater than or equal to 1, not {rank}"
    ):
        trajectory_of(teacher, rank=rank)
