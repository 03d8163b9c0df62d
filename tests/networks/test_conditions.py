"""Conditions: each kind, several at once, and one null for training and sampling."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import guidestar as gs
from guidestar.data.source import Column, InMemory
from guidestar.diffusers.read.encoders import read_condition
from guidestar.diffusers.read.text_encoder import TextEncoder
from guidestar.diffusers.write import write_condition
from guidestar.networks import conditions
from guidestar.networks.condition_encoders import ClassEncoder, LabelEncoder, VectorEncoder
from guidestar.networks.conditional import ConditionalModel
from guidestar.networks.conditions import Conditions
from guidestar.networks.network import Network
from guidestar.train.loop.fit import fit
from guidestar.train.loop.trainer import Trainer
from guidestar.train.objectives.denoising import Conditional, Denoising, LogitNormal
from guidestar.train.objectives.objective import TrainSettings

CLASSES = ("coat", "shirt", "bag")


def encoders():
    torch.manual_seed(0)
    return Conditions(
        {"label": ClassEncoder(CLASSES, 6), "pose": VectorEncoder(2, 6, [1.0, -2.0], [0.5, 4.0])}
    )


def vector(e, y):
    """The formula of VectorEncoder: ``W₂ silu(W₁ (y − mean)/std + b₁) + b₂``."""
    y = (torch.tensor(y) - torch.tensor([1.0, -2.0])) / torch.tensor([0.5, 4.0])
    return F.linear(
        F.silu(F.linear(y, e.first.weight, e.first.bias)), e.second.weight, e.second.bias
    )


def test_embeddings_of_one_argument_are_added():
    both = encoders()
    label, pose = both.parts["label"], both.parts["pose"]
    found = both.encode(["label=shirt; pose=0.5, 3", "pose=1,1", "label=2", ""])["class_labels"]
    null = label.table.weight[3]
    wanted = [
        label.table.weight[1] + vector(pose, [0.5, 3.0]),
        null + vector(pose, [1.0, 1.0]),
        label.table.weight[2] + pose.unknown,
        null + pose.unknown,
    ]
    torch.testing.assert_close(found, torch.stack(wanted))
    torch.testing.assert_close(both.null(2)["class_labels"], torch.stack([null + pose.unknown] * 2))


def test_one_condition_is_written_as_its_value_alone():
    one = Conditions({"label": ClassEncoder(CLASSES, 6)})
    alone = one.alone()
    assert isinstance(alone, ClassEncoder) and one.classes == CLASSES and encoders().classes == ()
    assert torch.equal(
        one.encode(["bag", ""])["class_labels"], alone.encode(["bag", ""])["class_labels"]
    )
    assert torch.equal(alone.encode(["bag"])["class_labels"][0], alone.table.weight[2])
    assert Conditions({}).alone() is None and len(Conditions({}).encode(["", ""])) == 0


def test_the_class_of_several_conditions_is_what_a_classifier_is_told():
    assert encoders().index("pose=1,2; label=bag") == 2
    assert Conditions({"pose": VectorEncoder(2, 6)}).index("1,2") == [1.0, 2.0]
    with pytest.raises(ValueError, match="no classes"):
        Conditions({"text": clip()}).index("a cat")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("label=hat", r"unknown class 'hat'; the classes are 0 coat, 1 shirt, 2 bag$"),
        (
            "colour=red",
            r"unknown condition 'colour'; the conditions are label, pose, written as 'label=…; "
            r"pose=…'$",
        ),
        ("coat", r"should be written as 'label=…; pose=…'"),
        ("pose=1", r"the condition '1' should be 2 numbers, separated by commas$"),
        ("pose=a,b", r"should be 2 numbers"),
        ("pose=1,inf", r"should be 2 numbers"),
    ],
)
def test_what_cannot_be_read_is_one_line(name, message):
    with pytest.raises(ValueError, match=message):
        encoders().encode([name])


def test_labels_may_be_told_as_they_are():
    encoder = LabelEncoder(CLASSES)
    assert encoder.encode(["bag", ""])["class_labels"].tolist() == [2, 3] and encoder.null(2)[
        "class_labels"
    ].tolist() == [3, 3]


def clip(width=8):
    """Build a small random CLIP text encoder with a tokenizer of single letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    letters = {
        "<|startoftext|>": 0,
        "<|endoftext|>": 1,
        **{c: i + 2 for i, c in enumerate("abcdefghijklmnopqrstuvwxyz ")},
    }
    inner = Tokenizer(models.WordLevel(letters, unk_token="<|endoftext|>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[("<|startoftext|>", 0), ("<|endoftext|>", 1)],
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=12,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        bos_token="<|startoftext|>",
    )
    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=40,
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
    )
    return TextEncoder(CLIPTextModel(config).eval().requires_grad_(False), tokenizer)


