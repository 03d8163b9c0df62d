"""Students that are narrower than their teacher."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

import guidestar as gs
from guidestar import cli
from guidestar.core.levels import VP
from guidestar.diffusers.export import network_of
from guidestar.diffusers.read.network import Adapter
from guidestar.networks.condition_encoders import ClassEncoder
from guidestar.networks.conditions import Conditions
from guidestar.networks.from_config import unet
from guidestar.networks.network import Network
from guidestar.networks.sequence import SequenceTransformer
from guidestar.train.objectives.teacher import Teacher
from guidestar.train.students.export import assemble_student
from guidestar.train.students.run import distill, plan_distillation
from guidestar.train.students.stages import fresh_student
from helpers.students import CLASSES, recipe_of


def taught(net, width=64):
    encoder = Conditions({"label": ClassEncoder(CLASSES, width)})
    return Teacher(
        denoiser=Network(net, predicts="v"), encoder=encoder, guidance="cond", schedule=VP.linear()
    )


def wide():
    return Adapter(unet(size=8, channels=1, widths=(16, 32), layers=1, groups=4, head=8))


def test_a_narrower_student_has_a_share_of_the_channels_and_embeddings_that_fit():
    given = taught(wide())
    student: Any = fresh_student(given, (1.0, 4.0), 2.0, width=0.5)
    net: Any = network_of(student.denoiser)
    assert tuple(net.config["block_out_channels"]) == (8, 16)
    assert student.encoder.parts["label"].config["width"] == 32
    assert student.denoiser.predicts == "v"
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert 0.2 < count(net) / count(network_of(given.denoiser)) < 0.3
    out = student.denoiser(
        torch.randn(2, 1, 8, 8), VP.linear().at_rho(1.0), student.encoder.encode(["a", "c"])
    )
    assert out.shape == (2, 1, 8, 8) and all(p.requires_grad for p in student.parameters())
    assert tuple(network_of(given.denoiser).config["block_out_channels"]) == (16, 32)


def test_widths_that_cannot_be_are_refused():
    with pytest.raises(
        ValueError, match=r"student.width: 0.3 makes \[5, 10\] channels of \[16, 32\]"
    ):
        fresh_student(taught(wide()), None, 1.0, width=0.3)
    net = SequenceTransformer(channels=1, length=8, width=16, depth=1, heads=2)
    with pytest.raises(ValueError, match="SequenceTransformer, has no widths"):
        fresh_student(taught(net, 16), None, 1.0, width=0.5)


@pytest.mark.parametrize("more", [{"rank": 2}, {"method": "matching", "begin": "x"}])
def test_width_goes_with_fresh_weights_alone(teacher, more):
    with pytest.raises(ValueError, match="leave rank and begin out"):
        recipe_of(teacher, guidance="cfg(2)", scale=None, width=0.5, **more)


def test_a_narrower_student_is_trained_written_and_read(teacher, tmp_path):
    recipe = recipe_of(teacher, method="trajectory", steps=2, start=4, paths=4, width=0.5)
    assert "parameters" in plan_distillation(recipe)[-1]
    made = assemble_student(cast(Any, distill(recipe, tmp_path)), tmp_path)
    loaded = gs.load(tmp_path / "pupil")
    assert tuple(network_of(loaded.denoiser).config["block_out_channels"]) == (4, 4)
    one, other = (m.sample("c", seeds=[5], scale=2.0).x for m in (made, loaded))
    torch.testing.assert_close(one, other, rtol=0, atol=0.05)


def test_a_width_that_cannot_be_names_the_recipe_and_its_key(tmp_path, capsys):
    """Whether the value is wrong by itself, or only for this teacher (widths of 32, 64, 96)."""
    text = '[student]\nteacher = "fashion-mnist"\nmethod = "guided"\nwidth = {}\n'
    for width, line in [
        (0.33, "student.width: 0.33 makes [11, 21, 32] channels of [32, 64, 96], which must be "),
        (1.5, "student.width: input should be less than 1, not 1.5"),
    ]:
        file = tmp_path / "own.toml"
        whole = f'name = "own"\n{text.format(width)}[student.train]\nsteps = 1\n'
        file.write_text(whole, encoding="utf-8")
        asked = ["distill", str(file), "--dry-run", "--out", str(tmp_path / "out")]
        with pytest.raises(SystemExit) as stop:
            cli.main(asked)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and len(error.splitlines()) == 1
        assert error.startswith(f"guidestar: {file}: {line}"), error
