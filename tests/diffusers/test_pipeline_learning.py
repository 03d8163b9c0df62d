"""What a pipeline makes of its network's answers, written down and learnt from."""

import pytest
import torch

from guidestar.diffusers.guide.calls import NetCall, Template
from guidestar.diffusers.guide.probe import Combination, Place, learn
from guidestar.diffusers.guide.traced import Tape, ValueReadError


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Told:
    """A step of a pipeline: calls of rows, and what it makes of them; ``shapes`` are those of each
    call's answers where they differ.
    """

    def __init__(self, make, *rows, shape=(4, 6, 6), listed=False, shapes=()):
        self.tape, self.calls, promised = Tape("MyPipeline"), [], []
        for k, n in enumerate(rows):
            answers = draw(n, *(shapes[k] if shapes else shape), seed=k)
            x = list(answers) if listed else answers
            template, _ = Template.of((x,), n, listed)
            answer, leaves = template.promised(self.tape)
            promised.append(answer[0])
            self.calls.append(
                NetCall(net=None, arguments={"sample": x}, template=template, leaves=leaves)
            )
        with torch.no_grad():
            self.wanted = make(*promised)

    def combination(self, sample):
        return Combination(
            name="MyPipeline",
            tape=self.tape,
            calls=self.calls,
            wanted=self.wanted,
            sample=sample,
        )

    def learn(self, samples=2, order=()):
        return learn(self.combination(draw(samples, *self.wanted.shape[1:])), order)


def halves(scale):
    def make(out):
        uncond, cond = out.chunk(2)
        return uncond + scale * (cond - uncond)

    return make


def calls(scale):
    return lambda cond, uncond: uncond + scale * (cond - uncond)


def renormed(cond, uncond):
    guided = uncond + 4 * (cond - uncond)
    return guided * (cond.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))


def one_by_one(outs):
    """As Z-Image: prompts first, a list, the sign turned."""
    return -torch.stack([c + 3 * (c - u) for c, u in zip(outs[:2], outs[2:], strict=True)])


def packed(out):
    uncond, cond = out.float().chunk(2)
    guided = cond + 1.5 * (cond - uncond)
    return guided.permute(0, 2, 3, 1).reshape(len(guided), -1, guided.shape[1])


