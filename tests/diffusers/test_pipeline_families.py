"""Guided pipelines of each family, against the pipeline's own guidance and against what is written
out in plain torch.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import guidestar
from diffusers import FluxPipeline, PixArtAlphaPipeline
from guidestar import Post, cond
from guidestar.diffusers.guide.call import Call, grouped
from guidestar.diffusers.guide.families import FAMILIES
from helpers.pipeline_families import MAKE, family, flux
from helpers.pipelines import quiet

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

CONDITIONED = [n for n in MAKE if n != "ddpm"]
LAYERED = ("sdxl", "pixart", "dit", "sd3", "flux")


def close(a, b, tolerance=1e-6):
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@pytest.mark.filterwarnings("ignore:min_guidance_scale:UserWarning")
@pytest.mark.parametrize("name", CONDITIONED)
def test_cfg_is_the_pipelines_own(name):
    f = family(name)
    # Diffusers repeats the two halves' sizes in turn, so row by row they are not what was meant;
    # ours are told the same.
    sizes = (
        {"negative_original_size": (9, 9), "negative_target_size": (8, 8)} if name == "sdxl" else {}
    )
    own = f.draw(**sizes)
    with guidestar.guided(f.pipe, "cfg(4)"):
        assert close(f.draw(**{f.scale: 2.0}, **sizes), own)
    with guidestar.guided(f.pipe, "cfg(3)"):
        assert not close(f.draw(**sizes), own, 1e-3)
    assert torch.equal(f.draw(**sizes), own)


@dataclass(frozen=True)
class Record(Post):
    """Writes down the clean estimate at each evaluation."""

    seen: list

    name = "record"

    def apply(self, prediction, live):
        self.seen.append(prediction.x0.clone())
        return prediction


def clean(f, scheduler, i, t, x, out):
    """The clean estimate that the scheduler reads at call i of the network, written out."""
    out, x = out.double(), x.double()
    if not hasattr(scheduler, "sigmas"):
        bar = float(scheduler.alphas_cumprod[t])
        return (x - (1 - bar) ** 0.5 * out) / bar**0.5
    s = float(scheduler.sigmas[i])
    n = (1 + s * s) ** 0.5
    if f.predicts == "velocity":
        return x - s * out
    if f.predicts in ("v", "edm"):  # edm with data of deviation 1
        return x / n**2 - s / n * out
    return x - s * out if "Euler" in type(scheduler).__name__ else n * x - s * out


@pytest.mark.parametrize("name", MAKE)
def test_what_a_network_means_is_what_the_scheduler_reads(name):
    f, seen, theirs = family(name), [], []
    scheduler, step = f.pipe.scheduler, f.pipe.scheduler.step

    def stepped(out, t, x, **more):
        theirs.append(clean(f, scheduler, len(theirs), t, x, out[:, : x.shape[1]]))
        return step(out, t, x, **more)

    scheduler.step = stepped
    with guidestar.guided(f.pipe, (guidestar.uncond if name == "ddpm" else cond) | Record(seen)):
        f.draw()
    assert len(seen) == len(theirs) >= 3
    for x0, own in zip(seen, theirs, strict=True):
        assert close(x0, (f.packed(own) if f.packed else own)[: len(x0)], 2e-6)


@pytest.mark.parametrize("name", CONDITIONED)
def test_a_sample_does_not_depend_on_the_others(name):
    f = family(name)
    expression = "apg(4, momentum=-0.5, interval=(0, 20))" + (
        " + pag(2)" if name in LAYERED else ""
    )
    with guidestar.guided(f.pipe, expression):
        together = f.draw(2, 0)
        # Some pipelines draw and step in float32.
        assert close(together, torch.cat([f.draw(1, k) for k in (0, 1)]), 1e-5)
        assert torch.equal(f.draw(2, 0), together)
    with guidestar.guided(f.pipe, "cfg(4)"):
        assert not close(f.draw(), together, 1e-4)


@pytest.mark.parametrize("kind", [*LAYERED, "pixart-alpha"])
def test_one_image_without_a_negative_pass(kind):
    """Its network is told one timestep, and more rows than one."""
    f = family(kind.removesuffix("-alpha"))
    if kind == "pixart-alpha":
        parts = dict(f.pipe.components)
        f.pipe = quiet(PixArtAlphaPipeline(**parts))
    f.more = {"guidance_scale": 1.0}
    if kind == "flux":
        f.more |= {"negative_prompt_embeds": None, "negative_pooled_prompt_embeds": None}
    f.scale = None
    own = f.draw(1)
    with guidestar.guided(f.pipe, "cond + pag(3)"):
        one, two = f.draw(1), f.draw(2)
    assert close(one, two[:1], 1e-5) and not close(one, own, 1e-3)


def test_two_pictures_of_each_row_stay_with_it():
    """As Wan tells its first and last frame: [2B, L, D], of the prompt's call and of the
    negative's.
    """
    wan = FAMILIES["WanTransformer3DModel"]

    def call(part, first):
        told = {
            "hidden_states": torch.zeros(2, 4, 1, 2, 2),
            "encoder_hidden_states": torch.zeros(2, 3, 8),
            "timestep": torch.zeros(2),
        }
        pictures = torch.arange(first, first + 4.0).reshape(4, 1, 1)
        return Call(
            family=wan,
            arguments=grouped({**told, "encoder_hidden_states_image": pictures}, 2),
            parts=(part,),
            channels=4,
            learned_variance=False,
        )

    both = call("cond", 0).merged(call("uncond", 10))
    for part, wanted in (("cond", [0, 1, 2, 3]), ("uncond", [10, 11, 12, 13])):
        told = both.inputs(torch.zeros(2, 4, 1, 2, 2), None, both.condition(part))
        assert told["encoder_hidden_states_image"].flatten().tolist() == wanted
    second = both.condition("cond").take(torch.tensor([1]))
    assert both.inputs(torch.zeros(1, 4, 1, 2, 2), None, second)[
        "encoder_hidden_states_image"
    ].flatten().tolist() == [2, 3]


def heard(net):
    """Collect how many rows each call of the network has."""
    rows = []
    return rows, net.register_forward_hook(
        lambda m, args, kwargs, out: rows.append(len(out[0])), with_kwargs=True
    )


@pytest.mark.parametrize("name", ["sd3", "flux", "wan"])
def test_an_interval_saves_passes(name):
    f = family(name)
    net = f.pipe.transformer
    rows, handle = heard(net)
    with guidestar.guided(f.pipe, "cfg(4, interval=(0, 4))"):
        f.draw()
    handle.remove()
    guides = [0 < float(s) / (1 - float(s) + 1e-12) <= 4 for s in f.pipe.scheduler.sigmas[:3]]
    assert rows == [4 if g else 2 for g in guides] and True in guides and False in guides


def test_dits_three_of_four_channels():
    f = family("dit")
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net, scheduler = f.pipe.transformer, f.pipe.scheduler
    seen = []
    with guidestar.guided(f.pipe, guidestar.cfg(4, channels=3) | Record(seen)):
        f.draw()
    x = torch.cat(
        [
            torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
            for k in (0, 1)
        ]
    )
    t = scheduler.timesteps[0]
    with torch.no_grad():
        c, u = (
            net(x, timestep=t.expand(2), class_labels=torch.tensor(y)).sample[:, :4]
            for y in ([3, 4], [1000, 1000])
        )
    eps = torch.cat([(u + 4 * (c - u))[:, :3], c[:, 3:]], 1)
    bar = scheduler.alphas_cumprod[t]
    assert close(seen[0], (x - (1 - bar) ** 0.5 * eps) / bar**0.5, 1e-9)


def test_dits_classes_by_name():
    f = family("dit")
    f.pipe.scheduler.set_timesteps(3)
    with guidestar.guided(f.pipe, "cfg(3, negative='cock')"):
        named = f.draw()
    with guidestar.guided(f.pipe, "cfg(3, negative=4)"):
        assert torch.equal(f.draw(), named)
    with (
        guidestar.guided(f.pipe, "cfg(3, negative='dodo')"),
        pytest.raises(ValueError, match=r"has no class 'dodo'; pipe\.labels lists"),
    ):
        f.draw()


def test_a_pipeline_without_a_condition():
    f = family("ddpm")
    own = f.draw()
    with guidestar.guided(f.pipe, "uncond"):
        assert close(f.draw(), own, 1e-9)
    with guidestar.guided(f.pipe, "pag(3) + sag(0.5)"):
        assert not close(f.draw(), own, 1e-3)
    with (
        guidestar.guided(f.pipe, "cfg(3)"),
        pytest.raises(
            ValueError,
            match=r"DDPMPipeline takes no condition: cfg contrasts the model with and without "
            r"its condition$",
        ),
    ):
        f.draw()
    with (
        guidestar.guided(f.pipe, "uncond | rescale(0.7)"),
        pytest.raises(
            ValueError, match="takes no condition, but rescale needs the conditional pass"
        ),
    ):
        f.draw()
    assert torch.equal(f.draw(), own)


def test_flux_without_its_negative_pass():
    f = flux(distilled=True)
    quiet(f.pipe)
    ask = {"negative_prompt_embeds": None, "negative_pooled_prompt_embeds": None}
    own = f.draw(**ask)
    with guidestar.guided(f.pipe, "cond"):
        assert close(f.draw(**ask), own)
    with guidestar.guided(f.pipe, "pag(2)"):
        assert not close(f.draw(**ask), own, 1e-3)
    with (
        guidestar.guided(f.pipe, "apg(4)"),
        pytest.raises(
            ValueError,
            match=r"apg needs the negative pass.*true_cfg_scale=2.*distilled for "
            r"guidance.*pag\(3\)",
        ),
    ):
        f.draw(**ask)
    negative = f.draw()
    with guidestar.guided(f.pipe, "cfg(4)"):
        assert close(f.draw(true_cfg_scale=2.0), negative)


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_negative_in_the_attention_of_a_pipeline_without_a_negative_pass(name):
    f = family(name)
    f.scale, negative = None, f.ask(2, 0)
    ask = (
        {"guidance_scale": 0.0}
        if name == "sd3"
        else {k: None for k in negative if k.startswith("negative_")}
    )
    told = negative["negative_prompt_embeds"][:1], negative["negative_pooled_prompt_embeds"][:1]

    def encode_prompt(
        prompt=None, prompt_embeds=None, pooled_prompt_embeds=None, own=f.pipe.encode_prompt, **more
    ):
        if prompt != ["mud"]:
            return own(
                prompt=prompt,
                prompt_embeds=prompt_embeds,
                pooled_prompt_embeds=pooled_prompt_embeds,
                **more,
            )
        return (told[0], None, told[1], None) if name == "sd3" else (*told, None)

    f.pipe.encode_prompt = encode_prompt
    own = f.draw(1, **ask)
    with guidestar.guided(f.pipe, "nag(5, negative='mud')"):
        named = f.draw(1, **ask)
    assert not close(named, own, 1e-3)
    with (
        guidestar.guided(f.pipe, "nag(5)"),
        pytest.raises(ValueError, match="nag needs the negative pass"),
    ):
        f.draw(1, **ask)
    f.scale = "guidance_scale" if name == "sd3" else "true_cfg_scale"
    with guidestar.guided(f.pipe, "nag(5)"):
        assert close(f.draw(1), named)


def test_flux_packs_in_one_way():
    """As its pipeline does, and with the refusal of odd sides wherever latents are packed."""
    x, packing = (
        torch.arange(2 * 4 * 6 * 10.0).reshape(2, 4, 6, 10),
        FAMILIES["FluxTransformer2DModel"],
    )
    grid = packing.grid(
        {"img_ids": FluxPipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32)}
    )
    packed = FluxPipeline._pack_latents(x, 2, 4, 6, 10)
    assert (
        grid == (6, 10)
        and torch.equal(packing.pack(x, grid), packed)
        and torch.equal(packing.unpack(packed, grid), x)
    )
    with pytest.raises(ValueError, match="sides must be even, not 5×10"):
        packing.pack(x[:, :, :5], grid)


def test_a_video_without_its_negative_pass():
    f = family("svd")
    line = (
        "cfg needs the negative pass, but StableVideoDiffusionPipeline was called with "
        "max_guidance_scale=1, at which it makes none; give any max_guidance_scale above 1"
    )
    with guidestar.guided(f.pipe, "cfg(4)"), pytest.raises(ValueError, match=line):
        f.draw(min_guidance_scale=1.0, max_guidance_scale=1.0)


def test_sd3s_own_skipped_layers_are_refused():
    f = family("sd3")
    with (
        guidestar.guided(f.pipe, "cfg(4)"),
        pytest.raises(
            ValueError,
            match=r"skips layers itself \(skip_guidance_layers\); leave that out, and write slg",
        ),
    ):
        f.draw(
            skip_guidance_layers=[1], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
        )
    theirs = f.draw(
        skip_guidance_layers=[1],
        skip_layer_guidance_start=0.3,
        skip_layer_guidance_stop=1.0,
        skip_layer_guidance_scale=2.8,
    )
    level = float(f.pipe.scheduler.sigmas[1])
    with guidestar.guided(
        f.pipe,
        "cfg(4) + slg(2.8, layers='transformer_blocks.1', interval=(0, "
        f"{level / (1 - level) * 1.001}))",
    ):
        assert close(f.draw(), theirs)


class Dark:
    """A classifier of anything."""

    def log_prob(self, x, level, target):
        return -(x.double() ** 2).flatten(1).sum(1)


COLUMNS = {
    "cfg": "apg(3) + tcfg(2) + mambo(2) + adaptive(2)",
    "fdg": "fdg(3)",
    "cfg_zero": "cfg_zero(3, zero=1)",
    "posts": "cond | rescale(0.7) | threshold(0.9)",
    "pag": "pag(2) + seg(2)",
    "slg": "slg(2) + tpg(1)",
    "sag": "sag(0.5)",
    "nag": "nag(5)",
    "autoguidance": "autoguidance(2)",
    "classifier": "classifier(1, target=0)",
    "cads": "cond | cads(0.2)",
    "icg": "icg(2)",
    "tsg": "tsg(2)",
}
REASONS = {
    "a": "sag blurs a picture's grid",
    "b": "has no layer of attention to text that can be contrasted",
    "c": "has no (layer of self-attention|block that can be skipped)",
    "d": "computes its time from the noise ratio",
    "e": "real numbers",
    "f": "DDPMPipeline takes no condition",
}


def table():
    """The table of what works, as the document has it."""
    text = (Path(__file__).parents[2] / "docs" / "diffusers.md").read_text()
    lines = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in text.split("<!-- what works -->")[1].strip().splitlines()
    ]
    names = [cell.split("`")[1] for cell in lines[0][1:]]
    return [
        (family.strip("`"), name, cell)
        for family, *cells in lines[2:]
        for name, cell in zip(names, cells, strict=True)
    ]


def test_the_documents_table_has_every_family():
    families = {f for f, _, _ in table()}
    assert families == set(MAKE) - {"sd3-heun"} and {c for _, c, _ in table()} == set(COLUMNS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in MAKE if n != "sd3-heun"])
def test_what_the_document_says_works_and_what_not(name):
    f = family(name)
    net = getattr(f.pipe, "unet", None) or f.pipe.transformer
    weak = copy.deepcopy(net)
    with torch.no_grad():
        for p in weak.parameters():
            p.mul_(0.9)
    f.more = {"num_inference_steps": 2}
    own = f.draw()
    for _, column, cell in [row for row in table() if row[0] == name]:
        expression = (
            "uncond | threshold(0.9)" if (name, column) == ("ddpm", "posts") else COLUMNS[column]
        )
        options = {"nets": {"weak": weak}, "classifiers": {"classifier": Dark()}}
        if cell == "✓":
            with guidestar.guided(f.pipe, expression, **options):
                changed = f.draw()
            assert changed.isfinite().all() and not torch.equal(changed, own), column
        else:
            with (
                pytest.raises(ValueError, match=REASONS[cell]),
                guidestar.guided(f.pipe, expression, **options),
            ):
                f.draw()


def test_an_argument_left_out_has_the_pipelines_default():
    f = family("dit")
    f.scale = None
    own = f.draw()
    with guidestar.guided(f.pipe, "cfg(4)"):  # DiTPipeline's default
        assert close(f.draw(), own)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_another_time_is_told_in_the_networks_units(name):
    f, told = family(name), []
    net = getattr(f.pipe, "unet", None) or f.pipe.transformer
    embedding = net.time_embedding if name == "sdxl" else net.time_text_embed
    module = net.time_proj if name == "sdxl" else embedding.time_proj
    handle = module.register_forward_hook(lambda m, args, out: told.append(args[0].double()))
    with guidestar.guided(f.pipe, "tsg(2, noise=0.3)"):
        f.draw()
    handle.remove()
    assert len(told) == 3
    for given, t in zip(told, f.pipe.scheduler.timesteps.double(), strict=True):
        # Flux tells a share of 1 and multiplies it within; two rows are told the truth, two another
        # time.
        assert close(given[:2], t.expand(2))
        assert close(given[2:], t.expand(2), 1e-3) == (t == 0)
        assert bool((given >= 0).all()) and bool((given <= 1000).all())
