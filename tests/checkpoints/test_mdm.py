"""MDM's official state dict, of random weights, against its definition in plain torch."""

import math

import pytest
import torch
from torch import nn

from guidestar import Guided, Net, uniform
from guidestar.checkpoints.mdm import _of_actions, mdm_model, read_mdm
from guidestar.core.denoiser import Condition
from helpers.clips import save_clip

C, WIDTH, INNER, DEPTH, HEADS, CLIP, T, K = 9, 16, 40, 2, 4, 6, 11, 5


def cosine(steps):
    """Improved DDPM's table: betas of ``cos²`` of the time, at most 0.999."""
    bar = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = [min(1 - bar((k + 1) / steps) / bar(k / steps), 0.999) for k in range(steps)]
    return [math.prod(1 - b for b in betas[: k + 1]) for k in range(steps)]


class Places(nn.Module):
    def __init__(self):
        super().__init__()
        pe, at = torch.zeros(50, WIDTH), torch.arange(50.0)[:, None]
        speed = torch.exp(torch.arange(0, WIDTH, 2).float() * (-math.log(10_000.0) / WIDTH))
        pe[:, 0::2], pe[:, 1::2] = (at * speed).sin(), (at * speed).cos()
        self.register_buffer("pe", pe[:, None])


class Process(nn.Module):
    def __init__(self, name, into, out):
        super().__init__()
        setattr(self, name, nn.Linear(into, out))


class Time(nn.Module):
    def __init__(self, places):
        super().__init__()
        self.sequence_pos_encoder = places
        self.time_embed = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))


class Action(nn.Module):
    def __init__(self):
        super().__init__()
        self.action_embedding = nn.Parameter(torch.randn(K, WIDTH))


