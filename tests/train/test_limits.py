"""A recipe that asks for more than a machine has is refused before anything is built."""

import time

import pytest
import torch
from torch import nn

from guidestar.networks.memory import available_memory
from guidestar.train import run
from guidestar.train.build.limits import TooLarge, check_batch, count_memory, within_memory
from guidestar.train.recipe import schema as recipes
from helpers.recipes import use_six_pictures

TEXT = """
name = "small"
seed = 0
keep_checkpoints = 2
[data]
kind = "fashion-mnist"
size = 32
shuffle = 10
[schedule]
num_train_timesteps = 1000
[model]
{network}
train = {{ steps = 4, batch = 2, accumulate = 1, warmup = 1 }}
[classifier]
widths = [8]
layers = 1
train = {{ steps = 4, batch = 2 }}
[preview]
every = 2
seeds = 1
steps = 2
[export]
steps = 3
"""
UNET = "widths = [8]\nhead = 8\nlayers = 1"
SEQUENCE = 'network = "sequence"\nlayers = 1\nwidth = 8\nheads = 1\npatch = 1'


def read(tmp_path, *edits, network=UNET):
    text = TEXT.format(network=network)
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    (tmp_path / "r.toml").write_text(text)
    return recipes.read_recipe(tmp_path / "r.toml")


COUNTS = [
    "seed = 0",
    "keep_checkpoints = 2",
    "size = 32",
    "shuffle = 10",
    "num_train_timesteps = 1000",
]
COUNTS += [
    "steps = 4",
    "batch = 2",
    "accumulate = 1",
    "warmup = 1",
    "seeds = 1",
    "steps = 2",
    "steps = 3",
]


@pytest.mark.parametrize("line", [*COUNTS, "layers = 1", "head = 8", "widths = [8]"])
@pytest.mark.parametrize("value", [10**10, 2**63, 10**30])
def test_numbers_without_end_are_refused_by_name(tmp_path, line, value):
    key = line.split(" =")[0]
    with pytest.raises(ValueError, match=key) as caught:
        read(tmp_path, (line, f"{key} = [{value}]" if "[" in line else f"{key} = {value}"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("line", ["layers = 1", "width = 8", "heads = 1", "patch = 1"])
def test_numbers_without_end_of_a_sequence_are_refused(tmp_path, line):
    with pytest.raises(ValueError, match=line.split(" =")[0]):
        read(tmp_path, (line, line.split(" =")[0] + " = 1000000000"), network=SEQUENCE)


@pytest.fixture
def little(monkeypatch):
    use_six_pictures(monkeypatch, 32)
    monkeypatch.setenv("GUIDESTAR_MEMORY", "1")


WIDE = (
    'network = "UNet2DModel"\nconfig = {{ block_out_channels = [65536], layers_per_block = '
    '1000, down_block_types = ["DownBlock2D"], up_block_types = ["UpBlock2D"] }}'
)


@pytest.mark.parametrize(
    ("edits", "network"),
    [
        ([], "widths = [65536, 65536]\nhead = 8\nlayers = 1000"),
        ([], WIDE.format()),
        ([("widths = [8]\nlayers = 1", "widths = [65536]\nlayers = 1000")], UNET),
        ([("batch = 2", "batch = 1000000")], UNET),
    ],
    ids=["unet", "Diffusers", "classifier", "batch"],
)
def test_what_does_not_fit_is_refused_in_seconds_and_without_the_memory(
    tmp_path, little, edits, network
):
    start = time.monotonic()
    with pytest.raises(TooLarge, match="GB") as caught:
        run.train(
            read(tmp_path, *edits, network=network),
            tmp_path / "out",
            lambda *_: pytest.fail("it trained"),
        )
    assert time.monotonic() - start < 20 and "\n" not in str(caught.value)


def test_copies_are_counted_to_the_byte():
    one = 4 * (3 * 5 + 5)
    for copies in (1, 5):
        with count_memory(copies, most=one * copies):
            nn.Linear(3, 5)
        with pytest.raises(TooLarge), count_memory(copies, most=one * copies - 1):
            nn.Linear(3, 5)
    nn.Linear(3, 5)  # and no longer after it


def test_buffers_are_held_once():
    parameters, buffers = 4 * 2 * 8, 4 * 2 * 8 + 8  # running mean and variance, and an int64
    with count_memory(5, most=5 * parameters + buffers):
        nn.BatchNorm1d(8)
    with pytest.raises(TooLarge), count_memory(5, most=5 * parameters + buffers - 1):
        nn.BatchNorm1d(8)


def test_counting_changes_no_weight():
    torch.manual_seed(3)
    wanted = nn.Linear(3, 5)
    torch.manual_seed(3)
    found = within_memory(lambda: nn.Linear(3, 5), 5)
    assert (
        torch.equal(wanted.weight, found.weight)
        and torch.equal(wanted.bias, found.bias)
        and found.weight.device.type == "cpu"
    )


def test_what_cannot_be_built_without_memory_is_counted_as_it_is_built(monkeypatch):
    def make():
        assert nn.Linear(3, 5).weight.device.type == "cpu"
        return nn.Linear(3, 5)

    assert within_memory(make, 5).in_features == 3
    monkeypatch.setenv("GUIDESTAR_MEMORY", "1e-7")
    with pytest.raises(TooLarge):
        within_memory(make, 5)


def test_a_batch_is_counted_to_the_byte(monkeypatch):
    monkeypatch.setenv("GUIDESTAR_MEMORY", "1e-6")
    check_batch(10, 100)
    with pytest.raises(TooLarge, match="11 samples at once"):
        check_batch(11, 100)


def test_a_machine_has_some_memory():
    assert 10**8 < available_memory() < 10**15
    assert available_memory(gpu=True) <= available_memory()
