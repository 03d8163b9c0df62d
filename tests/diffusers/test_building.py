"""How a folder's parts are built: what is counted and checked before, whose names they have."""

import json
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from guidestar.diffusers.read.building import build_module, check_numbers, one_budget
from guidestar.diffusers.read.encoders import _names, _unet_labels
from guidestar.diffusers.read.towers import fitting, renamed

BYTES = 1000 * 1000 * 4 + 1000 * 4


def linear():
    return nn.Linear(1000, 1000)


@pytest.fixture
def room(monkeypatch):
    return lambda size: monkeypatch.setenv("GUIDESTAR_MEMORY", f"{size / 1e9:.9f}")


def test_a_module_is_checked_before_it_is_built():
    seen = []
    module = build_module(linear, "w", torch.float32, seen.append)
    (sketch,) = seen
    assert type(sketch) is nn.Linear and sketch.weight.device.type == "meta"
    assert module is not sketch and module.weight.device.type == "cpu"

    def refuse(sketch):
        raise ValueError("no")

    made = []
    with pytest.raises(ValueError, match=r"^no$"):
        build_module(lambda: made.append(1) or linear(), "w", torch.float32, refuse)
    assert made == [1]  # the sketch alone


def test_a_constructor_that_fails_is_refused_in_one_line():
    def fails():
        raise KeyError("odd\nname")

    with pytest.raises(ValueError, match=r"^w: no \('odd.*name'\)$"):
        build_module(fails, "w: no", torch.float32)


def test_what_reads_numbers_as_it_is_built_is_built_in_earnest_alone(room):
    """On the device "meta" there are none."""

    def reads():
        module = linear()
        module.first = float(module.weight[0, 0])
        return module

    seen = []
    assert (
        isinstance(build_module(reads, "w", torch.float32, seen.append).first, float) and not seen
    )
    room(BYTES - 1)
    with pytest.raises(ValueError, match=r"^w: its networks would take at least 0.004004 GB"):
        build_module(reads, "w", torch.float32)


def test_parts_of_one_budget_are_counted_together(room):
    room(2 * BYTES)
    with one_budget():
        build_module(linear, "one", torch.float32)
        build_module(linear, "two", torch.float32)
        with pytest.raises(
            ValueError, match=r"^three: .* at least 0.01201 GB, and there are 0.008"
        ):
            build_module(linear, "three", torch.float32)
    for name in "abc":  # each for itself
        build_module(linear, name, torch.float32)
    with one_budget():
        build_module(linear, "one", torch.float32)
        with one_budget():
            build_module(linear, "two", torch.float32)


def test_numbers_that_are_not_real_keep_their_width(room):
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("ids", torch.zeros(1000, dtype=torch.int64))
            self.register_buffer("none", None)
            self.real = nn.Parameter(torch.zeros(1000))
            self.same = self.real

    for dtype, size in ((torch.float32, 12_000), (torch.float16, 10_000), (torch.float64, 16_000)):
        room(size)
        build_module(Counted, "w", dtype)
        room(size - 1)
        with pytest.raises(ValueError, match="would take at least"):
            build_module(Counted, "w", dtype)


def test_what_another_thread_builds_is_not_counted(room):
    room(BYTES)

    def beside():
        thread = threading.Thread(target=linear)
        thread.start()
        thread.join()
        return linear()

    build_module(beside, "w", torch.float32)


def test_whole_numbers_of_settings_up_to_their_bounds():
    file = Path("config.json")
    check_numbers(file, {"a": 10_000_000, "b": [-10_000_000, "x", 1e12], "num_layers": 1000})
    check_numbers(file, {"c": {"depth": 1000}, "down_blocks": (1000,), "d": True, "e": None})
    for key, value, said in (
        ("a", 10_000_001, "a must be from -10,000,000 to 10,000,000, not 10000001"),
        ("a", [1, -10_000_001], "a must be from -10,000,000 to 10,000,000, not -10000001"),
        ("num_layers", 1001, "num_layers must be from -1,000 to 1,000, not 1001"),
        ("c", {"depth": 1001}, "c.depth must be from -1,000 to 1,000, not 1001"),
        ("blocks", [[2, 1001]], "blocks must be from -1,000 to 1,000, not 1001"),
    ):
        with pytest.raises(ValueError, match=f"^config.json: {said}$"):
            check_numbers(file, {key: value})


@pytest.mark.parametrize(
    ("length", "most", "fits"),
    [
        (24, 24, True),
        (23, 24, True),
        (25, 24, False),
        (23.0, 24, True),
        (23.5, 24, False),
        (10**30, None, True),
        (10**30, 24, False),
    ],
)
def test_a_tokenizers_texts_are_as_long_as_the_encoder_takes(length, most, fits):
    tokenizer = SimpleNamespace(model_max_length=length, get_vocab=lambda: {"a": 0, "b": 7})
    config = SimpleNamespace(
        vocab_size=8, **({} if most is None else {"max_position_embeddings": most})
    )
    encoder = SimpleNamespace(config=config)
    if fits:
        assert fitting(tokenizer, encoder, Path("t")) is tokenizer
    else:
        with pytest.raises(ValueError, match="model_max_length must be a whole number up to"):
            fitting(tokenizer, encoder, Path("t"))
    config.vocab_size = 7
    if fits:
        with pytest.raises(ValueError, match=r"a token of the number 7, .* only 7 tokens$"):
            fitting(tokenizer, encoder, Path("t"))


def test_clips_tensors_have_the_names_of_this_version():
    given = {
        "text_model.embeddings.position_ids": 0,
        "embeddings.position_ids": 1,
        "text_model.final.weight": 2,
        "embeddings.token.weight": 3,
        "text_projection.weight": 4,
    }
    plain = SimpleNamespace(state_dict=lambda: {"final.weight": 0})
    inner = SimpleNamespace(state_dict=lambda: {"text_model.final.weight": 0, "text_projection": 0})
    short = {"final.weight": 2, "embeddings.token.weight": 3, "text_projection.weight": 4}
    assert renamed(given, plain) == short
    assert renamed(given, inner) == {
        k if k.startswith("text_projection") else f"text_model.{k}": v for k, v in short.items()
    }


@pytest.mark.parametrize("where", ["index", "network"])
def test_names_of_classes_are_taken_where_there_are_exactly_so_many(tmp_path, where):
    network = SimpleNamespace(config={})

    def give(labels):
        if where == "network":
            network.config["id2label"] = labels
        else:
            (tmp_path / "model_index.json").write_text(json.dumps({"id2label": labels}))

    assert _names(tmp_path, network, 2) is None
    give({"0": "a", "1": "b"})
    assert _names(tmp_path, network, 2) == ("a", "b")
    assert _names(tmp_path, network, 3) is None and _names(tmp_path, network, 1) is None
    # Of three rows two have names: the third is for no class. Of two, each has its name.
    three, two = _unet_labels(tmp_path, network, 3), _unet_labels(tmp_path, network, 2)
    assert (three.classes, three.null_index) == (("a", "b"), 2)
    assert two.classes == ("a", "b") and two.null_index == type(two)(classes=("a",)).null_index
    assert _unet_labels(tmp_path, network, 5).classes == ("0", "1", "2", "3", "4")
    give({"1": "a", "2": "b"})
    assert _names(tmp_path, network, 2) is None
    if where == "network":
        give(["a", "b"])
        assert _names(tmp_path, network, 2) is None
        (tmp_path / "model_index.json").write_text(json.dumps({"id2label": {"0": "x", "1": "y"}}))
        give({"0": "a", "1": "b"})
        assert _names(tmp_path, network, 2) == ("x", "y")  # the index comes first