class Official(nn.Module):
    """The published network, with the names of its state dict."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.input_process = Process("poseEmbedding", C, WIDTH)
        self.sequence_pos_encoder = Places()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, 0.1, "gelu")
        self.seqTransEncoder = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        for parameter in self.seqTransEncoder.parameters():
            nn.init.normal_(parameter, std=0.2)
        self.embed_timestep = Time(self.sequence_pos_encoder)
        if kind == "text":
            self.embed_text = nn.Linear(CLIP, WIDTH)
        if kind == "action":
            self.embed_action = Action()
        self.output_process = Process("poseFinal", WIDTH, C)

    def forward(self, x, t, cond):
        """x ``[B, T, C]``; cond is a text's vector or an action's number, None for none."""
        pe = self.sequence_pos_encoder.pe
        emb = self.embed_timestep.time_embed(pe[t])[:, 0]  # [B, d]
        if self.kind == "text":
            vector = torch.zeros(len(x), CLIP) if cond is None else cond
            emb = emb + self.embed_text(vector)
        elif cond is not None:
            emb = emb + self.embed_action.action_embedding[cond]
        frames = self.input_process.poseEmbedding(x.transpose(0, 1))
        tokens = torch.cat([emb[None], frames])
        tokens = tokens + pe[: len(tokens)]
        return self.output_process.poseFinal(self.seqTransEncoder(tokens)[1:]).transpose(0, 1)


def saved(tmp_path, kind, change=lambda state: state):
    net = Official(kind).eval()
    file = tmp_path / "model000475000.pt"
    torch.save(change(dict(net.state_dict())), file)
    return net, file


@torch.no_grad()
@pytest.mark.parametrize("kind", ["text", "action"])
def test_the_official_network_and_its_guidance(tmp_path, kind):
    net, file = saved(tmp_path, kind)
    model = mdm_model(file, frames=T, steps=50)
    assert model.name == "model000475000" and model.shape == (T, C)
    assert model.defaults["guidance"] == "cfg(2.5)"
    torch.testing.assert_close(
        torch.tensor(model.schedule.alphas_cumprod), torch.tensor(cosine(50))
    )
    x, step = torch.randn(3, T, C), uniform(model.schedule, 7).step(0)
    level, t = step.t, 49
    assert level.t == t
    if kind == "text":
        given = torch.randn(3, CLIP)
        cond = Condition(encoder_hidden_states=given[:, None])
        null = Condition(encoder_hidden_states=torch.zeros(3, 1, CLIP))
    else:
        given = torch.tensor([4, 0, 2])
        cond, null = model.encoder.encode(["4", 0, "2"]), model.encoder.null(3)
    at = torch.full((3,), t)
    with_, without = net(x, at, given), net(x, at, None)
    close = lambda a, b: torch.testing.assert_close(a, b, atol=2e-4, rtol=2e-4)
    close(model.denoiser(x, level, cond), with_)
    close(model.denoiser(x, level, null), without)
    guided = Guided("cfg(2.5)", Net(denoiser=model.denoiser, cond=cond, null=null))
    close(guided(x, step).prediction.x0, without + 2.5 * (with_ - without))


@torch.no_grad()
def test_captions_are_clips_embeddings_and_none_is_the_zero_vector(tmp_path):
    _, file = saved(tmp_path, "text")
    text = save_clip(tmp_path / "clip", CLIP)
    model = mdm_model(file, text_encoder=tmp_path / "clip", frames=T)
    assert model.takes_prompts
    made = model.encoder.encode(["a walk", ""])["encoder_hidden_states"]
    assert made.shape == (2, 1, CLIP) and not made[1].any() and bool(made[0].any())
    ids = torch.tensor([[52, 26, 22, 0, 11, 36, *[53] * 71]])  # start, a, w a l k, end, padding
    torch.testing.assert_close(made[0], text(ids).text_embeds)
    assert not model.encoder.null(1)["encoder_hidden_states"].any()
    with pytest.raises(ValueError, match="embeddings have 7 numbers, and the network takes 6"):
        save_clip(tmp_path / "other", 7)
        mdm_model(file, text_encoder=tmp_path / "other")
    assert model.sample("a walk", steps=2, seeds=[0]).x.shape == (1, T, C)


def test_samples_are_in_the_units_of_the_data(tmp_path):
    _, file = saved(tmp_path, "action")
    mean, std = torch.arange(C).float(), torch.full((C,), 2.0)
    names = ("sit", "stand", "walk", "run", "jump")
    model = mdm_model(file, frames=T, mean=mean, std=std, classes=names)
    found = model.sample("walk", steps=2, seeds=[0])
    torch.testing.assert_close(found.images, found.x * 2 + mean)
    assert found.settings.cond == ("walk",)


def without(name):
    return lambda state: {k: v for k, v in state.items() if k != name}


def test_places_are_computed_where_a_file_lacks_them(tmp_path):
    net, file = saved(tmp_path, "action")
    model = mdm_model(file, frames=T)
    state = {k: v for k, v in net.state_dict().items() if not k.endswith("encoder.pe")}
    torch.save(state, file)
    bare = mdm_model(file, frames=T)
    level, x = model.schedule(3.0), torch.randn(2, T, C)
    cond = model.encoder.encode(["1", "2"])
    assert torch.equal(bare.denoiser(x, level, cond), model.denoiser(x, level, cond))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("input_process.poseEmbedding.weight"), "'input_process.poseEmbedding.weight' is "),
        (without("seqTransEncoder.layers.1.norm2.bias"), "blocks.1.norm2.bias"),
        (lambda s: {**s, "input_process.velEmbedding.weight": torch.ones(2, 2)}, "velEmbedding"),
        (lambda s: {**s, "sequence_pos_encoder.pe": torch.ones(50, 1, WIDTH)}, "is not the offic"),
        (lambda s: {**s, "embed_text.weight": torch.ones(3)}, r"should be a matrix, not \(3,\)"),
    ],
)
def test_state_dicts_that_are_refused(tmp_path, change, words):
    _, file = saved(tmp_path, "text", change)
    with pytest.raises(ValueError, match=words) as caught:
        read_mdm(file)
    assert str(caught.value).startswith(str(file))


def test_arguments_that_do_not_go_with_the_checkpoint(tmp_path):
    _, file = saved(tmp_path, "text", lambda s: {**s, "clip_model.weight": torch.ones(2)})
    with pytest.raises(ValueError, match="it is no action model; leave classes out"):
        mdm_model(file, classes=["a"])
    with pytest.raises(ValueError, match="mean and std go together"):
        mdm_model(file, mean=torch.zeros(C))
    with pytest.raises(ValueError, match=r"a width of 16 is no multiple of 3 heads; give heads="):
        read_mdm(file, heads=3)
    _, file = saved(tmp_path, "action")
    with pytest.raises(ValueError, match="1 names were given for 5 actions; give one for each"):
        mdm_model(file, classes=["a"])
    with pytest.raises(ValueError, match="it is no text model; leave text_encoder out"):
        mdm_model(file, text_encoder="clip")


def test_actions_and_their_null():
    actions = torch.arange(1.0, 13).reshape(3, 4)
    encoder = _of_actions(("a", "b", "c"), actions)
    assert encoder.config["width"] == 4 and not encoder.training
    assert encoder.table.weight.shape == (4, 4) and not encoder.table.weight.requires_grad
    assert torch.equal(encoder.table.weight[:3], actions)
    assert encoder.encode(["", "b"])["class_labels"].tolist() == [[0, 0, 0, 0], [5, 6, 7, 8]]
    with pytest.raises(ValueError, match="2 names were given for 3 actions; give one for each"):
        _of_actions(("a", "b"), actions)
