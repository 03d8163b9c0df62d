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
    "train.recipe.schema:_MOST": 12,
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
