"""Checkpoints of others: names of tensors, and what the networks compute, written out from the
originals' definitions.
"""

import math
import pickle
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import guidestar as gs
from guidestar import VE, VP, Condition, Grid
from guidestar.checkpoints.adm import PUBLISHED, Published, adm_model, read_adm, read_adm_classifier
from guidestar.checkpoints.adm_networks import ADM, ADMClassifier, ClassifierSettings, UNetSettings
from guidestar.checkpoints.dit import dit_model, read_dit
from guidestar.checkpoints.edm import EDMDenoiser, edm_model
from guidestar.checkpoints.state_dicts import read_state_dict
from helpers.toys import moved

SMALL = {"image_size": 16, "channel_mult": (1, 2, 2), "attention_resolutions": (8, 4), "groups": 4}


def close(a, b, tolerance=1e-6):
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


# --- guided-diffusion: the shape of each tensor by its name, in the order of the original's
# constructor ---


def block_shapes(name, inputs, outputs, time, scale_shift):
    yield f"{name}.in_layers.0", (inputs,), True
    yield f"{name}.in_layers.2", (outputs, inputs, 3, 3), False
    yield f"{name}.emb_layers.1", (2 * outputs if scale_shift else outputs, time), False
    yield f"{name}.out_layers.0", (outputs,), True
    yield f"{name}.out_layers.3", (outputs, outputs, 3, 3), False
    if inputs != outputs:
        yield f"{name}.skip_connection", (outputs, inputs, 1, 1), False


def attention_shapes(name, width):
    yield f"{name}.norm", (width,), True
    yield f"{name}.qkv", (3 * width, width, 1), False
    yield f"{name}.proj_out", (width, width, 1), False


def down_shapes(width, multiples, count, s):
    time, ch, ds, skips = 4 * width, int(multiples[0] * width), 1, []
    yield "time_embed.0", (time, width), False
    yield "time_embed.2", (time, time), False
    yield "input_blocks.0.0", (ch, s.channels, 3, 3), False
    skips.append(ch)
    for level, multiple in enumerate(multiples):
        for _ in range(count):
            name, out = f"input_blocks.{len(skips)}", int(multiple * width)
            yield from block_shapes(f"{name}.0", ch, out, time, s.use_scale_shift_norm)
            ch = out
            if s.image_size // ds in s.attention_resolutions:
                yield from attention_shapes(f"{name}.1", ch)
            skips.append(ch)
        if level != len(multiples) - 1:
            name = f"input_blocks.{len(skips)}.0"
            if s.resblock_updown:
                yield from block_shapes(name, ch, ch, time, s.use_scale_shift_norm)
            else:
                yield f"{name}.op", (ch, ch, 3, 3), False
            skips.append(ch)
            ds *= 2
    yield from block_shapes("middle_block.0", ch, ch, time, s.use_scale_shift_norm)
    yield from attention_shapes("middle_block.1", ch)
    yield from block_shapes("middle_block.2", ch, ch, time, s.use_scale_shift_norm)
    return skips, ch, ds


def unet_shapes(s):
    width = s.num_channels
    skips, ch, ds = yield from down_shapes(width, s.channel_mult, s.num_res_blocks, s)
    index = 0
    for level in reversed(range(len(s.channel_mult))):
        for i in range(s.num_res_blocks + 1):
            name, out, inner = f"output_blocks.{index}", int(s.channel_mult[level] * width), 1
            yield from block_shapes(
                f"{name}.0", ch + skips.pop(), out, 4 * width, s.use_scale_shift_norm
            )
            ch = out
            if s.image_size // ds in s.attention_resolutions:
                yield from attention_shapes(f"{name}.1", ch)
                inner = 2
            if level and i == s.num_res_blocks:
                if s.resblock_updown:
                    yield from block_shapes(
                        f"{name}.{inner}", ch, ch, 4 * width, s.use_scale_shift_norm
                    )
                else:
                    yield f"{name}.{inner}.conv", (ch, ch, 3, 3), False
                ds //= 2
            index += 1
    yield "out.0", (ch,), True
    yield "out.2", (s.channels * (2 if s.learn_sigma else 1), ch, 3, 3), False


def classifier_shapes(s):
    skips, ch, _ = yield from down_shapes(s.width, s.channel_mult, s.depth, s)
    features = sum(skips) + ch
    if s.pool in ("attention", "adaptive"):
        yield "out.0", (ch,), True
    if s.pool == "attention":
        yield "out.2.qkv_proj", (3 * ch, ch, 1), False
        yield "out.2.c_proj", (s.classes, ch, 1), False
    elif s.pool == "adaptive":
        yield "out.3", (s.classes, ch, 1, 1), False
    elif s.pool == "spatial":
        yield "out.0", (2048, features), False
        yield "out.2", (s.classes, 2048), False
    else:
        yield "out.0", (2048, features), False
        yield "out.1", (2048,), True
        yield "out.3", (s.classes, 2048), False


