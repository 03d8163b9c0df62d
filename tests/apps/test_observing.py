"""Inverse problems on the command line: pictures and a mask from files, and one clear line for
everything that can be wrong.
"""

import json
import shutil

import pytest
import torch
from PIL import Image

from cli.test_cli import refused, run
from guidestar import Blur, Colour, Downsample, Inpaint, Observation, load, parse
from guidestar.apps.observe import read_observation, read_observed, read_operator
from guidestar.io.images import to_pil


def half(x):
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


@pytest.fixture(scope="module")
def model():
    return load("fashion-mnist")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Two pictures, whole, small, and half hidden behind a mask."""
    where = tmp_path_factory.mktemp("pictures")
    whole = model.sample(["ankle boot", "bag"], seeds=[40, 41], steps=12, guidance="cfg(2)").images
    mask = torch.ones(1, 1, 28, 28)
    mask[..., :14] = -1
    for name, pictures in (
        ("small", half(whole)),
        ("whole", whole),
        ("hidden", torch.where(mask > 0, whole, torch.tensor(0.3))),
    ):
        (where / name).mkdir()
        for i, picture in enumerate(to_pil(pictures)):
            picture.save(where / name / f"{i}.png")
    to_pil(mask)[0].save(where / "mask.png")
    return where


def seen(folder, name, size=28):
    return torch.stack(
        [
            read_observed(p, (1, size, size), "pictures")
            for p in sorted((folder / name).glob("*.png"))
        ]
    )


def test_a_folder_of_small_pictures_is_made_large(capsys, folder, tmp_path):
    code, out, _ = run(
        capsys,
        "sample",
        "fashion-mnist",
        "--guidance",
        "uncond + dps(5)",
        "--observe",
        folder / "small",
        "--operator",
        "downsample(factor=2)",
        "--num",
        2,
        "--steps",
        12,
        "--out",
        tmp_path / "a",
    )
    assert code == 0 and "4 images" in out
    made, y, whole = seen(tmp_path, "a"), seen(folder, "small", 14), seen(folder, "whole")
    assert len(made) == 4
    assert (half(made) - y.repeat_interleave(2, 0)).square().mean() < 0.01
    assert (
        (made - whole.repeat_interleave(2, 0)).square().mean()
        < 0.1
        < (made - whole.flip(0).repeat_interleave(2, 0)).square().mean()
    )
    picture = next((tmp_path / "a").glob("*.png"))
    assert json.loads(Image.open(picture).text["guidestar"])["lacking"] == ["the loss 'loss'"]
    refused(
        capsys,
        2,
        "sample",
        "--like",
        picture,
        "--out",
        tmp_path / "b",
        says=["depended on the loss 'loss'"],
    )


def test_what_a_mask_hides_is_found(capsys, folder, tmp_path):
    operator = f"inpaint(mask='{folder / 'mask.png'}', noise=0.05)"
    code, _, _ = run(
        capsys,
        "sample",
        "fashion-mnist",
        "--cond",
        "ankle boot",
        "--guidance",
        "cfg(2) + pigdm(1)",
        "--observe",
        folder / "hidden" / "0.png",
        "--operator",
        operator,
        "--steps",
        12,
        "--out",
        tmp_path / "a",
    )
    made, whole = seen(tmp_path, "a"), seen(folder, "whole")[:1]
    assert code == 0 and (made - whole)[..., 14:].square().mean() < 0.01
    assert (made - whole)[..., :14].square().mean() < 0.5 * (0.3 - whole)[..., :14].square().mean()


def test_it_is_the_library_call(model, folder):
    guidance = parse("uncond + dps(1)")
    for text, expected in (
        ("downsample(factor=2)", Observation(Downsample(factor=2), seen(folder, "small", 14))),
        (
            "blur(deviation=1.5, noise=0.1)",
            Observation(Blur(deviation=1.5), seen(folder, "whole"), noise=0.1),
        ),
        (" identity ", Observation("identity", seen(folder, "whole"))),
    ):
        found = read_observation(
            model, guidance, [folder / ("small" if "down" in text else "whole")], text
        )
        assert (
            found.operator == expected.operator
            and found.noise == expected.noise
            and torch.equal(found.y, expected.y)
        )
    hidden = read_observation(
        model,
        guidance,
        sorted((folder / "hidden").glob("*.png")),
        f"inpaint(mask='{folder / 'mask.png'}')",
    )
    assert (
        isinstance(hidden.operator, Inpaint)
        and not hidden.y[..., :14].any()
        and torch.equal(hidden.operator(seen(folder, "whole")), hidden.y)
    )
    assert read_observation(model, parse("cfg(3)"), None, None) is None
    assert read_operator("gray(matrix=[[0.5, 0.5, 0]])", (3, 8, 8))[0](
        torch.ones(1, 3, 2, 2)
    ).tolist() == [[[[1, 1], [1, 1]]]]
    assert read_operator("gray", (3, 8, 8)) == (Colour(), 0.0)


def test_only_the_pictures_of_a_folder_are_observed(model, folder, tmp_path):
    shutil.copytree(folder / "whole", tmp_path / "whole")
    shutil.copytree(folder / "whole", tmp_path / "whole" / "below")
    (tmp_path / "whole" / "._0.png").write_bytes(b"left by an operating system")
    (tmp_path / "whole" / "notes.txt").write_text("x")
    found = read_observation(model, parse("uncond + dps(1)"), [tmp_path / "whole"], "identity")
    assert torch.equal(found.y, seen(folder, "whole"))


def test_a_colour_model_observes_a_grey_picture(folder):
    text, guidance = load("emoji"), parse("uncond + dps(1)")
    side = text.need_image_shape()[-1]
    Image.new("RGB", (side, side), (255, 0, 0)).save(folder / "red.png")
    found = read_observation(text, guidance, [folder / "red.png"], "gray")
    assert found.y.shape == (1, 1, side, side)
    assert read_observation(text, guidance, [folder / "red.png"], "identity").y[
        0, :, 0, 0
    ].tolist() == [1, -1, -1]


@pytest.mark.parametrize(
    ("guidance", "observe", "operator", "says"),
    [
        (
            "uncond + dps(1)",
            "whole",
            "downsample(factor=2)",
            ["0.png is 28 × 28 pixels", "14 × 14", "downsample(factor=2)"],
        ),
        ("uncond + dps(1)", "small", "blur", ["0.png is 14 × 14 pixels", "28 × 28"]),
        ("uncond + dps(1)", "small", "downsample(factor=5)", ["5 must divide"]),
        (
            "uncond + dps(1)",
            "small",
            "downsample(factor='two')",
            ["factor must be a whole number, not 'two'"],
        ),
        (
            "uncond + dps(1)",
            "small",
            "downsample(facotr=2)",
            ["no option 'facotr'", "factor, noise"],
        ),
        ("uncond + dps(1)", "small", "sharpen", ["unknown operator 'sharpen'", "downsample"]),
        ("uncond + dps(1)", "small", "downsample(2", ["cannot be read"]),
        ("uncond + dps(1)", "small", "downsample(2)", ["cannot be read", "factor=2"]),
        ("uncond + dps(1)", "small", "blur(deviation=__import__('os'))", ["cannot be read"]),
        ("uncond + dps(1)", "small", "blur(noise='much')", ["noise must be a finite number"]),
        (
            "uncond + dps(1)",
            "whole",
            "blur(noise=-1)",
            ["noise must be a finite number, 0 or more"],
        ),
        ("uncond + dps(1)", "whole", "inpaint", ["inpaint needs its mask"]),
        ("uncond + dps(1)", "whole", "inpaint(mask=3)", ["mask must be the name of a picture"]),
        ("uncond + dps(1)", "whole", "inpaint(mask='none.png')", ["none.png cannot be read"]),
        ("uncond + dps(1)", "whole", "gray", ["mixes 3 channels, but there are 1"]),
        ("uncond + dps(1)", "missing.png", "blur", ["missing.png cannot be read"]),
        ("uncond + dps(1)", ".", "blur", ["holds no pictures"]),
        ("uncond", "whole", "blur", ["'uncond' lowers no loss", "dps"]),
        ("uncond + dps(1)", None, None, ["--observe", "--operator"]),
        ("uncond + dps(1)", "whole", None, ["give both"]),
        ("uncond + dps(1)", None, "blur", ["give both"]),
        ("uncond + dps(1, 'other')", "whole", "blur", ["no loss 'other'"]),
    ],
)
def test_one_clear_line(capsys, folder, tmp_path, guidance, observe, operator, says):
    where = tmp_path if observe == "." else folder / (observe or "")
    options = [
        *(["--observe", where] if observe else []),
        *(["--operator", operator] if operator else []),
    ]
    refused(
        capsys,
        2,
        "sample",
        "fashion-mnist",
        "--guidance",
        guidance,
        *options,
        "--steps",
        2,
        "--out",
        tmp_path / "out",
        says=says,
    )


def test_a_model_of_no_pictures_observes_none(folder):
    from guidestar import VP, Model

    model = Model(
        name="vectors", denoiser=lambda x, level, cond: x, schedule=VP.linear(), shape=(4,)
    )
    with pytest.raises(ValueError, match=r"'vectors' does not make pictures, but samples of \[4\]"):
        read_observation(model, parse("uncond + dps(1)"), [folder / "whole"], "blur")


def test_a_plan_needs_no_picture(capsys):
    code, out, _ = run(
        capsys, "plan", "fashion-mnist", "--guidance", "uncond + dps(1) + pigdm(1)", "--steps", 3
    )
    assert (
        code == 0
        and out.count("gradient x 2") == 3
        and out.splitlines()[-1].startswith("total NFE 3 a sample, gradients 6")
    )