def test_the_null_of_text_is_the_empty_caption():
    text = clip()
    rows = text.rows(["a cat", ""])
    assert rows.shape == (2, 2, 12) and torch.equal(text.null_row(), rows[1])
    assert torch.equal(
        text(rows)["encoder_hidden_states"], text.encode(["a cat", ""])["encoder_hidden_states"]
    )
    wanted = text.text(rows[:, 0])[0]  # the padding is attended to, as in Stable Diffusion
    torch.testing.assert_close(text(rows)["encoder_hidden_states"], wanted)


def test_text_goes_to_its_own_argument():
    both = Conditions({"label": ClassEncoder(CLASSES, 6), "text": clip()})
    told = both.encode(["label=bag; text=a bag"])
    assert set(told) == {"class_labels", "encoder_hidden_states"}
    assert torch.equal(
        told["encoder_hidden_states"], both.parts["text"].encode(["a bag"])["encoder_hidden_states"]
    )


def test_conditions_are_written_and_read(tmp_path):
    both = encoders()
    write_condition(both, tmp_path / "condition", torch.float32)
    again = read_condition(tmp_path / "condition")
    names = ["label=shirt; pose=0.5,3", ""]
    assert torch.equal(again.encode(names)["class_labels"], both.encode(names)["class_labels"])
    assert list(again.parts) == ["label", "pose"]


# --- one null ---


class Echo(nn.Module):
    """A network that returns what it is told, and so shows which null it was trained and sampled
    with.
    """

    def __init__(self):
        super().__init__()
        self.seen, self.scale = [], nn.Parameter(torch.ones(1))

    def forward(self, x, t, class_labels):
        self.seen.append(class_labels.detach().clone())
        return x * self.scale + 0 * class_labels[:, :1]


@pytest.mark.parametrize(
    ("kind", "values"),
    [("class", torch.tensor([0, 1, 2, 0])), ("vector", torch.tensor([[0.5], [1.0], [2.0], [3.0]]))],
)
def test_training_and_sampling_use_the_same_null(kind, values):
    torch.manual_seed(0)
    part = ClassEncoder(CLASSES, 1) if kind == "class" else VectorEncoder(1, 1)
    with torch.no_grad():
        (part.table.weight[3] if kind == "class" else part.unknown).fill_(
            math.pi
        )  # the null, and nothing else
    encoder, net = Conditions({"it": part}), Echo()
    module = ConditionalModel(Network(net, predicts="v"), encoder)
    source = InMemory(
        x=torch.randn(4, 3),
        targets={"it": values},
        columns={"it": Column(kind=kind, classes=CLASSES, width=1)},
    )
    objective = Conditional(
        denoising=Denoising(schedule=gs.VP.linear(), levels=LogitNormal()), dropout={"it": 0.5}
    )
    list(
        fit(
            Trainer(
                module,
                objective,
                source,
                TrainSettings(steps=1, batch=64, rate=1e-12),
                prepare=encoder.rows,
            )
        )
    )
    told = net.seen[0][:, 0]
    dropped = (told - math.pi).abs() < 1e-5
    assert 10 < int(dropped.sum()) < 54  # half of them were trained with the null …
    net.seen.clear()
    model = gs.Model(
        name="echo",
        denoiser=module.denoiser,
        schedule=gs.VP.linear(),
        shape=(3,),
        encoder=encoder.alone(),
        decode=lambda x: x,
    )
    model.sample(
        ["coat" if kind == "class" else "0.5"], guidance="cfg(2)", seeds=[0], steps=1, solver="ddim"
    )
    assert len(net.seen) == 1 and net.seen[0].shape == (2, 1)
    assert (
        int(((net.seen[0][:, 0] - math.pi).abs() < 1e-5).sum()) == 1
    )  # … and one of the two passes of cfg is the same null


def test_conditions_of_one_name_are_joined():
    """Embeddings are added; texts follow each other."""
    one, other = torch.ones(2, 3), torch.full((2, 3), 2.0)
    assert conditions._join("class_labels", one, other).tolist() == [[3.0] * 3] * 2
    texts = torch.zeros(2, 4, 3), torch.ones(2, 5, 3)
    found = conditions._join("encoder_hidden_states", *texts)
    assert found.shape == (2, 9, 3) and torch.equal(found[:, 4:], texts[1])