def random_state(shapes, seed=0, **more):
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, shape, norm in shapes:
        rows = torch.randn(shape, generator=generator)
        state[f"{name}.weight"] = 1 + 0.2 * rows if norm else rows / math.prod(shape[1:]) ** 0.5
        state[f"{name}.bias"] = 0.2 * torch.randn(shape[0], generator=generator)
    return state | {k: torch.randn(v, generator=generator) for k, v in more.items()}


# --- and what they compute, in plain functions of the state dict ---


def waves(t, width):
    f = torch.tensor([math.exp(-math.log(10000) * k / (width // 2)) for k in range(width // 2)])
    return torch.cat([(t[:, None] * f).cos(), (t[:, None] * f).sin()], 1)


class Reference:
    """The original's forward pass, looked up by names."""

    def __init__(self, state, s):
        self.w, self.s, self.up = state, s, False

    def lin(self, name, x):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def conv(self, name, x, **more):
        weight = self.w[f"{name}.weight"]
        return (F.conv1d if weight.ndim == 3 else F.conv2d)(
            x, weight, self.w[f"{name}.bias"], **more
        )

    def norm(self, name, x):
        groups = x.reshape(len(x), self.s.groups, -1)
        mean, var = groups.mean(-1, keepdim=True), groups.var(-1, unbiased=False, keepdim=True)
        flat = ((groups - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
        shape = (1, -1, *[1] * (x.ndim - 2))
        return flat * self.w[f"{name}.weight"].view(shape) + self.w[f"{name}.bias"].view(shape)

    def block(self, name, x, emb, resize=lambda v: v):
        h = self.conv(
            f"{name}.in_layers.2", resize(F.silu(self.norm(f"{name}.in_layers.0", x))), padding=1
        )
        told = self.lin(f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None]
        if self.s.use_scale_shift_norm:
            scale, shift = told[:, : h.shape[1]], told[:, h.shape[1] :]
            h = self.norm(f"{name}.out_layers.0", h) * (1 + scale) + shift
        else:
            h = self.norm(f"{name}.out_layers.0", h + told)
        h = self.conv(f"{name}.out_layers.3", F.silu(h), padding=1)
        x = resize(x)
        return h + (
            self.conv(f"{name}.skip_connection", x)
            if f"{name}.skip_connection.weight" in self.w
            else x
        )

    def heads(self, width):
        if self.s.num_head_channels:
            return width // self.s.num_head_channels
        return (self.s.num_heads_upsample if self.up else None) or self.s.num_heads

    def attend(self, q, k, v):
        """One head at a time: q, k, v are [channels, tokens]."""
        weights = (q.T @ k / q.shape[0] ** 0.5).softmax(-1)
        return v @ weights.T

    def attention(self, name, x, identity=False):
        b, c, *sides = x.shape
        flat = x.reshape(b, c, -1)
        qkv = self.conv(f"{name}.qkv", self.norm(f"{name}.norm", flat))
        heads = self.heads(c)
        d, new = c // heads, getattr(self.s, "use_new_attention_order", False)
        out = torch.empty_like(flat)
        for i in range(b):
            for h in range(heads):
                # the new order: all queries, all keys, all values; the old: each head's three
                # together
                starts = (
                    [j * c + h * d for j in range(3)]
                    if new
                    else [3 * h * d + j * d for j in range(3)]
                )
                q, k, v = (qkv[i, a : a + d] for a in starts)
                out[i, h * d : (h + 1) * d] = v if identity else self.attend(q, k, v)
        return (flat + self.conv(f"{name}.proj_out", out)).reshape(b, c, *sides)

    def part(self, name, x, emb, resize=None, identity=()):
        """One entry of a block, told by the names of its tensors."""
        if f"{name}.in_layers.0.weight" in self.w:
            return self.block(name, x, emb, **({"resize": resize} if resize else {}))
        if f"{name}.qkv.weight" in self.w:
            return self.attention(name, x, name in identity)
        if f"{name}.op.weight" in self.w:
            return self.conv(f"{name}.op", x, stride=2, padding=1)
        if f"{name}.conv.weight" in self.w:
            return self.conv(f"{name}.conv", doubled(x), padding=1)
        return self.conv(name, x, padding=1)

    def blocks(self, prefix):
        numbers = sorted({int(k.split(".")[1]) for k in self.w if k.startswith(f"{prefix}.")})
        return [
            (n, sorted({int(k.split(".")[2]) for k in self.w if k.startswith(f"{prefix}.{n}.")}))
            for n in numbers
        ]

    def down(self, x, emb, count):
        for n, parts in self.blocks("input_blocks"):
            halve = n > 0 and n % (count + 1) == 0
            for j in parts:
                x = self.part(f"input_blocks.{n}.{j}", x, emb, resize=halved if halve else None)
            yield x

    def middle(self, x, emb, **more):
        for j in range(3):
            x = self.part(f"middle_block.{j}", x, emb, **more)
        return x

    def embedded(self, t):
        width = self.w["time_embed.0.weight"].shape[1]
        return self.lin("time_embed.2", F.silu(self.lin("time_embed.0", waves(t, width))))

    def unet(self, x, t, y=None, identity=()):
        emb = self.embedded(t) + (0 if y is None else self.w["label_emb.weight"][y])
        skips = list(self.down(x, emb, self.s.num_res_blocks))
        x = self.middle(skips[-1], emb, identity=identity)
        self.up = True
        for n, parts in self.blocks("output_blocks"):
            x = torch.cat([x, skips.pop()], 1)
            for j in parts:
                x = self.part(f"output_blocks.{n}.{j}", x, emb, resize=doubled if j else None)
        return self.conv("out.2", F.silu(self.norm("out.0", x)), padding=1)

    def classify(self, x, t):
        emb = self.embedded(t)
        found = list(self.down(x, emb, self.s.depth))
        found.append(self.middle(found[-1], emb))
        x = found[-1]
        if self.s.pool.startswith("spatial"):
            h = self.lin("out.0", torch.cat([f.mean((2, 3)) for f in found], 1))
            return (
                self.lin("out.2", h.relu())
                if self.s.pool == "spatial"
                else self.lin("out.3", F.silu(self.norm("out.1", h)))
            )
        x = F.silu(self.norm("out.0", x))
        if self.s.pool == "adaptive":
            return self.conv("out.3", x.mean((2, 3), keepdim=True)).flatten(1)
        flat = x.flatten(2)
        flat = (
            torch.cat([flat.mean(-1, keepdim=True), flat], -1)
            + self.w["out.2.positional_embedding"]
        )
        qkv, c = self.conv("out.2.qkv_proj", flat), flat.shape[1]
        heads = self.heads(c)
        d, out = c // heads, torch.empty_like(flat)
        for i in range(len(x)):
            for h in range(heads):
                q, k, v = (qkv[i, a + h * d : a + (h + 1) * d] for a in (0, c, 2 * c))
                out[i, h * d : (h + 1) * d] = self.attend(q, k, v)
        return self.conv("out.2.c_proj", out)[:, :, 0]


def halved(x):
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


def doubled(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


UNETS = {
    "as published": {"num_head_channels": 4},
    "new order": {"num_head_channels": 4, "use_new_attention_order": True},
    "heads by number": {"num_head_channels": None, "num_heads": 2, "classes": None},
    "other heads on the way up": {
        "num_head_channels": None,
        "num_heads": 2,
        "num_heads_upsample": 4,
    },
    "convolutions between": {"num_head_channels": 4, "resblock_updown": False},
    "time added": {"num_head_channels": 4, "use_scale_shift_norm": False, "learn_sigma": False},
}


def unet(kind="as published", **more):
    s = UNetSettings(
        num_channels=8, num_res_blocks=1, **{**SMALL, "classes": 5, **UNETS[kind], **more}
    )
    return s, random_state(
        unet_shapes(s), **({"label_emb.weight": (s.classes, 32)} if s.classes else {})
    )


def classifier(pool="attention"):
    s = ClassifierSettings(width=8, depth=1, num_head_channels=4, pool=pool, classes=5, **SMALL)
    more = {"out.2.positional_embedding": (16, 4 * 4 + 1)} if pool == "attention" else {}
    return s, random_state(classifier_shapes(s), seed=1, **more)


X, T, Y = (
    torch.randn(2, 3, 16, 16, generator=torch.manual_seed(3)),
    torch.tensor([30.0, 700.0]),
    torch.tensor([4, 1]),
)


@pytest.mark.parametrize("kind", UNETS)
@torch.no_grad()
def test_adm_fits_key_for_key_and_computes_the_same(kind, tmp_path):
    s, state = unet(kind)
    torch.save(state, tmp_path / "x.pt")
    net = read_adm(tmp_path / "x.pt", s)
    assert list(net.state_dict()) and set(net.state_dict()) == set(state)
    told = {"class_labels": Y} if s.classes else {}
    close(net(X, T, **told), Reference(state, s).unet(X, T, Y if s.classes else None), 1e-5)
    assert not any(p.requires_grad for p in net.parameters()) and not net.training


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
@torch.no_grad()
def test_the_noisy_classifier_fits_and_computes_the_same(pool, tmp_path):
    s, state = classifier(pool)
    torch.save(state, tmp_path / "x.pt")
    net = read_adm_classifier(tmp_path / "x.pt", s)
    assert set(net.state_dict()) == set(state)
    logits = Reference(state, s).classify(X, T)
    close(net(X, T), logits, 1e-5)
    level = VP.linear()(T.double())
    close(net.log_prob(X, level, Y), logits.log_softmax(-1)[[0, 1], Y], 1e-5)


# The paper tells 552 for LSUN; its unconditional network of 256 pixels is the same.
MILLIONS = {
    "64x64": 296,
    "128x128": 422,
    "256x256": 554,
    "256x256_uncond": 553,
    "512x512": 559,
    "lsun": 552,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_of_the_published_networks(name):
    """Their sizes on the meta device; the numbers of parameters are those of the paper's table 4
    where it tells them (in millions).
    """
    about = PUBLISHED[name]
    with torch.device("meta"):
        net = ADM(about.network)
        made = [net] if about.classifier is None else [net, ADMClassifier(about.classifier)]
    millions = sum(p.numel() for p in net.parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS[name], abs=1)
    s = about.network
    widths = {
        512: (0.5, 1, 1, 2, 2, 4, 4),
        256: (1, 1, 2, 2, 4, 4),
        128: (1, 1, 2, 3, 4),
        64: (1, 2, 3, 4),
    }[s.image_size]
    shapes = dict(unet_like(s, widths))
    assert {
        k: tuple(v.shape)
        for k, v in made[0].state_dict().items()
        if k.endswith("weight") and k != "label_emb.weight"
    } == shapes
    if about.classifier is not None:
        assert (
            about.classifier.image_size == s.image_size
            and made[1].out[2].positional_embedding.shape[1] == 8 * 8 + 1
        )


def unet_like(s, widths):
    from dataclasses import replace

    return (
        (f"{name}.weight", shape) for name, shape, _ in unet_shapes(replace(s, channel_mult=widths))
    )


def published(kind="as published", **more):
    s, state = unet(kind)
    c, judge = classifier()
    return Published(network=s, classifier=c, scale=2.0, **more), state, judge


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@torch.no_grad()
def test_a_step_of_classifier_guided_ancestral_sampling(schedule, tmp_path):
    """p_sample of the reference code with its cond_fn: the learnt range of variances, the mean
    displaced by Σ s ∇ log p.
    """
    about, state, judge = published(noise_schedule=schedule)
    torch.save(state, tmp_path / "d.pt")
    torch.save(judge, tmp_path / "c.pt")
    model = adm_model(
        about, diffusion=tmp_path / "d.pt", classifier=tmp_path / "c.pt", classes=list("abcde")
    )
    assert model.defaults == {"guidance": "classifier(2)"} and model.shape == (3, 16, 16)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    if schedule == "cosine":
        bar = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
        betas = torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(bar)], dtype=torch.float64)
    bars = (1 - betas).cumprod(0)
    t, s = 700, 600
    out = Reference(state, about.network).unet(X, torch.full((2,), float(t)), Y)
    eps, v = out[:, :3].double(), out[:, 3:].double()
    bar, prev = bars[t], bars[s]
    beta = 1 - bar / prev  # of the respaced process
    x0 = (X.double() - (1 - bar).sqrt() * eps) / bar.sqrt()
    low, high = (beta * (1 - prev) / (1 - bar)).log(), beta.log()
    variance = ((v + 1) / 2 * high + (1 - (v + 1) / 2) * low).exp()
    mean = (
        beta * prev.sqrt() / (1 - bar) * x0
        + (1 - prev) * (1 - beta).sqrt() / (1 - bar) * X.double()
    )
    x = X.clone().requires_grad_()
    with torch.enable_grad():
        log_p = (
            Reference(judge, about.classifier)
            .classify(x, torch.full((2,), float(t)))
            .log_softmax(-1)[[0, 1], Y]
            .sum()
        )
        gradient = torch.autograd.grad(log_p, x)[0].double()
    draw = gs.Draw([1, 2]).at(0)
    wanted = (
        mean + variance * 2.0 * gradient + variance.sqrt() * draw.normal_like("ddpm", X).double()
    )
    grid = Grid(
        levels=(model.schedule(float(t)), model.schedule(float(s))), schedule=model.schedule
    )
    guided = model.guided("classifier(2, form='mean', variance='learned')", cond=["e", "b"])
    solver = gs.DDPM(variance="learned")
    found, _ = moved(solver, guided, X, grid.step(0), draw)
    close(found.double(), wanted, 2e-5)


@pytest.mark.parametrize(
    ("kind", "judged", "guidance"),
    [
        ("as published", True, "classifier(2)"),
        ("as published", False, "cond"),
        ("heads by number", True, "uncond"),
        ("heads by number", False, "uncond"),
    ],
)
def test_the_guidance_of_a_checkpoint_where_none_is_named(tmp_path, kind, judged, guidance):
    about, state, judge = published(kind)
    torch.save(state, tmp_path / "d.pt")
    torch.save(judge, tmp_path / "c.pt")
    more = {"classifier": tmp_path / "c.pt"} if judged else {}
    model = adm_model(about, diffusion=tmp_path / "d.pt", **more)
    assert model.defaults == {"guidance": guidance} and model.card == {"classifier_scale": 2.0}
    assert set(model.classifiers) == ({"classifier"} if judged else set())
    assert (model.encoder is None) == (kind == "heads by number")
    assert model.name == "adm-16" and model.denoiser.learned_variance


@torch.no_grad()
def test_an_unconditional_network_guided_by_the_classifier_alone(tmp_path):
    about, state, judge = published("heads by number")
    torch.save(state, tmp_path / "d.pt")
    torch.save(judge, tmp_path / "c.pt")
    model = adm_model(about, diffusion=tmp_path / "d.pt", classifier=tmp_path / "c.pt")
    run = {"seeds": [0], "steps": 3, "solver": "ddim"}
    free, one, two = (
        model.sample(guidance=g, **run).x
        for g in (
            "uncond",
            "uncond + classifier(10, target=1)",
            "uncond + classifier(10, target=2)",
        )
    )
    assert not torch.equal(free, one) and not torch.equal(one, two)
    with pytest.raises(
        ValueError, match="there is no class 5 to steer to; the classifier knows 0 to 4"
    ):
        model.sample(guidance="uncond + classifier(10, target=5)", **run)


@torch.no_grad()
def test_perturbed_attention_of_adm(tmp_path):
    """PAG in the middle block: each pixel gets its own value."""
    about, state, _ = published()
    torch.save(state, tmp_path / "d.pt")
    model = adm_model(about, diffusion=tmp_path / "d.pt")
    step, schedule = model.grid(4).step(1), model.schedule
    guided = model.guided("cond + pag(3)", cond=["4", "1"])
    found, _ = guided(X, step)
    t = torch.full((2,), float(step.t.t))
    reference = Reference(state, about.network)
    good, bad = (reference.unet(X, t, Y, identity=i)[:, :3] for i in ((), ("middle_block.1",)))
    level = schedule(step.t.t)
    close(found.x0, (X - level.sigma * (good + 3 * (good - bad))) / level.alpha, 2e-5)
    assert not torch.equal(good, bad)
    seg, _ = model.guided("cond + seg(3, sigma=1)", cond=["4", "1"])(X, step)
    skipped, _ = model.guided("cond + slg(3)", cond=["4", "1"])(X, step)
    assert not torch.equal(seg.x0, found.x0) and not torch.equal(skipped.x0, found.x0)
    with pytest.raises(
        ValueError, match=r"ADM has no layer 'input_blocks.9'; there are input_blocks"
    ):
        model.guided("cond + pag(3, layers='input_blocks.9')", cond=["4", "1"])(X, step)
    with pytest.raises(ValueError, match="ADM has no layer 'of attention to a text'"):
        model.guided("cond + nag(3, negative='1')", cond=["4", "1"])(X, step)


def test_adm_that_is_refused(tmp_path):
    about, state, _ = published()
    file = tmp_path / "d.pt"

    def refused(message, content, **more):
        torch.save(content, file)
        with pytest.raises(ValueError, match=message) as caught:
            adm_model(about, diffusion=file, **more)
        assert "\n" not in str(caught.value)

    refused(
        r"d.pt: the tensor 'out.2.weight' is missing$",
        {k: v for k, v in state.items() if k != "out.2.weight"},
    )
    refused(r"d.pt: the tensor 'extra' is unexpected", {**state, "extra": torch.zeros(1)})
    refused(
        r"'input_blocks.0.0.weight' has the shape \(8, 6, 3, 3\)",
        {**state, "input_blocks.0.0.weight": torch.zeros(8, 6, 3, 3)},
    )
    refused(
        r"'out.2.bias' has the shape \(\), but the network expects \(6,\)$",
        {**state, "out.2.bias": torch.zeros(())},
    )
    refused(
        r"'label_emb.weight' has the shape \(5,\), but the network expects \(5, 32\)$",
        {**state, "label_emb.weight": torch.zeros(5)},
    )
    refused(r"d.pt: holds no state dict \(tensors by name\), but a list", [1])
    refused(
        r"d.pt: holds no state dict \(tensors by name\), but a dict of other things",
        {**state, 3: torch.zeros(1)},
    )
    refused(r"2 names were given for 5 classes", state, classes=["a", "b"])
    file.write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"d.pt: not readable as a state dict without running code from it"
    ):
        adm_model(about, diffusion=file)
    with pytest.raises(ValueError, match=r"nothing.pt: there is no such file"):
        adm_model(about, diffusion=tmp_path / "nothing.pt")
    with pytest.raises(
        ValueError,
        match=r"unknown guided-diffusion model '32x32'; there are 64x64, 128x128, .*upsamplers "
        r"are not read",
    ):
        adm_model("32x32", diffusion=file)
    with pytest.raises(ValueError, match=r"'lsun' has no classifier; leave classifier= out"):
        torch.save(random_state(unet_shapes(about.network)), file)
        monkey = Published(
            network=UNetSettings(
                num_channels=8,
                num_res_blocks=1,
                **{**SMALL, "classes": None, "num_head_channels": 4},
            ),
            classifier=None,
            scale=0.0,
        )
        PUBLISHED_LSUN, PUBLISHED["lsun"] = PUBLISHED["lsun"], monkey
        try:
            adm_model("lsun", diffusion=file, classifier=file)
        finally:
            PUBLISHED["lsun"] = PUBLISHED_LSUN


class Evil:
    def __reduce__(self):
        return (print, ("this code was run",))


def test_no_code_of_a_checkpoint_is_run(tmp_path, capsys):
    torch.save({"x": Evil()}, tmp_path / "x.pt")
    (tmp_path / "y.pkl").write_bytes(pickle.dumps({"ema": Evil()}))
    for name in ("x.pt", "y.pkl"):
        with pytest.raises(
            ValueError,
            match=r"without running code from it .*where you trust it, load it by its authors' "
            r"code",
        ):
            read_state_dict(tmp_path / name)
    assert "this code was run" not in capsys.readouterr().out
    state = {"a": torch.zeros(2)}
    torch.save({"ema": state, "opt": state}, tmp_path / "t.pt")
    assert list(read_state_dict(tmp_path / "t.pt")) == ["a"]


# --- DiT ---


def dit_state(width=24, depth=2, channels=4, patch=2, side=8, classes=5, outputs=8, seed=0):
    shapes = [
        ("x_embedder.proj", (width, channels, patch, patch)),
        ("t_embedder.mlp.0", (width, 256)),
        ("t_embedder.mlp.2", (width, width)),
    ]
    for i in range(depth):
        shapes += [
            (f"blocks.{i}.attn.qkv", (3 * width, width)),
            (f"blocks.{i}.attn.proj", (width, width)),
        ]
        shapes += [
            (f"blocks.{i}.mlp.fc1", (4 * width, width)),
            (f"blocks.{i}.mlp.fc2", (width, 4 * width)),
            (f"blocks.{i}.adaLN_modulation.1", (6 * width, width)),
        ]
    shapes += [
        ("final_layer.linear", (patch * patch * outputs, width)),
        ("final_layer.adaLN_modulation.1", (2 * width, width)),
    ]
    state = random_state([(n, s, False) for n, s in shapes], seed)
    places = torch.tensor(
        [[place(h, w, width) for w in range(side // patch)] for h in range(side // patch)]
    ).flatten(0, 1)[None]
    return {
        **state,
        "y_embedder.embedding_table.weight": torch.randn(
            classes + 1, width, generator=torch.manual_seed(seed)
        ),
        "pos_embed": places.float(),
    }


def place(row, column, width):
    """A quarter each: sines and cosines of the column, then of the row."""
    f = [1 / 10000 ** (k / (width / 4)) for k in range(width // 4)]
    return [fn(p * w) for p in (column, row) for fn in (math.sin, math.cos) for w in f]


def layer_norm(x):
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()


def dit_reference(w, x, t, y, heads, patch=2):
    lin = lambda name, v: v @ w[f"{name}.weight"].T + w[f"{name}.bias"]
    b, c, side, _ = x.shape
    n = side // patch
    patches = x.reshape(b, c, n, patch, n, patch).permute(0, 2, 4, 1, 3, 5).reshape(b, n * n, -1)
    h = (
        patches @ w["x_embedder.proj.weight"].flatten(1).T
        + w["x_embedder.proj.bias"]
        + w["pos_embed"]
    )
    cond = (
        lin("t_embedder.mlp.2", F.silu(lin("t_embedder.mlp.0", waves(t, 256))))
        + w["y_embedder.embedding_table.weight"][y]
    )
    width = h.shape[-1]
    for i in range(len({k.split(".")[1] for k in w if k.startswith("blocks.")})):
        shift1, scale1, gate1, shift2, scale2, gate2 = lin(
            f"blocks.{i}.adaLN_modulation.1", F.silu(cond)
        )[:, None].split(width, -1)
        q, k, v = (
            lin(f"blocks.{i}.attn.qkv", layer_norm(h) * (1 + scale1) + shift1)
            .reshape(b, n * n, 3, heads, -1)
            .permute(2, 0, 3, 1, 4)
        )
        a = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        h = h + gate1 * lin(f"blocks.{i}.attn.proj", a.transpose(1, 2).reshape(b, n * n, width))
        m = lin(f"blocks.{i}.mlp.fc1", layer_norm(h) * (1 + scale2) + shift2)
        m = 0.5 * m * (1 + (math.sqrt(2 / math.pi) * (m + 0.044715 * m**3)).tanh())
        h = h + gate2 * lin(f"blocks.{i}.mlp.fc2", m)
    shift, scale = lin("final_layer.adaLN_modulation.1", F.silu(cond))[:, None].split(width, -1)
    out = lin("final_layer.linear", layer_norm(h) * (1 + scale) + shift).reshape(
        b, n, n, patch, patch, -1
    )
    return torch.einsum("nhwpqc->nchpwq", out).reshape(b, -1, side, side)


@torch.no_grad()
def test_dit_of_the_authors(tmp_path):
    state = dit_state()
    torch.save(state, tmp_path / "DiT-small.pt")
    net = read_dit(tmp_path / "DiT-small.pt", heads=3)
    x, t, y = (
        torch.randn(2, 4, 8, 8, generator=torch.manual_seed(1)),
        torch.tensor([3.0, 777.0]),
        torch.tensor([2, 5]),
    )
    close(net(x, timestep=t, class_labels=y).sample, dit_reference(state, x, t, y, 3), 1e-5)
    model = dit_model(tmp_path / "DiT-small.pt", heads=3, classes=list("abcde"))
    assert (
        model.name == "DiT-small"
        and model.shape == (4, 8, 8)
        and model.defaults["guidance"] == "cfg(4, channels=3)"
    )
    # Three channels guided, as the authors' script does; the null is the row after the last class.
    step = model.grid(5).step(2)
    found, _ = model.guided(cond=["c", "a"])(x, step)
    out = [
        dit_reference(state, x, torch.full((2,), float(step.t.t)), torch.tensor(k), 3)[:, :4]
        for k in ([2, 0], [5, 5])
    ]
    eps = torch.cat([out[1][:, :3] + 4 * (out[0][:, :3] - out[1][:, :3]), out[0][:, 3:]], 1)
    close(found.x0, (x - step.t.sigma * eps) / step.t.alpha, 2e-5)
    assert not torch.equal(
        model.guided("cond + pag(2)", cond=["c", "a"])(x, step)[0].x0,
        model.guided("cond", cond=["c", "a"])(x, step)[0].x0,
    )


def test_dit_that_is_refused(tmp_path):
    file = tmp_path / "d.pt"

    def refused(message, change):
        state = dit_state()
        change(state)
        torch.save(state, file)
        with pytest.raises(ValueError, match=message):
            read_dit(file, heads=3)

    refused(
        "the tensor 'blocks.1.attn.qkv.bias' is missing; is this DiT's",
        lambda w: w.pop("blocks.1.attn.qkv.bias"),
    )
    refused(
        "the tensor 'blocks.0.attn.q_norm.weight' is unexpected",
        lambda w: w.update({"blocks.0.attn.q_norm.weight": torch.ones(8)}),
    )
    refused(
        "'pos_embed' is not the official one", lambda w: w.update(pos_embed=w["pos_embed"] + 0.1)
    )
    refused(
        r"'final_layer.linear.weight' has the shape \(32, 23\), but the other tensors need "
        r"\(32, 24\)$",
        lambda w: w.update({"final_layer.linear.weight": torch.zeros(32, 23)}),
    )
    torch.save(dit_state(), file)
    with pytest.raises(
        ValueError,
        match=r"a width of 24 is none of the published ones .*; give heads=, a divisor of it",
    ):
        read_dit(file)
    with pytest.raises(ValueError, match="2 names were given for 5 classes"):
        dit_model(file, heads=3, classes=["a", "b"])


@pytest.mark.parametrize("name", dit_state())
def test_a_tensor_of_dit_of_another_shape_is_named(name, tmp_path):
    """Whatever its rank: with its shape, and what was expected."""
    for shape in [(), (5,), (1, 1), (2, 3, 4), (0, 24, 2, 2), (1, 17, 24), (72, 24, 1)]:
        torch.save({**dit_state(), name: torch.zeros(shape)}, tmp_path / "d.pt")
        with pytest.raises(
            ValueError,
            match=r"d.pt: the tensor '.*' has the shape \(.*\), but (\[.*\] was expected; is "
            r"this DiT's|the other tensors need \()",
        ) as caught:
            read_dit(tmp_path / "d.pt", heads=3)
        assert f"the tensor {name!r} has the shape {shape}, " in str(caught.value)


# --- EDM and k-diffusion ---


class Precond(nn.Module):
    """EDM's preconditioning around a network, as its modules are: called with sigma, telling of
    themselves.
    """

    img_channels, img_resolution, label_dim, sigma_min, sigma_max = 2, 4, 3, 0.0, float("inf")

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.told, self.conv = nn.Linear(3, 2), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        x, sigma = x.float(), sigma.float().reshape(-1, 1, 1, 1)
        skip, out = 0.25 / (sigma**2 + 0.25), sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        inner = (
            self.conv(x / (sigma**2 + 0.25).sqrt())
            + (sigma.log() / 4)
            + self.told(class_labels)[:, :, None, None]
        )
        return skip * x + out * inner.tanh()


@torch.no_grad()
def test_denoisers_of_edm():
    net = Precond()
    model = edm_model(net)
    assert model.shape == (2, 4, 4) and model.schedule == VE() and model.classes == ("0", "1", "2")
    x = 3 * torch.randn(2, 2, 4, 4, generator=torch.manual_seed(1))
    onehot = torch.tensor([[0.0, 1, 0], [0, 0, 0]])
    cond = model.encoder.encode(["1", ""])
    assert (
        torch.equal(cond["class_labels"], onehot)
        and not model.encoder.null(2)["class_labels"].any()
    )
    for level, sigma in (
        (model.schedule(2.5), 2.5),
        (VP.linear()(400.0), None),
        (VE()(torch.tensor([0.5, 7.0], dtype=torch.float64)), torch.tensor([0.5, 7.0])),
    ):
        ratio = torch.as_tensor(level.rho if sigma is None else sigma, dtype=torch.float32).expand(
            2
        )
        alpha = 1.0 if sigma is not None else level.alpha
        close(model.denoiser(x, level, cond), net(x / alpha, ratio, onehot), 1e-6)
    # The authors' sampler, written out: Heun's method on Karras' grid, sigma 80 to 0.002, no churn.
    n = 18
    t = torch.tensor(
        [(80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(n)]
        + [0.0],
        dtype=torch.float64,
    )
    start = gs.Draw([5, 6]).at(-1).normal("start", model.shape)
    labels = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])
    y = start.double() * 80
    for a, b in pairwise(t):
        slope = (y - net(y, a.expand(2), labels).double()) / a
        new = y + (b - a) * slope
        if b > 0:
            new = y + (b - a) * (slope + (new - net(new, b.expand(2), labels).double()) / b) / 2
        y = new
    found = model.sample(["0", "2"], seeds=[5, 6])
    close(found.x.double(), y, 1e-4)
    assert found.settings.solver == "heun" and found.settings.steps == 18


def test_denoisers_of_k_diffusion_and_what_is_refused():
    plain = lambda x, sigma: x / (1 + sigma.view(-1, 1) ** 2)
    model = edm_model(plain, shape=(3,), name="k")
    assert model.encoder is None
    samples = model.sample(seeds=[0, 1], steps=60)
    assert (
        samples.x.abs().max() < 5 and samples.x.std() > 0.1
    )  # data of standard deviation 1, exactly denoised
    x, level = torch.randn(2, 3), model.schedule(2.0)
    close(EDMDenoiser(plain)(x, level, Condition()), x / 5)
    with pytest.raises(
        ValueError,
        match=r"no attributes img_channels and img_resolution.*; give shape=",
    ):
        edm_model(plain)
    with pytest.raises(ValueError, match="2 classes were given for a network of 3"):
        edm_model(Precond(), classes=["a", "b"])
    with pytest.raises(
        ValueError,
        match=r"which a dict is not; a .pkl must be loaded by its authors' code, and the module "
        r"given",
    ):
        edm_model({}, shape=(3,))