CASES = {
    "two halves": (halves(5.0), (4,), False, 5.0, (0, 1), (0, 0)),
    "two calls": (calls(3.0), (2, 2), False, 3.0, (0, 0), (1, 0)),
    "rescaled": (renormed, (2, 2), False, 4.0, (0, 0), (1, 0)),
    "a list, turned": (one_by_one, (4,), True, 4.0, (0, 0), (0, 1)),
    "packed": (packed, (4,), False, 2.5, (0, 1), (0, 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_prompts_rows_are_those_of_the_largest_coefficient(name):
    make, rows, listed, scale, cond, uncond = CASES[name]
    layout = Told(make, *rows, listed=listed).learn()
    assert layout.batch == 2 and layout.scale == pytest.approx(scale, rel=1e-2)
    assert layout.parts == {
        "cond": Place(call=cond[0], block=cond[1]),
        "uncond": Place(call=uncond[0], block=uncond[1]),
    }


def test_one_pass_is_the_prompts():
    layout = Told(lambda out: -out[:, :3], 2).learn()
    assert layout.batch == 2 and list(layout.parts) == ["cond"]


def test_three_passes_need_their_order():
    def make(out):
        cond, image, uncond = out.chunk(3)
        return uncond + 2 * (image - uncond) + 5 * (cond - image)

    told = Told(make, 6)
    assert told.learn(order=("cond", "image", "uncond")).parts["image"] == Place(call=0, block=1)
    with pytest.raises(ValueError, match="mixes 3 answers of its network, and which is which"):
        told.learn()


def test_the_first_three_channels_alone():
    def make(out):
        uncond, cond = out.chunk(2)
        return torch.cat([uncond[:, :3] + 4 * (cond - uncond)[:, :3], cond[:, 3:]], 1)

    assert Told(make, 4).learn().scale == pytest.approx(4, rel=1e-2)


def test_what_is_no_guidance_is_refused():
    def views(out):  # each row is another place of one picture
        return torch.cat([out[:1, :, :, :3], out[1:, :, :, 3:]], -1)

    with pytest.raises(ValueError, match=r"^MyPipeline does not hand its scheduler a guidance"):
        Told(views, 2).learn(samples=1)
    with pytest.raises(ValueError, match=r"mixes its network's answers by 0\.5, 0\.5; give a guid"):
        Told(calls(0.5), 2, 2).learn()
    with pytest.raises(ValueError, match="does not hand its scheduler a guidance"):
        Told(lambda cond, uncond: 3 * (cond - uncond), 2, 2).learn()


def test_an_answer_is_what_the_pipeline_makes_of_it():
    """By other answers than those that the tape was written with."""
    told = Told(packed, 4)
    answers = draw(4, 4, 6, 6, seed=9)
    uncond, cond = answers.chunk(2)
    wanted = (cond + 1.5 * (cond - uncond)).permute(0, 2, 3, 1).reshape(2, -1, 4)
    made = told.tape.run(told.calls[0].leaves_of([answers]), told.wanted)
    assert torch.equal(made, wanted)


def test_changes_in_place_are_part_of_it():
    def make(out):
        out = out * 1
        out[:, :1] *= 3
        return out + out[:, :1]

    told, answers = Told(make, 2), draw(2, 4, 6, 6, seed=9)
    wanted = torch.cat([answers[:, :1] * 3, answers[:, 1:]], 1) + answers[:, :1] * 3
    made = told.tape.run(told.calls[0].leaves_of([answers]), told.wanted)
    assert torch.equal(made, wanted)


def test_a_pipeline_that_looks_at_its_answers_is_refused():
    with pytest.raises(ValueReadError, match="MyPipeline reads the numbers"):
        Told(lambda out: out if out.abs().max() > 1 else -out, 2)
    with pytest.raises(ValueReadError, match="into a tensor of its own"):
        Told(lambda out: torch.zeros(2, 4, 6, 6).copy_(out), 2)
    told, before = Told(lambda out: out, 2), Told(lambda out: out, 2)
    with pytest.raises(ValueReadError, match="from one step to the next"), torch.no_grad():
        told.wanted + before.wanted


@pytest.mark.parametrize("at_end", [True, False])
def test_calls_may_answer_in_other_lengths(at_end):
    """Ideogram's network answers for the text too where there is one; its 4 tokens are cut off."""

    def cut(cond, uncond):
        picture = cond[:, 4:] if at_end else cond[:, :-4]
        return -(uncond + 3 * (picture - uncond))

    told = Told(cut, 2, 2, shapes=[(10, 8), (6, 8)])
    layout = told.learn()
    assert layout.at_end is at_end and layout.scale == pytest.approx(3, rel=1e-2)
    assert layout.parts == {"cond": Place(call=0, block=0), "uncond": Place(call=1, block=0)}
    c = told.combination(draw(2, 6, 8))
    long, short = draw(2, 10, 8, seed=5), draw(2, 6, 8, seed=6)
    wanted = long[:, 4:] if at_end else long[:, :-4]
    torch.testing.assert_close(c.everywhere(layout, [long]), -wanted)
    torch.testing.assert_close(c.everywhere(layout, [short]), -short)


def test_answers_of_unlike_shapes_are_refused():
    shapes = [(10, 8), (6, 4)]
    told = Told(lambda cond, _: cond, 2, 2, shapes=shapes)
    with pytest.raises(ValueError, match="answers in other shapes in the calls of one step"):
        told.learn()


def test_a_rescaling_along_the_third_dimension_is_learnt():
    """Joy-Image's, whose samples are ``[B, pictures, C, F, H, W]``."""

    def joined(cond, uncond):
        guided = uncond + 4 * (cond - uncond)
        return guided * (cond.norm(dim=2, keepdim=True) / guided.norm(dim=2, keepdim=True))

    told = Told(joined, 2, 2, shape=(2, 4, 1, 5, 3))
    assert told.learn().scale == pytest.approx(4, rel=2e-2)
