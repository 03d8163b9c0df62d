"""From a folder of pictures to guided samples on the command line; stopping, going on, and clear
refusals.
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from guidestar import cli
from guidestar.train.recipe import schema as recipes


@pytest.fixture
def photos(tmp_path):
    for k, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            pixels = np.random.default_rng(100 * k + i).integers(
                0, 256, (12, 12, 3), dtype=np.uint8
            )
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    out = capsys.readouterr()
    return stop.value.code, out.out, out.err


@pytest.mark.slow
def test_from_a_folder_to_guided_samples(photos, tmp_path, capsys):
    code, out, _ = run(capsys, "recipe", photos, "--out", tmp_path / "pets.toml", "--steps", 4)
    assert (
        code == 0
        and "54 samples to train on of [3, 12, 12]; columns: label (class, 2 classes)" in out
    )
    text = (tmp_path / "pets.toml").read_text()
    small = (
        text.replace("widths = [24, 48, 72]", "widths = [8, 8]\nhead = 8")
        .replace("widths = [16, 32, 64]", "widths = [8, 8]")
        .replace("batch = 64", "batch = 4")
    )
    small = small.replace('precision = "bfloat16"', "power = [0.1]")
    (tmp_path / "pets.toml").write_text(small)
    assert recipes.read_recipe(tmp_path / "pets.toml").parts() == ["model", "classifier", "judge"]

    code, out, _ = run(
        capsys, "train", tmp_path / "pets.toml", "--dry-run", "--out", tmp_path / "out"
    )
    assert code == 0 and re.search(
        r"model: [\d,]+ parameters; 4 steps of 4, 0.3 passes over the data; about \d+ MB", out
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["batch.png"]

    code, out, err = run(capsys, "train", tmp_path / "pets.toml", "--out", tmp_path / "out")
    assert code == 0 and "the model is in" in out and "samples/s" in err
    assert list((tmp_path / "out" / "previews").glob("model-*.png")) and list(
        (tmp_path / "out" / "tensorboard" / "model").iterdir()
    )
    folder = tmp_path / "out" / "pets"

    code, out, _ = run(
        capsys,
        "sample",
        folder,
        "--cond",
        "all",
        "--guidance",
        "cfg(2)",
        "--steps",
        2,
        "--grid",
        "--out",
        tmp_path / "samples",
    )
    assert code == 0 and sorted(p.name for p in (tmp_path / "samples").iterdir()) == [
        "0000-cat-seed0.png",
        "0001-dog-seed1.png",
        "grid.png",
    ]
    code, out, _ = run(
        capsys,
        "sample",
        folder,
        "--cond",
        "dog",
        "--average",
        "power-0.1",
        "--steps",
        2,
        "--out",
        tmp_path / "power",
    )
    assert code == 0

    code, out, _ = run(
        capsys,
        "evaluate",
        folder,
        "--guidance",
        "cond",
        "--guidance",
        "cfg(2)",
        "--steps",
        2,
        "--seeds",
        "0-7",
        "--out",
        tmp_path / "rows.json",
    )
    assert code == 0 and [
        r["guidance"] for r in json.loads((tmp_path / "rows.json").read_text())
    ] == ["real", "cond", "cfg(2)"]
    code, out, _ = run(capsys, "plan", folder)
    assert code == 0 and "cond" in out


def test_curves_reach_tensorboard(photos, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = tmp_path / "r.toml"
    recipe.write_text(TINY.format(path=photos, steps=3, widths="[8, 8]\nhead = 8"))
    assert run(capsys, "train", recipe, "--out", tmp_path / "out")[0] == 0
    board = EventAccumulator(
        str(tmp_path / "out" / "tensorboard" / "model"), size_guidance={"images": 0}
    )
    board.Reload()
    assert set(board.Tags()["scalars"]) >= {
        "loss",
        "gradient norm",
        "learning rate",
    } and board.Tags()["images"] == ["samples"]
    assert [e.step for e in board.Scalars("loss")] == [1, 2, 3]


TINY = """
name = "tiny"
[data]
kind = "images"
path = "{path}"
size = 12
[model]
widths = {widths}
train = {{ steps = {steps}, batch = 4, warmup = 1 }}
[preview]
every = 3
seeds = 2
steps = 2
guidance = ["cfg(1)", "cfg(3)"]
"""


def digest(path):
    state, whole = torch.load(path, weights_only=True), hashlib.sha256()
    for tensors in (
        state["module"],
        state["averages"]["ema-0.999"]["weights"],
        *state["optimiser"]["state"].values(),
    ):
        for name in sorted(tensors):
            whole.update(torch.as_tensor(tensors[name]).contiguous().numpy().tobytes())
    return state["done"], whole.hexdigest()


@pytest.fixture
def one_thread():
    """As in a process of one thread: with more of them the last bits are others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_signal_saves_and_the_same_command_goes_on(photos, tmp_path, capsys, one_thread):
    recipe = tmp_path / "r.toml"
    text = TINY.format(path=photos, steps=30, widths="[8, 8]\nhead = 8")
    recipe.write_text(text.replace("every = 3", "every = 10"))
    assert run(capsys, "train", recipe, "--out", tmp_path / "whole")[0] == 0
    whole = digest(tmp_path / "whole" / "parts" / "model.pt")
    assert whole[0] == 30
    for number in (signal.SIGTERM, signal.SIGINT):
        out = tmp_path / number.name
        check_stop(recipe, out, number)
        assert run(capsys, "train", recipe, "--out", out)[0] == 0
        assert digest(out / "parts" / "model.pt") == whole


