"""Single values of small functions, written out: what no larger test would miss."""

from typing import Any

import pytest
import torch
from torch import nn

from guidestar.cli.distilling import _range
from guidestar.core.levels import VP
from guidestar.diffusers.read.network import SCALE_FOLDER
from guidestar.diffusers.write import write_denoiser
from guidestar.guidance import parse
from guidestar.guidance.citations import papers
from guidestar.io.documents import one_line
from guidestar.model.request import Request
from guidestar.networks.from_config import own_dropout_off, unet
from guidestar.networks.guidance_scale import GuidanceScale, ScaledNetwork
from guidestar.networks.network import Network
from guidestar.sampling import DDIM
from guidestar.sampling.grids import uniform
from guidestar.sampling.run import check_finite
from guidestar.train.recipe.tables import Data


def test_a_part_of_a_request_has_its_own_scales_names_and_seeds():
    grid = uniform(VP.linear(), 3)
    whole = Request(
        names=("a", "b", "c"),
        guidance=parse("cond"),
        seeds=(5, 6, 7),
        scale=(1.0, 2.0, 3.0),
        solver=DDIM(),
        levels=grid,
        grid="uniform",
        start=torch.arange(3.0)[:, None],
    )
    part = whole.take(slice(1, 3))
    assert (part.names, part.seeds, part.scale) == (("b", "c"), (6, 7), (2.0, 3.0))
    assert part.start is not None and part.start.tolist() == [[1.0], [2.0]]
    assert part.levels is grid


def test_the_embedding_of_a_scale_is_written_beside_the_network(tmp_path):
    net = unet(size=8, channels=1, widths=(8,), layers=1, groups=4, head=8)
    embed = GuidanceScale(32, 1.0, 3.0, 2.0)
    denoiser = Network(ScaledNetwork(net, embed))
    write_denoiser(denoiser, None, tmp_path, torch.float32)
    assert (tmp_path / "unet" / "config.json").is_file()
    config: Any = GuidanceScale.load_config(tmp_path / SCALE_FOLDER)
    back: Any = GuidanceScale.from_config(config)
    assert (back.low, back.high, back.default) == (1.0, 3.0, 2.0)
    write_denoiser(Network(net), None, tmp_path / "plain", torch.float32)
    assert not (tmp_path / "plain" / SCALE_FOLDER).exists()


@pytest.mark.parametrize(
    ("crop", "flip", "named"), [("random", False, "crop"), ("center", True, "flip")]
)
def test_latents_are_of_pictures_that_stay(crop, flip, named):
    with pytest.raises(ValueError, match=f"leave {named} or vae out"):
        Data(path="x", vae="v", crop=crop, flip=flip)
    assert Data(path="x", vae="v").crop == "center"


@pytest.mark.parametrize(
    ("count", "numbers"), [(1, "0"), (5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4, …")]
)
def test_at_most_five_samples_are_numbered(count, numbers):
    x = torch.zeros(7, 2)
    x[:count, 1] = torch.nan
    with pytest.raises(FloatingPointError, match=rf"^{count} of 7 latents .*\(number {numbers}\);"):
        check_finite(x, "latents")
    check_finite(torch.zeros(2, 2))


def test_labels_are_dropped_by_what_drops_them_alone():
    class Both(nn.Module):
        dropout_prob = 0.1

        def token_drop(self):
            """Drop labels."""

    class Layer(nn.Module):
        dropout_prob = 0.2

    net = nn.ModuleList([Both(), Layer()])
    own_dropout_off(net)
    assert [m.dropout_prob for m in net] == [0.0, 0.2]


def test_a_message_is_one_line_of_what_can_be_printed():
    assert one_line(ValueError("a\nb\x00c\u202ed  e")) == "a b c d e"
    assert one_line(ValueError("")) == "ValueError"
    assert one_line(ValueError("abcdef"), 4) == "abc…" and one_line(ValueError("abcd"), 4) == "abcd"


def test_references_may_be_parted_by_empty_lines():
    def cited():
        """Do it.

        References:
            A Title That Goes

            On, section 2, https://arxiv.org/abs/1
                Ann One, Bob Two
            Another, https://arxiv.org/abs/2
        """

    found = [(p.title, p.url, p.authors) for p in papers(cited)]
    assert found == [
        ("A Title That Goes On", "https://arxiv.org/abs/1", ("Ann One", "Bob Two")),
        ("Another", "https://arxiv.org/abs/2", ()),
    ]


def test_the_range_of_a_students_scale_is_two_numbers():
    assert _range("1,5") == [1.0, 5.0]
    for text in ("3", "1,2,3"):
        with pytest.raises(
            ValueError, match=r"^--scale .*: write the smallest and largest w, e\.g"
        ):
            _range(text)
