"""Limits and other numbers that stand on their own, and which values a file may hold: written out,
with the nearest values on either side.
"""

import importlib
import math
from pathlib import Path

import pytest

from guidestar.diffusers.read.settings import LABELS, PIXELS, check_own
from guidestar.guidance import parse
from guidestar.io import documents
from guidestar.model import manifest
from guidestar.sampling import SOLVERS, Heun, TimeTravel

CONSTANTS = {
    "sampling.grids:MOST_STEPS": 10_000,
    "sampling.particles:MOST_PARTICLES": 100_000,
    "core.arguments:MOST_COUNT": 1000,
    "guidance.methods.fdg:MOST_BANDS": 16,
    "guidance.expression:_LONGEST": 100_000,
    "model.samples:_FARTHEST": 1_000_000_000,
    "model.streaming:BATCH": 32,
    "model.manifest:FORMAT": 1,
    "model.manifest:_MOST": 268_435_456,
    "model.checking:_RISEN": 1.2,
    "model.checking:_BETTER": 0.85,
    "model.checking:_MOST": 128,
    "evaluate.diversity:_ROWS": 512,
    "checkpoints.dit:_HEADS": {1152: 16, 1024: 16, 768: 12, 384: 6},
    "train.examine:RHOS": (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0, 80.0),
    "train.recipe.mistakes:_MOST": 12,
    "train.build.limits:MOST_TENSORS": 20_000,
    "train.loop.lock:BEAT": 20.0,
    "data.identity:HASHED": 268_435_456,
    "data.identity:LEAST_HASHED": 64,
    "io.documents:MOST_BYTES": 67_108_864,
    "io.documents:MOST_DEPTH": 64,
    "io.files:LONGEST_NAME": 100,
    "diffusers.read.building:MOST_WHOLE": 10_000_000,
    "diffusers.read.building:MOST_LAYERS": 1000,
    "diffusers.read.building:MOST_TENSORS": 20_000,
    "diffusers.read.pipeline:FLUX_SIZE": 128,
    "diffusers.guide.finite:HUGE": 1e4,
    "apps.demo:STEPS": 20,
    "apps.demo_text:_STEPS": 20,
    "checkpoints.mdm:MDM_FRAMES": 196,
    "cli.motions:DRAWN": 16,
    "cli.results:ON_A_GRID": 1000,
    "diffusers.guide.probe:TOLERANCE": 0.05,
    "diffusers.read.hub:_PATIENCE": 10.0,
    "evaluate.motions:NEAR_FLOOR": 0.05,
    "evaluate.reconstruction:_WINDOW": 11,
    "io.decoding:_BITS": 258,
    "io.decoding:_PHOTOMETRIC": 262,
    "model.cascade:CASCADE_FORMAT": 1,
    "model.checking:_LOWEST": 0.05,
    "model.checking:_HIGHEST": 20.0,
    "model.samples:_PLACE": {"index": 0, "number": 0, "stride": 1},
    "model.upscaling:USUAL_AUGMENTATION": 0.1,
    "model.walking:LARGE_PUSH": 1000.0,
    "motion.body:SHORTEST": 4,
    "motion.bvh:MOST_JOINTS": 1024,
    "motion.bvh:MAX_BYTES": 536_870_912,
    "motion.drawing:_MARGIN": 0.08,
    "motion.drawing:ABOVE": 0.45,
    "motion.features:SLOW": 0.3,
    "motion.features:LOW_HEIGHT": 0.08,
    "motion.rig:STRETCH": 0.01,
    "motion.rotations:_LOCKED": 0.999999999,
    "networks.low_resolution:_FREQUENCIES": 8,
    "networks.memory:MOST_TENSORS": 20_000,
    "sampling.deis:_UNIFORM": {
        1: (),
        2: (-0.5,),
        3: (-16 / 12, 5 / 12),
        4: (-59 / 24, 37 / 24, -9 / 24),
    },
    "sampling.divergence:ROOT_MEAN_SQUARE": 4.0,
    "sampling.divergence:LARGEST": 16.0,
    "sampling.er_sde:_POINTS": 32,
    "sampling.exponential:HIGHEST_ORDER": 4,
    "serve.admission:LOOKED_AT": 16,
    "serve.engine:RECOVERY": 500,
    "serve.replicas.cluster:COUNT_SECONDS": 1.0,
    "serve.replicas.cluster:STARTS": 3,
    "serve.replicas.cluster:ADD_AFTER": 5.0,
    "serve.replicas.cluster:REMOVE_AFTER": 60.0,
    "serve.replicas.engine:MOST_LOST": 5,
    "serve.replicas.engine:PAUSE": 0.2,
    "serve.replicas.engine:ENDING": 5.0,
    "serve.replicas.engine:REMEMBERED": 1000,
    "serve.replicas.replica:ANY": 2_147_483_648,
    "serve.stats:NEW": 0.1,
    "serve.studio.drawing:_WIDTH": 560,
    "serve.studio.drawing:_HEIGHT": 110,
    "serve.studio.explaining:HALF": 0.92,
    "serve.studio.form:MOST_SEEDS": 1000,
    "serve.studio.gallery:MOST": 60,
    "serve.studio.gallery:_MOST_BYTES": 67_108_864,
    "serve.studio.making:FEW": 8,
    "serve.studio.making:PATIENCE": 0.3,
    "serve.studio.page:KEPT": (600, 3600),
    "serve.studio.panel:_MOST_STEPS": 100,
    "serve.studio.panel:MOST_PROMPTS": 100,
    "serve.studio.planning:GRADIENT": 1.0,
    "serve.studio.plotting:MOST_CELLS": 64,
    "serve.studio.plotting:_SIDE": 320,
    "serve.studio.running:REFRESH_SECONDS": 0.25,
    "serve.studio.running:MOST_PREVIEWS": 24,
    "serve.studio.session:_MOST": 500,
    "serve.studio.starts:STRENGTH": 0.6,
    "serve.studio.starts:_MOST_BYTES": 67_108_864,
    "serve.ticket:MAPS": 10,
    "serve.web.a1111_api:PREVIEW_EVERY": 5,
    "serve.web.a1111_api:JUST_RESIZE": 0,
    "serve.web.a1111_api:CROP": 1,
    "serve.web.common:PROBE": 0.5,
    "serve.web.errors:RETRY_AFTER": 5,
    "serve.web.keys:LEAST": 16,
    "serve.web.metrics:LATENCIES": (
        0.01,
        0.025,
        0.05,
        0.1,
        0.25,
        0.5,
        1,
        2.5,
        5,
        10,
        30,
        60,
        120,
        300,
    ),
    "serve.web.run:FETCH": 2.0,
    "train.build.autoencoders:_MOST": 8192,
    "train.examine:MOST_EXAMINED": 4000,
    "train.students.paths:SHARD": 256,
    "train.students.paths:_BATCH": 64,
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_numbers_that_stand_on_their_own(name):
    module, _, constant = name.partition(":")
    assert getattr(importlib.import_module(f"guidestar.{module}"), constant) == CONSTANTS[name]


NAN, INF = math.nan, math.inf
NO_NUMBERS = [NAN, INF, -INF, 1.01e38, True, None, "1", [1]]
KINDS = [
    (documents.whole(3, 5), [3, 4, 5], [2, 6, 3.0, True, None, "4", [4]]),
    (documents.number(), [0, -1e38, 1e38, 2.5, -3], NO_NUMBERS),
    (documents.number(1, 2), [1, 1.5, 2], [0.99, 2.01, *NO_NUMBERS]),
    (documents.number(1, 2, above=True), [1.01, 2], [1, 0.99, 2.01, *NO_NUMBERS]),
    (documents.text, ["", "a"], [None, 1, ["a"]]),
    (documents.flag, [True, False], [0, 1, None, "true"]),
    (documents.choice("a", "b"), ["a", "b"], ["c", "", None, 1, ["a"]]),
    (
        documents.many(documents.whole(1, 9), 1, 3),
        [[1], [1, 2, 9], (4,)],
        [[], [1] * 4, [0], [1, "2"], None, "123", 1, {1: 2}],
    ),
    (documents.many(documents.text), [[], ["a"] * 9], [[1], None, "ab"]),
    (documents.maybe(documents.flag), [None, True], [0, "x"]),
    (LABELS, [{}, {"0": "a"}], [None, [], ["a"], {"0": 1}, {"0": None}]),
    (PIXELS["image_mean"], [[0.5], [-1, 0, 2.0]], [[], [0, 0], [0] * 4, 0.5, [None], ["a"] * 3]),
    (PIXELS["image_std"], [[0.5], [1, 2, 2.0]], [[0], [1, 1, 0], [1, 1], [-1.0], None]),
]


@pytest.mark.parametrize(("kind", "good", "bad"), KINDS, ids=lambda k: getattr(k, "words", None))
def test_kinds_of_values_up_to_their_bounds(kind, good, bad):
    assert [kind.fits(v) for v in good] == [True] * len(good)
    assert [kind.fits(v) for v in bad] == [False] * len(bad)


def test_kinds_say_what_they_are():
    number, whole = documents.number, documents.whole
    assert [k.words for k in (number(), number(1, 2), number(1, above=True), whole(1, 5000))] == [
        "a number",
        "a number from 1 to 2",
        "a number above 1",
        "a whole number from 1 to 5,000",
    ]
    assert documents.many(whole(1, 2)).words == "a list of values, each a whole number from 1 to 2"
    assert documents.many(documents.text, 1, 3).words == "a list of 1 to 3 values, each a text"
    assert documents.many(documents.text, 0, 3).words == "a list of 0 to 3 values, each a text"
    assert documents.many(documents.text, 1).words.startswith("a list of 1 to 1,000,000 values")


def test_names_of_files_and_no_paths():
    good = ["a", "a b", "ä.png", ".hidden", "...", "x" * 255, "é" * 127]
    bad = [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "a:b",
        "a*",
        "a?",
        'a"',
        "<a",
        "a>",
        "a|b",
        "a\nb",
        None,
        3,
    ]
    assert all(map(documents.is_name, good))
    assert not any(map(documents.is_name, [*bad, "x" * 256, "é" * 128]))


SIZE = ([1, 65_536], [0, 65_537, 1.0, None, True])
LAYERS = ([1, 1000], [0, 1001, None])
NUMBERS = ([None, [0.5], [-1, 2.0]], [[], ["a"], 0.5, [NAN]])
SPREADS = ([None, [0.5], [1, 2.0]], [[], [0], [1, -1.0], 0.5])
CLASSIFIER = {
    "classes": ([["a"], ["a", "b"]], ["a", [1], None]),
    "channels": SIZE,
    "widths": ([[1], [65_536] * 32], [[], [1] * 33, [0], [65_537], 8]),
    "layers": LAYERS,
    "groups": SIZE,
    "noise_aware": ([True, False], [0, None]),
    "dropout": ([0, 0.999], [-0.001, 1.0, None]),
    "temperature": ([1e-9, 50], [0, -1.0, None]),
    "rho_max": ([None, 0, 9.5], [-0.1, "1"]),
    "temperatures": (
        [[], [[0.1, 2.0]], [[0.1, 2.0], [0.2, 1.0]]],
        [None, [[0.1]], [[0.1, 2, 3]], [[0, 1.0]], [[1.0, 0]], [[2, 1.0], [1, 1.0]], [[1, 1]] * 2],
    ),
    "outputs": ([None, 2, 1], [0, 65_537, 2.0]),
    "centre": NUMBERS,
    "spread": SPREADS,
}
FILES = {
    "Classifier": ({"classes": ["a", "b"]}, CLASSIFIER),
    "SequenceClassifier": ({"classes": ["a", "b"]}, CLASSIFIER),
    "ClassEncoder": (
        {"classes": ["a"], "width": 4},
        {"classes": ([[], ["a"]], [None, [1]]), "width": SIZE},
    ),
    "LabelEncoder": ({"classes": ["a"]}, {"classes": ([[], ["a"]], ["a", [None]])}),
    "VectorEncoder": (
        {"size": 2, "width": 3},
        {
            "width": SIZE,
            "size": SIZE,
            "mean": ([None, [1, 2.0]], [[1.0], [1, 2, 3], ["a", "b"]]),
            "std": ([None, [1, 2.0]], [[1.0], [1, 0], [1, 2, 3]]),
        },
    ),
    "SequenceTransformer": (
        {"channels": 3},
        {
            "channels": SIZE,
            "length": ([None, 1, 1_000_000], [0, 1_000_001]),
            "width": SIZE,
            "heads": SIZE,
            "patch": SIZE,
            "depth": LAYERS,
            "cross_attention_dim": ([None, 1, 65_536], [0, 65_537]),
        },
    ),
    "LengthEncoder": (
        {"frames": 8},
        {"frames": ([1, 1_000_000], [0, 1_000_001, 2.0]), "least": ([1, 4], [0, None])},
    ),
    "MotionTransformer": (
        {"channels": 3, "length": 8},
        {
            "channels": SIZE,
            "length": ([1, 1_000_000], [0, 1_000_001, None]),
            "width": SIZE,
            "heads": SIZE,
            "depth": LAYERS,
            "inner": ([None, 1, 65_536], [0, 65_537]),
            "text_width": ([None, 1, 65_536], [0, 65_537]),
            "dropout": ([0, 0.999], [-0.001, 1.0, None]),
        },
    ),
    "TextEncoder": (
        {},
        {
            "layer": (["last", "penultimate"], ["first", None, -2]),
            "output": (["states", "pooled", "projected"], ["all", None]),
            "mask": ([True, False], [1, None]),
        },
    ),
    "Conditions": (
        {"names": ["a"]},
        {"names": ([["a"], ["a", "b"]], [[], ["a", "a"], ["a/b"], ["a.b"], [".."], "a", None])},
    ),
}
ROWS = [(c, k, *v) for c, (_, keys) in FILES.items() for k, v in keys.items()]


@pytest.mark.parametrize(("name", "key", "good", "bad"), ROWS)
def test_settings_of_our_own_modules_up_to_their_bounds(name, key, good, bad):
    least = {"_class_name": name, **FILES[name][0]}
    for value in good:
        check_own(Path("config.json"), {**least, key: value})
    for value in bad:
        with pytest.raises(ValueError, match=rf"^config.json: {key} must "):
            check_own(Path("config.json"), {**least, key: value})


def test_settings_that_are_needed_or_go_together():
    for name, (least, _) in FILES.items():
        for key in least:
            given = {"_class_name": name, **{k: v for k, v in least.items() if k != key}}
            with pytest.raises(ValueError, match=f"^config.json: {key} is missing; it must be "):
                check_own(Path("config.json"), given)
    check_own(Path("config.json"), {"_class_name": "AnotherOne", "classes": 3})
    check_own(Path("config.json"), {"classes": 3})
    check_own(Path("config.json"), {"_class_name": ["Classifier"], "classes": 3})
    regressor = {"_class_name": "Classifier", "classes": [], "outputs": 3}
    check_own(Path("config.json"), regressor)
    for key in ("centre", "spread"):
        for fits in ([1.0], [1, 2, 3]):
            check_own(Path("config.json"), {**regressor, key: fits})
        with pytest.raises(ValueError, match=f"{key} must hold 3 numbers, as outputs says, not 2$"):
            check_own(Path("config.json"), {**regressor, key: [1, 2]})
    check_own(
        Path("config.json"), {"_class_name": "Classifier", "classes": ["a"], "centre": [1, 2]}
    )
    with pytest.raises(ValueError, match="classes must hold at least one name, or outputs be"):
        check_own(Path("config.json"), {"_class_name": "Classifier", "classes": []})


def test_a_manifests_values_up_to_their_bounds():
    fits = {key: kind for key, (kind, _) in manifest._KEYS.items()}
    side, most = 1_000_000, 2**28
    for good in ([1], [side], [1, 2, 3, 4], [2**14, 2**14]):
        assert fits["shape"](good) and math.prod(good) <= most
    for bad in ([], [0], [side + 1], [1] * 5, [2**14, 2**14, 2], [1.0], (1,), None, [True]):
        assert not fits["shape"](bad)
    assert fits["scale"]({"mean": [0.0], "std": [1]}) and fits["scale"](
        {"mean": [0, -1], "std": [1e-9, 2]}
    )
    for bad in (
        {"mean": [], "std": []},
        {"mean": [0.0], "std": [0.0]},
        {"mean": [0.0], "std": [1, 1]},
        {"mean": [0.0, 1.0], "std": [1]},
        {"mean": [None], "std": [1]},
        {"mean": 0.0, "std": [1]},
        {"mean": [0.0]},
        [0.0, 1.0],
        None,
    ):
        assert not fits["scale"](bad)
    for key in ("averages", "nets", "classifiers"):
        assert fits[key]([]) and fits[key](["a", "b.c"])
        for bad in (["a", "a"], [".."], ["a/b"], [1], "ab", None, {"a": 1}, [""]):
            assert not fits[key](bad)
    for good in ({}, {"a": {}}, {"a": {"log_scale": 88, "rho_max": None}}, {"a": {"rho_max": 0}}):
        assert fits["clips"](good)
    for bad in (
        *([], {"..": {}}, {"a": []}, {"a": {"log_scale": 89}}, {"a": {"rho_max": -1}}),
        *({"a": {"log_scale": None}}, {"a": {"scale": 1}}, {"a": {}, "b": {"x": 1}}),
    ):
        assert not fits["clips"](bad)
    assert fits["captions"]([]) and fits["captions"](["a", ""]) and fits["defaults"]({})
    assert not any(fits["captions"](v) for v in ("a", [1], ["a", None], None, ("a",)))
    assert not any(fits["defaults"](v) for v in ([], None, "a"))
    for good in ({}, {"1": [3, 0]}, {"2": [2.0, 1e-9, 0.0], "1": [1, 0]}):
        assert fits["grids"](good)
    for bad in (
        [],
        None,
        {"0": [0]},
        {"1": [0]},
        {"1": [2, 1, 0]},
        {"2": [2, 2, 0]},
        {"1": [0, 0]},
        {"1": [2, 1]},
        {"1": [-1, 0]},
        {"1": [math.inf, 0]},
        {"1": [True, 0]},
        {"1": [1, False]},
        {"1": ["2", 0]},
        {"1": (1, 0)},
        {"a": [1, 0]},
        {"²": [2, 1, 0]},
        {"1": [1, 0], "3": [1, 0]},
    ):
        assert not fits["grids"](bad)
    for good in ({}, {"3": {}}, {"3": {"guidance": "g"}, "4": {"solver": "s", "guidance": "g"}}):
        assert fits["by_steps"](good)
    for bad in ([], None, {"3": ["solver"]}, {"3": "g"}, {"3": {"steps": 2}}, {"3": {}, "4": []}):
        assert not fits["by_steps"](bad)
    assert [manifest._LOG_SCALE.fits(v) for v in (-88, 88, -88.1, 88.1)] == [True, True] + [
        False
    ] * 2


# Order of convergence, whether it draws noise, and whether it takes split predictions.
KNOWN_SOLVERS = {
    "ddim": (1, False, True),
    "ddpm": (1, True, True),
    "dpmpp-2m": (2, False, True),
    "sde-dpmpp-2m": (2, True, True),
    "heun": (2, False, False),
}


@pytest.mark.parametrize("name", KNOWN_SOLVERS)
def test_what_a_solver_is(name):
    solver = SOLVERS[name]()
    assert (solver.order, solver.stochastic, solver.accepts_split) == KNOWN_SOLVERS[name]


def test_a_key_that_comes_twice_is_named(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1, "b": 2, "c": {"d": 3}, "b": 4}')
    with pytest.raises(ValueError, match="'b'") as caught:
        documents.read_json(tmp_path / "a.json")
    assert "'a'" not in str(caught.value)


def test_counts_of_tfg_up_to_their_bounds():
    assert parse("tfg(1, iterations=0, samples=1)").terms[0].iterations == 0
    for odd in ("iterations=-1", "samples=0"):
        with pytest.raises(ValueError, match="tfg"):
            parse(f"tfg(1, {odd})")


def test_a_little_churn_draws_noise_and_travel_stays_within_the_run():
    assert Heun(churn=0.01).stochastic and not Heun(churn=0.0).stochastic
    for where in ((0.0, 1.0), (0.0, 0.1), (0.9, 1.0)):
        TimeTravel(where=where)
    for where in ((0.0, 1.01), (0.0, 1.5), (-0.01, 0.5), (0.5, 0.5), (0.6, 0.5)):
        with pytest.raises(ValueError, match="where"):
            TimeTravel(where=where)


LIST = "diffusers.read.scheduler:_SETTINGS"
SHIFTS = "diffusers.read.pipeline:_SHIFTS"
IN_TABLES = [
    (LIST, "prediction_type beta_schedule timestep_type", [None, "a"], [1, ["a"]]),
    (LIST, "use_flow_sigmas rescale_betas_zero_snr invert_sigmas", [None, True, False], [0, "a"]),
    (LIST, "shift flow_shift sigma_data", [1e-9, 1e6], [None, 0, -1, 1_000_000.5]),
    (LIST, "sigma_min sigma_max snr_shift_scale", [None, 0, 1e6], [-1e-9, 1_000_000.5, "1"]),
    (LIST, "beta_start beta_end", [0, 1], [None, -1e-9, 1.001]),
    (LIST, "num_train_timesteps", [1, 1_000_000], [None, 0, 1_000_001, 1.0]),
    (LIST, "trained_betas", [None, [0], [1] * 1_000_000], [[], [1.001], [0] * 1_000_001, 0.5]),
    (SHIFTS, "use_dynamic_shifting", [True, False], [None, 1]),
    (SHIFTS, "time_shift_type", ["exponential", "linear"], ["other", None]),
    (SHIFTS, "base_shift max_shift", [None, 0, 1000], [-1e-9, 1000.5]),
    (SHIFTS, "base_image_seq_len max_image_seq_len", [None, 1, 10_000_000], [0, 10_000_001]),
    ("motion.body:_KNOWN", "rate", [1e-9, 1000], [0, 1000.5, None]),
    ("motion.body:_KNOWN", "size", [1e-9, 1e38], [0, -1, None]),
    ("motion.body:_KNOWN", "up", ["Y", "Z"], ["X", None]),
    ("motion.body:_KNOWN", "root bvh", ["", "a"], [None, 1]),
]


@pytest.mark.parametrize(("where", "names", "good", "bad"), IN_TABLES)
def test_values_of_files_up_to_their_bounds(where, names, good, bad):
    module, _, table = where.partition(":")
    known = getattr(importlib.import_module(f"guidestar.{module}"), table)
    for name in names.split():
        assert [known[name].fits(v) for v in good] == [True] * len(good), name
        assert [known[name].fits(v) for v in bad] == [False] * len(bad), name


def test_tables_of_files_are_written_out_whole():
    for where in dict.fromkeys(where for where, *_ in IN_TABLES):
        module, _, table = where.partition(":")
        known = getattr(importlib.import_module(f"guidestar.{module}"), table)
        assert {n for w, names, *_ in IN_TABLES if w == where for n in names.split()} == set(known)