def check_stop(recipe, out, number):
    """Train in a process of its own, and stop it by a signal once it has drawn a preview."""
    command = [sys.executable, "-m", "guidestar", "train", str(recipe), "--out", str(out)]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not (out / "previews").exists() and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "the same command goes on from there" in err, err
    assert 10 <= digest(out / "parts" / "model.pt")[0] < 30


def test_mistakes_are_one_line_and_leave_nothing(photos, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("no picture")
    recipe = tmp_path / "r.toml"
    cases = [
        (("recipe", tmp_path / "none"), 2, r"there is no such file or folder$"),
        (
            ("recipe", tmp_path / "text.txt"),
            2,
            r"a folder of images or \.bvh files, \.parquet",
        ),
        (("train", recipe), 2, r"cannot be read: No such file"),
    ]
    for arguments, code, message in cases:
        found, _, err = run(capsys, *arguments, "--out", tmp_path / "new" / "x")
        assert found == code and re.search(message, err.strip()) and err.count("\n") == 1, err
    recipe.write_text(TINY.format(path=tmp_path / "none", steps=3, widths="[8, 8]\nhead = 8"))
    found, _, err = run(capsys, "train", recipe, "--out", tmp_path / "out")
    assert (
        found == 1
        and err.count("\n") == 1
        and "there is no such folder; check data.path" in err
        and not list((tmp_path / "out" / "parts").iterdir())
    )
    recipe.write_text("existing")
    found, _, err = run(capsys, "recipe", photos, "--out", recipe)
    assert found == 2 and "exists" in err and recipe.read_text() == "existing"


def test_damaged_files_are_no_mistake_of_usage(photos, tmp_path, capsys):
    recipe, out = tmp_path / "r.toml", tmp_path / "out"
    recipe.write_text(TINY.format(path=photos, steps=3, widths="[8, 8]\nhead = 8"))
    (out / "parts").mkdir(parents=True)
    (out / "parts" / "model.pt").write_bytes(b"half a checkpoint")
    code, _, err = run(capsys, "train", recipe, "--out", out)
    assert code == 1 and re.fullmatch(
        r"guidestar: [^\n]*model.pt is not a checkpoint, or a damaged one; remove it to start "
        r"again\n",
        err[err.index("guidestar: ") :],
    )
    (photos / "cat" / "0.png").write_bytes(b"half a picture")
    code, _, err = run(capsys, "train", recipe, "--out", tmp_path / "new")
    assert (
        code == 1
        and "cannot read the image" in err
        and not list((tmp_path / "new" / "parts").iterdir())
    )
    recipe.write_text(
        TINY.format(path="", steps=3, widths="[8, 8]\nhead = 8")
        .replace('"images"', '"fashion-mnist"')
        .replace("size = 12", "")
    )
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03\0\0\0\x09")
    code, _, err = run(
        capsys, "train", recipe, "--data", tmp_path / "idx", "--out", tmp_path / "new"
    )
    assert code == 1 and err.count("\n") == 1 and "train-images-idx3-ubyte" in err


def test_a_loss_that_is_no_number_stops_and_says_what_is_kept(photos, tmp_path, capsys):
    recipe = tmp_path / "r.toml"
    text = TINY.format(path=photos, steps=5, widths="[8, 8]\nhead = 8").replace(
        "warmup = 1", "warmup = 1, rate = 1e30"
    )
    recipe.write_text(text.replace('name = "tiny"', 'name = "tiny"\ncheckpoint_seconds = 1e-9'))
    code, _, err = run(capsys, "train", recipe, "--out", tmp_path / "out")
    kept = tmp_path / "out" / "parts" / "model.pt"
    assert code == 1 and re.search(
        r"guidestar: the (loss|gradient's norm) became \S+ at step \d; the last good checkpoint "
        rf"is intact, {re.escape(str(kept))}\n$",
        err,
    )
    state = torch.load(kept, weights_only=True)
    assert state["done"] >= 1 and all(t.isfinite().all() for t in state["module"].values())
