"""Numbers that are not finite end a run with the name of what made them, on every way out."""

import copy
import pickle

import pytest
import torch

import guidestar as gs
from guidestar.apps.strip import rising
from guidestar.cli import main


@pytest.fixture(scope="module")
def model():
    return gs.load("fashion-mnist")


def nan_at(step):
    """A denoiser that is wrong from some step on."""
    grid = gs.log_snr(gs.VP.linear(), 4)

    def denoiser(x, level, cond):
        late = float(torch.as_tensor(level.rho).flatten()[0]) <= float(grid[step].rho)
        return x * torch.nan if late else 0 * x

    return denoiser, grid


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp-2m", "sde-dpmpp-2m"])
def test_sample_and_trajectory_refuse_them(solver):
    denoiser, grid = nan_at(3)
    guided = gs.Guided("uncond", denoiser)
    with pytest.raises(FloatingPointError, match=r"2 of 2 samples are not finite \(number 0, 1\)"):
        gs.sample(guided, grid=grid, seeds=[0, 1], shape=(3,), solver=solver)
    with pytest.raises(FloatingPointError, match="not finite"):
        list(
            gs.trajectory(guided, torch.zeros(2, 3), grid=grid, solver=solver, draw=gs.Draw([0, 1]))
        )


def test_one_bad_sample_is_numbered():
    def denoiser(x, level, cond):
        return torch.where(torch.arange(3)[:, None] == 1, torch.nan, x)

    with pytest.raises(FloatingPointError, match=r"1 of 3 samples are not finite \(number 1\)"):
        gs.sample(
            gs.Guided("uncond", denoiser),
            grid=gs.log_snr(gs.VP.linear(), 2),
            seeds=[0, 1, 2],
            shape=(2,),
        )


@pytest.mark.parametrize(
    ("expression", "term"), [("cfg(1e30)", "cfg"), ("cfg(2) + classifier(1e36)", "classifier")]
)
def test_a_scale_that_is_too_large_is_to_blame_and_not_the_network(model, expression, term):
    with pytest.raises(
        FloatingPointError,
        match=rf"at step \d+ the push of '{term}\(.*' was .* as large as the samples; lower its "
        r"scale",
    ):
        model.sample("bag", guidance=expression, steps=6)
    with pytest.raises(FloatingPointError, match="lower its scale"):
        list(model.trajectory("bag", guidance=expression, steps=6))


def test_a_network_that_is_wrong_is_named_with_its_pass_and_step(model):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        next(broken.denoiser.parameters()).fill_(torch.nan)
    with pytest.raises(
        FloatingPointError,
        match=r"the network 'main' returned values that are not finite in its pass 'cond' at "
        r"step 0",
    ):
        broken.sample("bag", guidance="cfg(2)", steps=3)


def test_strips_and_rewards_refuse_them(model):
    with pytest.raises(FloatingPointError, match="not finite"):
        rising(model, "bag", [1, 1e30], steps=4)
    with pytest.raises(FloatingPointError, match="not finite"):
        model.steer(
            lambda images: images.mean((1, 2, 3)), "bag", particles=2, guidance="cfg(1e30)", steps=4
        )


def test_a_decoder_that_is_wrong_is_named(model):
    broken = copy.deepcopy(model)
    broken.decode = lambda x: x * torch.nan
    with pytest.raises(
        FloatingPointError,
        match="the decoder of 'fashion-mnist' returned values that are not finite from finite",
    ):
        broken.sample("bag", steps=2)


def test_the_command_ends_with_a_line_and_leaves_nothing(capsys, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main(
            [
                "sample",
                "fashion-mnist",
                "--cond",
                "bag",
                "--guidance",
                "cfg(1e30)",
                "--steps",
                "4",
                "--out",
                str(tmp_path),
            ]
        )
    said = capsys.readouterr().err
    assert caught.value.code == 1 and "lower its scale" in said and said.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "torch.bfloat16", "fp32"])
def test_a_dtype_may_be_named(dtype):
    from guidestar.model.folder import dtype_of

    wanted = {"float16": torch.float16, "torch.bfloat16": torch.bfloat16, "fp32": torch.float32}
    assert dtype_of(dtype) is wanted[dtype]
    with pytest.raises(ValueError, match="not 'int8'; give one of float32, float16"):
        dtype_of("int8")


def test_what_a_folder_of_another_kind_has_not_is_refused(tmp_path):
    """Before anything is read."""
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(
        ValueError, match="is not a model of guidestar's own, so it keeps no averages"
    ):
        gs.load(tmp_path, average="ema-0.999")
    for more in ({"size": (8, 8)}, {"dtype": "bfloat16"}):
        with pytest.raises(ValueError, match=r"leave size= and dtype= out"):
            gs.load("fashion-mnist", **more)


def test_an_unknown_average_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["sample", "fashion-mnist", "--cond", "bag", "--average", "x"])
    assert caught.value.code == 2 and "has no average 'x'" in capsys.readouterr().err


def test_a_model_is_shown_in_ten_lines_and_copied_but_not_pickled(model):
    shown = repr(model).splitlines()
    assert (
        len(shown) <= 10
        and "1,805,121 parameters" in repr(model)
        and "10 classes (t-shirt" in repr(model)
    )
    with pytest.raises(
        TypeError, match=r"pass its name or folder on instead, and call guidestar\.load there"
    ):
        pickle.dumps(model)
    twin = copy.deepcopy(model)
    assert torch.equal(twin.sample("bag", steps=2).x, model.sample("bag", steps=2).x)


def test_long_expressions_are_read_back():
    scales = ", ".join("1.23456789012345" for _ in range(1500))
    text = f"cfg([{scales}])"
    assert str(gs.parse(text)) == text
    with pytest.raises(gs.ExpressionError, match="100000 characters"):
        gs.parse("cfg(" + "1" * 100_001 + ")")


@pytest.mark.parametrize(
    ("word", "home"),
    [
        ("interval", "interval=(lo, hi)"),
        ("InstructPix2Pix", "pix2pix"),
        ("fk steering", "Model.steer"),
        ("best-of-n", "Model.steer"),
        ("weight schedule", "schedule="),
        ("negative prompt", "--negative"),
        ("skip layer", "slg"),
        ("dynamic thresholding", "threshold"),
    ],
)
def test_methods_are_found_by_what_people_call_them(capsys, word, home):
    with pytest.raises(SystemExit) as done:
        main(["methods", word])
    assert done.value.code == 0 and home in capsys.readouterr().out


def test_models_are_listed_without_torch():
    import subprocess
    import sys

    code = (
        "import sys; from guidestar.cli import main\ntry: main(['models'])\nexcept "
        "SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fashion-mnist" in done.stdout
