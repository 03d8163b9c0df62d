"""Which tables of a recipe go together, and which do not: each condition from both sides."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from guidestar.train.build import classifiers
from guidestar.train.recipe.schema import checked
from guidestar.train.students.recipe import checked_distillation, is_distillation
from helpers.noting import NET, recipe

STEP = {"steps": 2}
DIT = {"network": "DiTTransformer2DModel", "train": STEP}
VAE = {"widths": [8, 8], "groups": 4, "train": STEP}
OWN = {"path": "p", "vae": "autoencoder", "size": 8}
CLIP = {"clip": {"train": STEP}}
VP, FLOW, EDM = ({"kind": kind} for kind in ("vp", "flow", "edm"))
ZERO = {"kind": "vp", "zero_terminal_snr": True}
UNIFORM = {"kind": "uniform"}
LEARNED = {"schedule": VP, "levels": UNIFORM, "objective": {"variance": "learned"}, "model": DIT}
DATA = {"path": "p"}

GOOD: list[dict[str, Any]] = [
    {},
    {"schedule": EDM},
    {"schedule": EDM, "objective": {"predicts": "edm"}},
    {"schedule": FLOW, "objective": {"predicts": "velocity"}},
    {"schedule": FLOW, "objective": {"predicts": "x0"}},
    {"schedule": VP, "objective": {"predicts": "eps"}},
    {"schedule": ZERO, "levels": UNIFORM},
    {"schedule": ZERO, "levels": UNIFORM, "objective": {"predicts": "x0"}},
    {"conditions": {"a": {"encoder": "clip"}}, **CLIP},
    {"conditions": {"a": {"encoder": "other/clip"}}},
    {"noisy_clip": {"train": STEP}, **CLIP},
    {"upscale": {"size": 4}},
    {"upscale": {"size": 4}, "weak": NET},
    {"upscale": {"size": 4}, "model": {"network": "UNet2DModel", "train": STEP}},
    {"upscale": {"size": 4}, "data": {**DATA, "kind": "parquet"}},
    LEARNED,
    {**LEARNED, "weak": DIT},
    {"data": OWN, "autoencoder": VAE},
    {"data": {**OWN, "kind": "parquet"}, "autoencoder": VAE},
    {"data": {**OWN, "size": 2}, "autoencoder": {**VAE, "scales": 1}},
    {"data": {**OWN, "size": 4}, "autoencoder": {**VAE, "scales": 2}},
    {"data": {**OWN, "size": 4}, "autoencoder": {**VAE, "widths": [8, 8, 8], "scales": 0}},
    {"data": {**DATA, "vae": "v"}},
    {"data": {**DATA, "vae": "v", "kind": "parquet"}},
    {"data": {**DATA, "reduced": 8}},
    {"data": {"kind": "fashion-mnist"}},
    {"schedule": {"beta_start": 0.02, "beta_end": 0.02}},
    {"model": {**NET, "head": 8}},
    {"model": {**NET, "widths": [16, 8], "head": 8}},
    {"model": {"network": "sequence", "train": STEP}},
    {"model": {"network": "sequence", "head": 999, "widths": [8], "train": STEP}},
    {"model": {**DIT, "config": {"a": 1}}},
    {"model": {**NET, "train": {**STEP, "batch": 4, "accumulate": 4}}},
]
TINY = {**VAE, "network": "AutoencoderTiny"}
DEEP = {**VAE, "network": "AutoencoderDC", "widths": [4, 16]}
GOOD += [
    {"data": OWN, "autoencoder": own}
    for own in (
        {**VAE, "kl": 0.1, "spread": "channel"},
        {**TINY, "groups": 5},
        {**TINY, "spread": "scalar"},
        DEEP,
        {**DEEP, "widths": [3, 12], "latent_channels": 6},
        {**DEEP, "widths": [5, 4]},
    )
]
ALL_BAD: list[tuple[dict[str, Any], str]] = [
    ({"schedule": EDM, "objective": {"predicts": "v"}}, "'edm' goes with schedule.kind 'edm'"),
    ({"schedule": VP, "objective": {"predicts": "edm"}}, "'edm' goes with schedule.kind 'edm'"),
    ({"schedule": FLOW, "objective": {"predicts": "edm"}}, "'edm' goes with schedule.kind 'ed"),
    ({"schedule": VP, "objective": {"predicts": "velocity"}}, "a velocity goes with schedule."),
    ({"schedule": ZERO}, "levels.kind: a logit-normal hardly draws pure noise"),
    ({"schedule": ZERO, "levels": UNIFORM, "objective": {"predicts": "eps"}}, "eps says nothing"),
    ({"conditions": {"a": {"encoder": "clip"}}}, "conditions.a.encoder needs the recipe to train"),
    ({"conditions": {"b": {}, "a": {"encoder": "clip"}}}, "conditions.a.encoder needs the recipe"),
    ({"noisy_clip": {"train": STEP}}, "noisy_clip needs the recipe to train a clip: add a table"),
    ({"upscale": {"size": 4}, "data": {**DATA, "kind": "tensors"}}, "learns pixels; leave vae"),
    ({"upscale": {"size": 4}, "weak": DIT}, "weak.network: a super-resolution stage is a U-Net"),
    ({"upscale": {"size": 4}, "model": DIT}, "model.network: a super-resolution stage is a U-Net"),
    ({**LEARNED, "schedule": FLOW}, "objective.variance: the bound that trains it is a sum over"),
    ({**LEARNED, "levels": {}}, "objective.variance: the bound that trains it is a sum over the"),
    ({**LEARNED, "model": NET}, "model.network: a variance is learned by a network of Diffusers"),
    ({**LEARNED, "model": {"network": "sequence", "train": STEP}}, "model.network: a variance is"),
    ({**LEARNED, "model": {"network": "a:b", "train": STEP}}, "model.network: a variance is lear"),
    ({**LEARNED, "weak": NET}, "weak.network: a variance is learned by a network of Diffusers"),
    ({"data": OWN}, "data.vae = 'autoencoder' needs the recipe to train one: add a table [autoe"),
    ({"data": {**DATA, "kind": "tensors"}, "autoencoder": VAE}, "autoencoder: it learns from im"),
    ({"data": {"kind": "fashion-mnist"}, "autoencoder": VAE}, "learns from images or parquet"),
    ({"data": {**DATA, "vae": "v"}, "autoencoder": VAE}, "autoencoder: nothing would use it; say"),
    ({"data": {**OWN, "size": 9}, "autoencoder": VAE}, "2 widths halve pictures 1 times, which a"),
    ({"data": {**OWN, "size": 6}, "autoencoder": {**VAE, "widths": [8] * 3, "scales": 0}},
     "autoencoder.widths: 3 widths halve pictures 2 times, which a size of 6 does not allow"),
    ({"data": {**OWN, "size": 2}, "autoencoder": VAE}, "autoencoder.scales: pictures of 2 cannot"),
    ({"data": OWN, "autoencoder": {**VAE, "groups": 5}}, "widths must be multiples of groups (5)"),
    ({"data": OWN, "autoencoder": {**TINY, "widths": [8, 8, 16]}}, "one width at all resolutions"
     ", not 8 and 16"),
    ({"data": OWN, "autoencoder": {**DEEP, "kl": 0.1}}, "kl is of AutoencoderKL; AutoencoderDC"),
    ({"data": OWN, "autoencoder": {**DEEP, "spread": "channel"}}, "an AutoencoderDC has no laten"),
    ({"data": OWN, "autoencoder": {**DEEP, "latent_channels": 3}}, "an AutoencoderDC's last widt"
     "h must be a multiple of latent_channels (3), not 16"),
    ({"data": OWN, "autoencoder": {**DEEP, "widths": [4, 32]}}, "and 32 after 4 is not"),
    ({"data": OWN, "autoencoder": {**DEEP, "widths": [3, 6], "latent_channels": 2}}, "and 6 aft"),
    ({"data": OWN, "autoencoder": {**DEEP, "widths": [4, 4, 32]}}, "and 32 after 4 is not"),
    ({"data": {**DATA, "vae": "v", "kind": "shards"}}, "a vae encodes images or parquet, once; da"),
    ({"data": {"kind": "fashion-mnist", "vae": "v"}}, "data of the kind 'fashion-mnist' are taken"),
    ({"data": {"kind": "shards"}}, 'say where the data are: path = "…"'),
    ({"schedule": {"beta_start": 0.021}}, "beta_start must be at most beta_end, not 0.021 and 0"),
    ({"schedule": {"sigma_min": 2.0, "sigma_max": 2.0}}, "sigma_min must be below sigma_max, not"),
    ({"model": {**NET, "widths": [16, 8], "head": 9}}, "head must be at most the last width (8),"),
    ({"model": {**NET, "widths": [8, 10]}}, "widths must be multiples of groups (4), not 10"),
    ({"model": {"network": "sequence", "config": {"a": 1}, "train": STEP}}, "config goes with a c"),
    ({"model": {**NET, "train": {**STEP, "batch": 4, "accumulate": 5}}}, "accumulate parts a batch"
     " of 4, and cannot be 5"),
    ({"model": {**NET, "train": {**STEP, "power": [0.1, 0.26, 0.2]}}}, "at most 0.25, not 0.26"),
    ({"classifier": {"widths": [8, 9], "train": STEP}}, "widths must be multiples of groups (8), "),
]  # fmt: skip


@pytest.mark.parametrize("tables", GOOD, ids=str)
def test_tables_that_go_together(tables):
    recipe(**tables)


@pytest.mark.parametrize(("tables", "line"), ALL_BAD, ids=[line for _, line in ALL_BAD])
def test_tables_that_do_not_go_together(tables, line):
    with pytest.raises(ValueError, match=re.escape(line)) as found:
        recipe(**tables)
    assert "\n" not in str(found.value)


def test_what_a_network_predicts_follows_its_schedule():
    kinds = [recipe(schedule=s).predicts() for s in (VP, FLOW, EDM)]
    assert kinds == ["v", "velocity", "edm"]
    assert recipe(schedule=FLOW, objective={"predicts": "x0"}).predicts() == "x0"


def test_the_code_of_a_recipe_is_that_of_its_networks():
    own = {"network": "pkg:make", "train": STEP}
    content = {"name": "r", "data": DATA, "model": own, "weak": NET, "judge": {**VAE}}
    content["judge"] = {"widths": [8], "train": STEP}
    with pytest.raises(ValueError, match=r"r\.toml: model\.network is made by the code 'pkg:make'"):
        checked(content, "r.toml")
    assert checked(content, "r.toml", trust=True).code() == {"model.network": "pkg:make"}
    assert recipe().code() == {}


def test_parts_are_trained_in_the_order_in_which_they_are_needed():
    part = {"widths": [8], "train": STEP}
    made = recipe(weak=NET, classifier=part, judge=part, **CLIP, noisy_clip={"train": STEP},
                  autoencoder=VAE, data=OWN)  # fmt: skip
    parts = made.parts()
    assert parts[0] == "autoencoder" and parts.index("clip") < parts.index("noisy_clip")
    assert parts.index("clip") < parts.index("model")
    assert made.parts(["model", "judge"]) == [p for p in parts if p in ("model", "judge")]
    assert recipe().parts([]) == [] and recipe().parts() == ["model"]
    with pytest.raises(ValueError, match=r"'r' has no part 'modle' \(did you mean 'model'\?\); i"):
        made.parts(["model", "modle"])


# Mistakes


def test_only_so_many_mistakes_are_listed():
    """Twelve, and how many there are beside."""
    for count, more in ((12, ""), (13, "; and 1 more"), (20, "; and 8 more")):
        tables = {"name": "r", "data": DATA, "model": NET, **{f"x{k:02}": 1 for k in range(count)}}
        with pytest.raises(ValueError, match="unknown key") as found:
            checked(tables, "r.toml")
        text = str(found.value)
        assert text.count("unknown key") == min(count, 12) and text.endswith(more or "'x11'")


@pytest.mark.parametrize(
    ("tables", "line"),
    [
        ({"data": {**DATA, "sise": 3}}, "r.toml: unknown key 'data.sise' (did you mean 'size'?)"),
        ({"conditions": {"a": {"dropuot": 0.1}}},
         "unknown key 'conditions.a.dropuot' (did you mean 'dropout'?)"),
        ({"weak": {**NET, "train": {"stesp": 2}}},
         "missing key 'weak.train.steps'; unknown key 'weak.train.stesp' (did you mean 'steps'?)"),
        ({"data": {}}, "r.toml: data: say where the data are"),
        ({"seed": "x"}, "seed: input should be a valid integer, not 'x'"),
        ({"zzz": 1}, "unknown key 'zzz'"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_key(tables, line):
    with pytest.raises(ValueError, match=re.escape(line) + "$" * ("zzz" in line)):
        recipe(**tables)


# Students


def student(**more: Any) -> Any:
    table = {"teacher": "t", "train": STEP, **more}
    return checked_distillation({"name": "s", "student": table}, "s.toml").student


ALONG = {"method": "trajectory", "steps": 3, "start": 8}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"grid": "karras"},
        {"guidance": "cfg(w)", "scale": [1, 1.001]},
        {"guidance": "cfg(2)"},
        {"steps": 1, "start": 2},
        {"steps": 3, "start": 12},
        {"first": STEP},
        {"method": "guided", "steps": 3, "start": 8},
        {"method": "consistency", "steps": 5, "finest": 5},
        {"method": "meanflow", "steps": 5, "finest": 5},
        {"method": "progressive", "finest": 1},
        {**ALONG, "start": 3},
        {**ALONG, "before": [8, 4]},
        {**ALONG, "visits": [0, 1, 2, 8], "solver": "heun"},
    ],
)
def test_students_that_can_be(more):
    student(**more)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"steps": 4, "start": 4}, "a student of 4 steps needs a teacher of more steps, not of 4"),
        ({"steps": 4, "start": 10}, "10 steps cannot be halved to 4; start must be 4 times a power "
         "of two, e.g. 16"),
        ({"steps": 4, "start": 20}, "20 steps cannot be halved to 4"),
        ({"guidance": "cfg(w)", "scale": [2, 2]}, "scale must be a range [low, high], not [2"),
        ({"guidance": "cfg(w)"}, "guidance 'cfg(w)' leaves its scale w open"),
        ({"guidance": "cfg(2)", "scale": [1, 2]}, "guidance 'cfg(2)' holds no w; write e.g. cfg("),
        ({"solver": "heun"}, "solver, visits and before are for method 'trajectory'"),
        ({"visits": [0, 1]}, "solver, visits and before are for method 'trajectory'"),
        ({"before": [8]}, "solver, visits and before are for method 'trajectory'"),
        ({"method": "guided", "first": STEP}, "first is a stage before the halvings of method 'pr"),
        ({**ALONG, "first": STEP}, "first is a stage before the halvings of method 'progressive'"),
        ({"method": "consistency", "steps": 5, "finest": 4}, "finest (4) must be at least the stu"),
        ({"method": "meanflow", "steps": 5, "finest": 4}, "finest (4) must be at least the stu"),
        ({**ALONG, "start": 2}, "must fall, from at most the teacher's 2, not 3"),
        ({**ALONG, "before": [9]}, "must fall, from at most the teacher's 8, not 9, 3"),
        ({**ALONG, "before": [4, 4]}, "must fall, from at most the teacher's 8, not 4, 4, 3"),
        ({**ALONG, "before": [3]}, "must fall, from at most the teacher's 8, not 3, 3"),
        ({**ALONG, "visits": [0, 1, 8]}, "a student of 3 steps visits 4 levels, not 3; correct v"),
        ({**ALONG, "visits": [0, 1, 2, 3, 8]}, "a student of 3 steps visits 4 levels, not 5; corr"),
    ],
)  # fmt: skip
def test_students_that_cannot_be(more, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        student(**more)


@pytest.mark.parametrize(
    ("more", "stages"),
    [
        ({"steps": 2, "start": 16}, [("student-8", 8), ("student-4", 4), ("student-2", 2)]),
        ({"steps": 3, "start": 6}, [("student-3", 3)]),
        ({"steps": 2, "start": 4, "first": STEP}, [("guided", 4), ("student-2", 2)]),
        ({"method": "guided", "steps": 5}, [("guided", 5)]),
        ({"method": "consistency", "steps": 5}, [("consistency", 5)]),
        ({"method": "meanflow", "steps": 5}, [("meanflow", 5)]),
        ({**ALONG, "before": [8, 5]}, [("student-8", 8), ("student-5", 5), ("student-3", 3)]),
    ],
)
def test_stages_of_a_student(more, stages):
    assert student(**more).stages() == stages


def test_a_student_samples_as_its_teacher_where_nothing_is_given():
    bare: Any = SimpleNamespace(defaults={})
    own: Any = SimpleNamespace(defaults={"grid": "karras", "solver": "heun"})
    assert [student().spacing(m) for m in (bare, own)] == ["uniform", "uniform"]
    assert [student(**ALONG).spacing(m) for m in (bare, own)] == ["log_snr", "karras"]
    assert student(**ALONG, grid="uniform").spacing(own) == "uniform"
    assert [student().walker(m) for m in (bare, own)] == ["dpmpp-2m", "heun"]
    assert student(**ALONG, solver="ddim").walker(own) == "ddim"
    assert student().range_of_scale is None
    assert student(guidance="cfg(w)", scale=[1, 3]).range_of_scale == (1.0, 3.0)


def test_a_distillation_has_a_table_of_its_student(tmp_path):
    file = tmp_path / "r.toml"
    for text, answer in (("[student]\n", True), ("[other]\n", False), ("[", False)):
        file.write_text(text)
        assert is_distillation(file) is answer
    file.write_bytes(b"\xef\xbb\xbf[student]\n")
    assert is_distillation(file) and not is_distillation(tmp_path / "missing")
    file.write_bytes(b"\xff")
    assert not is_distillation(file)


def test_the_column_that_a_classifier_predicts():
    columns: Any = {n: SimpleNamespace(kind=n) for n in ("text", "vector", "class")}
    of = lambda column, columns=columns: classifiers.classifier_column(
        SimpleNamespace(column=column), columns  # type: ignore[arg-type]
    )  # fmt: skip
    assert of(None) == ("vector", columns["vector"]) and of("class") == ("class", columns["class"])
    there = r"their columns are text \(text\), vector \(vector\), class \(class\); correct"
    for name in ("text", "other"):
        with pytest.raises(ValueError, match=f"have no class or vector '{name}'; {there}"):
            of(name)
    with pytest.raises(ValueError, match=r"have no classes or vectors to predict; .* are none; co"):
        of(None, {})
