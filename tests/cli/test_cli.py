"""The command line: the main job, and one clear line for everything that can be wrong."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import guidestar as gs
from guidestar import cli
from guidestar.apps import demo, demo_text
from guidestar.model.shipped import SHIPPED

MODEL = SHIPPED / "fashion-mnist"


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def refused(capsys, code, *arguments, says=()):
    got, _, err = run(capsys, *arguments)
    message = [line for line in err.splitlines() if line.startswith("guidestar: ")]
    assert got == code, err
    assert len(message) == 1 and "Traceback" not in err
    for words in says:
        assert words in err, err


def pixels(path):
    with Image.open(path) as picture:
        return torch.tensor(list(picture.get_flattened_data()))


@pytest.mark.slow
def test_demo_makes_pictures_and_figures(capsys, tmp_path, monkeypatch):
    assert demo.STEPS == demo_text._STEPS == 20
    monkeypatch.setattr(demo, "STEPS", 10)  # half of them show it as well
    monkeypatch.setattr(demo_text, "_STEPS", 10)
    code, out, _ = run(capsys, "demo", "--out", tmp_path, "--seeds", 1)
    models = json.loads((tmp_path / "demo.json").read_text())["models"]
    assert code == 0 and "cfg(4)" in out
    rows = models["fashion-mnist"]
    assert {r["how"] for r in rows} == {
        "unguided",
        "by the classifier",
        "by its condition",
        "by both",
        "student of cfg(2, interval=(0.1, 1)), 4 steps",
    }
    (student,) = (r for r in rows if r["how"].startswith("student"))
    assert student["nfe"] == 4 and student["accuracy"] >= 0.7
    by = {r["expression"]: r for r in rows}
    assert by["uncond"]["nfe"] == 10 and by["cfg(4)"]["nfe"] == 20 and by["cfg(1)"]["nfe"] == 10
    assert by["cfg(4)"]["accuracy"] >= 0.8
    assert by["uncond"]["accuracy"] <= 0.5
    told = {r["expression"]: r for r in models["emoji"]}
    assert {r["how"] for r in told.values()} == {"unguided", "by CLIP", "by its caption", "by both"}
    assert told["cfg(4)"]["accuracy"] > 3 * max(told["uncond"]["accuracy"], 1 / 8), (
        "an independent CLIP finds the prompts in the guided pictures"
    )
    for name in ("demo.png", "steps.png", "text.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
    assert not list(tmp_path.glob("*.writing"))


def test_sample_writes_pictures_that_carry_their_run_and_repeat_it(capsys, tmp_path):
    first = [
        "sample",
        "fashion-mnist",
        "--cond",
        "ankle boot",
        "--cond",
        "1",
        "--num",
        2,
        "--seed",
        5,
        "--steps",
        6,
    ]
    first += ["--guidance", "cfg(3) + classifier(1)", "--grid"]
    assert run(capsys, *first, "--out", tmp_path / "a")[0] == 0
    made = sorted((tmp_path / "a").glob("0*.png"))
    assert [p.name for p in made] == [
        f"{i:04d}-{c}-seed{5 + i}.png"
        for i, c in enumerate(["ankle-boot", "ankle-boot", "trouser", "trouser"])
    ]
    assert (tmp_path / "a" / "grid.png").is_file()
    assert run(capsys, "sample", "--like", made[2], "--out", tmp_path / "b")[0] == 0
    for path in made:
        assert pixels(path).equal(pixels(tmp_path / "b" / path.name))


def test_one_sample_alone_is_nearly_the_same_as_in_its_batch(capsys, tmp_path):
    options = ["--steps", 8, "--guidance", "cfg(3)"]
    run(
        capsys,
        "sample",
        "fashion-mnist",
        "--cond",
        "all",
        "--seed",
        0,
        *options,
        "--out",
        tmp_path / "a",
    )
    run(
        capsys,
        "sample",
        "fashion-mnist",
        "--cond",
        "bag",
        "--seed",
        8,
        *options,
        "--out",
        tmp_path / "b",
    )
    a, b = (pixels(next((tmp_path / folder).glob("*-bag-seed8.png"))) for folder in "ab")
    assert int((a - b).abs().max()) <= 1
    assert float((a != b).double().mean()) <= 0.003


def test_models_and_plan(capsys):
    assert "fashion-mnist" in run(capsys, "models")[1]
    code, out, _ = run(
        capsys, "plan", "fashion-mnist", "--guidance", "cfg(3, interval=(0.5, 2))", "--steps", 10
    )
    assert code == 0
    steps = out.splitlines()[1:-1]
    rhos = [float(line.split()[1]) for line in steps]
    assert [float(line.split()[2]) for line in steps] == [
        2 if 0.5 < rho <= 2 else 1 for rho in rhos
    ]


def test_methods_are_listed_and_told(capsys):
    code, out, _ = run(capsys, "methods")
    rows = out.splitlines()
    assert code == 0 and max(map(len, rows)) <= 80
    assert [row.split()[0] for row in rows[: rows.index("")] if not row.startswith(" ")] == sorted(
        gs.METHODS
    )
    apg = " ".join(out.partition("\napg")[2].partition("\nautoguidance")[0].split())
    assert apg == (
        "Adaptive projected guidance: cfg without the part of its push that over-saturates. 2 "
        "evaluations a step. 2410.02416"
    )
    code, out, _ = run(capsys, "methods", "apg")
    assert (
        code == 0 and "Adaptive projected guidance" in out and "@misc{sadat2024eliminating," in out
    )
    assert (
        out.startswith("apg(scale, eta=0, momentum=-0.5, radius=None, negative=None)")
        and "D̂ = c + (s − 1)(Δ⊥ + η Δ∥)" in out
    )
    refused(capsys, 2, "methods", "agp", says=["unknown method 'agp'", "apg"])


USAGE = {
    "unknown class": (["--cond", "hat"], ["unknown class 'hat'", "ankle boot"]),
    "class out of range": (["--cond", "10"], ["unknown class '10'"]),
    "unknown method": (["--cond", "bag", "--guidance", "cgf(3)"], ["did you mean 'cfg'", "^"]),
    "typo in an argument": (
        ["--cond", "bag", "--guidance", "cfg(3, intervall=(0, 1))"],
        ["intervall", "^"],
    ),
    "code": (["--cond", "bag", "--guidance", "__import__('os').system('true')"], ["guidance", "^"]),
    "infinite scale": (["--cond", "bag", "--guidance", "cfg(inf)"], ["finite"]),
    "huge scale": (["--cond", "bag", "--guidance", "cfg(1e999)"], ["finite"]),
    "unknown solver": (
        ["--cond", "bag", "--solver", "euler2"],
        ["unknown solver 'euler2'", "ddim"],
    ),
    "unknown grid": (["--cond", "bag", "--levels", "even"], ["unknown grid 'even'"]),
    "no steps": (["--cond", "bag", "--steps", "0"], ["steps", "0"]),
    "too many steps": (["--cond", "bag", "--steps", "100000"], ["steps", "100000"]),
    "no samples": (["--cond", "bag", "--num", "0"], ["--num"]),
    "guidance without condition": (["--guidance", "cfg(3)"], ["no condition was given"]),
    "two bases": (["--cond", "bag", "--guidance", "cond + cfgpp(0.6)"], ["cfgpp", "uncond"]),
    "solver that cannot split": (
        ["--cond", "bag", "--guidance", "cfgpp(0.6)", "--solver", "heun"],
        ["cfgpp", "heun", "ddim"],
    ),
    "unknown network": (["--cond", "bag", "--guidance", "classifier(1, net='judge2')"], ["judge2"]),
    "unknown option": (["--stps", "3"], ["--stps"]),
    "option that is no number": (["--steps", "many"], ["--steps"]),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage_errors(capsys, tmp_path, case):
    options, says = USAGE[case]
    refused(capsys, 2, "sample", "fashion-mnist", *options, "--out", tmp_path / "out", says=says)
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_unknown_model_and_command(capsys, tmp_path):
    refused(capsys, 2, "sample", "fashion-mints", says=["fashion-mints", "fashion-mnist"])
    refused(capsys, 2, "smaple", says=["smaple"])
    refused(
        capsys,
        2,
        "evaluate",
        "fashion-mnist",
        "--guidance",
        "cfg(1)",
        "--seeds",
        "9-3",
        says=["9-3"],
    )
    refused(capsys, 2, "train", tmp_path / "none.toml", says=["none.toml"])


def test_pictures_without_settings(capsys, tmp_path):
    Image.new("L", (28, 28)).save(tmp_path / "plain.png")
    refused(
        capsys,
        2,
        "sample",
        "--like",
        tmp_path / "plain.png",
        says=["plain.png", "no guidestar settings"],
    )
    (tmp_path / "text.png").write_text("not a picture")
    refused(capsys, 2, "sample", "--like", tmp_path / "text.png", says=["text.png"])
    refused(capsys, 2, "sample", "--like", tmp_path / "missing.png", says=["missing.png"])


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    return tmp_path / "model"


def weights(folder):
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def damage(folder, how):
    path = weights(folder)
    tensors = load_file(path)
    name = "conv_in.weight"
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif how == "corrupt":
        path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])
    elif how == "wrong shape":
        save_file({**tensors, name: tensors[name][:-1].clone()}, path)
    elif how == "lacking":
        save_file({k: v for k, v in tensors.items() if k != name}, path)
    elif how == "missing":
        path.unlink()


@pytest.mark.parametrize("how", ["truncated", "corrupt", "wrong shape", "lacking", "missing"])
def test_damaged_weights(capsys, copied, how):
    damage(copied, how)
    refused(
        capsys, 1, "sample", copied, "--cond", "bag", says=["diffusion_pytorch_model.safetensors"]
    )


def test_weights_that_are_not_numbers_name_pass_and_step(capsys, copied, tmp_path):
    tensors = load_file(weights(copied))
    tensors["conv_out.bias"] = tensors["conv_out.bias"] * float("nan")
    save_file(tensors, weights(copied))
    refused(
        capsys,
        1,
        "sample",
        copied,
        "--cond",
        "bag",
        "--steps",
        3,
        "--out",
        tmp_path / "out",
        says=["not finite", "'main'", "step 0"],
    )
    assert not list((tmp_path / "out").glob("*"))


def test_unwritable_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(
        capsys,
        1,
        "sample",
        "fashion-mnist",
        "--cond",
        "bag",
        "--out",
        tmp_path / "file" / "out",
        says=["cannot write"],
    )
    refused(capsys, 1, "demo", "--out", tmp_path / "file", says=["cannot write"])


def test_help_is_quick_and_loads_no_torch():
    code = (
        "import sys, guidestar.cli; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ}).returncode
        == 0
    )


def test_module_runs():
    done = subprocess.run(
        [sys.executable, "-m", "guidestar", "models"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0 and "fashion-mnist" in done.stdout


def test_recipes_name_a_misspelt_key(capsys, tmp_path):
    text = (Path(__file__).parents[2] / "recipes" / "fashion-mnist.toml").read_text()
    (tmp_path / "typo.toml").write_text(text.replace("condition_dropout", "condition_droput"))
    refused(
        capsys,
        2,
        "train",
        tmp_path / "typo.toml",
        "--out",
        tmp_path / "out",
        says=["condition_droput"],
    )
    assert not (tmp_path / "out").exists()


def test_without_a_condition_nothing_guides(capsys, tmp_path):
    code, out, _ = run(capsys, "sample", "fashion-mnist", "--steps", 2, "--out", tmp_path)
    assert code == 0 and "uncond, NFE 2" in out


def test_like_takes_no_options_of_a_new_run(capsys, tmp_path):
    refused(capsys, 2, "sample", "--like", tmp_path / "x.png", "--steps", 3, says=["--like"])


@pytest.mark.parametrize("target", ["99", "-1", "''", "[1, 2]"])
def test_targets_that_do_not_fit(capsys, tmp_path, target):
    guidance = f"classifier(3, target={target})"
    refused(
        capsys,
        2,
        "sample",
        "fashion-mnist",
        "--cond",
        "all",
        "--steps",
        2,
        "--guidance",
        guidance,
        "--out",
        tmp_path / "out",
        says=["give one" if "[" in target else "no class"],
    )


def test_demo_without_a_judge(capsys, copied, tmp_path):
    shutil.rmtree(copied / "judge")
    refused(capsys, 2, "demo", "--model", copied, "--out", tmp_path / "out", says=["judge"])
