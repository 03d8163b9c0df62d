"""What people do with their pipelines goes on: adapters, callbacks, offloading, compiling; and what
is refused says why.
"""

import inspect
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig

import diffusers
import guidestar
from diffusers import (
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KarrasVeScheduler,
    StableDiffusionPipeline,
    UNet2DModel,
)
from guidestar.diffusers.guide.families import FAMILIES, negative_rows
from guidestar.diffusers.guide.kinds import KNOWN_PIPELINES
from guidestar.diffusers.guide.levels import read_timetable
from guidestar.diffusers.guide.run import Run
from guidestar.diffusers.guide.walk import Wanted
from guidestar.guidance.term import as_guidance
from helpers import pipeline_folders as made
from helpers.pipelines import (
    REQUEST,
    SCHEDULE,
    STEPS,
    close,
    controlled,
    drawn,
    image_prompted,
    quiet,
    seeded,
    stable_diffusion,
    text_unet,
    told,
    walked,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def start():
    return torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("guess", [False, True])
def test_controlnet(guess):
    pipe, told_it = controlled()
    more = {**told_it, "guess_mode": guess}
    own = drawn(pipe, **more)
    assert not close(drawn(pipe, **more, controlnet_conditioning_scale=0.0), own, 1e-2)
    with guidestar.guided(pipe, "cfg(5)"):
        assert close(drawn(pipe, **more, guidance_scale=2.0), own, 1e-9)
    with guidestar.guided(pipe, "cfg(5, interval=(0, 3)) + pag(2)"):
        together = drawn(pipe, **more)
        second = {
            **more,
            "image": more["image"][1],
            "prompt": REQUEST["prompt"][1],
            "negative_prompt": "mud",
            "generator": seeded(4),
        }
        assert close(together[1:], drawn(pipe, **second), 1e-9)


def test_lora():
    """Adapters loaded, scaled and fused under a guidance act as they do without it; one of the
    second network is its own.
    """
    pipe, plain = guidestar.guide(stable_diffusion(), "cfg(5)"), stable_diffusion()
    before = drawn(pipe)
    for p in (pipe, plain):
        torch.manual_seed(5)
        p.unet.add_adapter(
            LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False),
            adapter_name="style",
        )
    with_lora = drawn(pipe, guidance_scale=2.0)
    assert not close(with_lora, before, 1e-3) and close(with_lora, drawn(plain), 1e-9)
    for p in (pipe, plain):
        p.unet.set_adapters(["style"], weights=[0.3])
    weaker = drawn(pipe)
    assert close(weaker, drawn(plain), 1e-9) and not close(weaker, with_lora, 1e-3)
    with guidestar.guided(
        plain,
        "cfg(5) + pag(2) + autoguidance(1.5, net='weak')",
        nets={"weak": stable_diffusion().unet},
    ):
        assert not close(drawn(plain), weaker, 1e-3)
    for p in (pipe, plain):
        p.unet.fuse_lora()
    assert close(drawn(pipe), weaker, 1e-9)
    for p in (pipe, plain):
        p.unet.unfuse_lora()
        p.unet.delete_adapters(["style"])
    assert close(drawn(pipe), before, 1e-9) and close(
        drawn(guidestar.guide(plain, None)), before, 1e-9
    )


def test_ip_adapter():
    pipe = guidestar.guide(stable_diffusion(), "cfg(5)")
    without = drawn(pipe)
    image = image_prompted(pipe)
    own = drawn(guidestar.guide(pipe, None), **image)
    assert not close(own, without, 1e-3)
    with guidestar.guided(pipe, "cfg(5)"):
        assert close(drawn(pipe, **image, guidance_scale=2.0), own, 1e-9)


def test_nag_is_refused_where_pictures_are_told_with_the_text():
    """As soon as it is asked for: when guiding, or at the first call under an adapter that was
    loaded afterwards.
    """
    pipe, line = (
        stable_diffusion(),
        r"^a UNet2DConditionModel that takes pictures .* leave nag out, or take the adapter "
        r"off first: pipe.unload_ip_adapter\(\)$",
    )
    with guidestar.guided(pipe, "cfg(5) + nag(3)"):
        plain = drawn(pipe)
        image = image_prompted(pipe)
        with pytest.raises(ValueError, match=line):
            drawn(pipe, **image)
        with pytest.raises(ValueError, match=line):
            guidestar.guide(pipe, "nag(3, interval=(0, 1e-9))")
        pipe.unload_ip_adapter()
        assert torch.equal(drawn(pipe), plain)


def test_callbacks_go_on():
    pipe, seen = stable_diffusion(), []

    def change(pipe, i, t, kept):
        seen.append(i)
        return {"latents": kept["latents"] * 0.9}

    own = drawn(pipe, callback_on_step_end=change)
    with guidestar.guided(pipe, "cfg(5)"):
        assert close(drawn(pipe, callback_on_step_end=change), own, 1e-9)
    assert seen == [*range(STEPS)] * 2


def test_a_callback_that_ends_the_negative_pass_is_told_of_intervals():
    def stop(pipe, i, t, kept):
        pipe._guidance_scale = 1.0
        return {"prompt_embeds": kept["prompt_embeds"].chunk(2)[1]}

    with (
        guidestar.guided(stable_diffusion(), "cfg(5)") as pipe,
        pytest.raises(
            ValueError, match=r"cfg needs the negative pass.*ended it during the run.*interval="
        ),
    ):
        drawn(
            pipe,
            callback_on_step_end=stop,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
        )


def traces(pipe):
    """What guiding could leave behind."""
    nets = (pipe.unet, pipe.vae, pipe.text_encoder)
    return [
        type(pipe),
        *map(type, nets),
        dict(pipe.config),
        *[
            (n, vars(m).get("forward"), len(m._forward_pre_hooks))
            for net in nets
            for n, m in net.named_modules()
        ],
    ]


def test_nothing_is_left_behind_not_even_by_an_exception():
    pipe = stable_diffusion()
    before, own = traces(pipe), drawn(pipe)

    def broken(pipe, i, t, kept):
        assert (
            pipe.unet.config.in_channels == 4 and type(pipe.unet).__name__ == "UNet2DConditionModel"
        )
        raise KeyError("broken")

    with guidestar.guided(pipe, "apg(5) + pag(2)"):
        clean = drawn(pipe)
        with pytest.raises(KeyError, match="broken"):
            drawn(pipe, callback_on_step_end=broken)
        assert type(pipe.unet) is before[1]
        assert torch.equal(drawn(pipe), clean)  # no momentum from the broken run
    assert traces(pipe) == before and torch.equal(drawn(pipe), own)
    guidestar.guide(guidestar.guide(pipe, "cfg(3)"), "cfg(4)")
    with guidestar.guided(pipe, "cfg(2)"):
        pass
    assert close(drawn(pipe), drawn(stable_diffusion(), guidance_scale=4.0), 1e-9)
    guidestar.guide(pipe, None)
    assert traces(pipe) == before and torch.equal(drawn(pipe), own)


@pytest.mark.filterwarnings("ignore:this StableDiffusionPipeline is guided")
def test_saving_a_guided_pipeline_saves_the_pipeline(tmp_path):
    guidestar.guide(stable_diffusion(), "cfg(3)").save_pretrained(tmp_path)
    assert '"_class_name": "StableDiffusionPipeline"' in (tmp_path / "model_index.json").read_text()


def test_a_scheduler_may_be_changed():
    pipe = guidestar.guide(stable_diffusion(), "cfg(5)")
    pipe.scheduler = EulerDiscreteScheduler(**SCHEDULE)
    assert close(
        drawn(pipe, guidance_scale=2.0),
        drawn(stable_diffusion(scheduler=EulerDiscreteScheduler(**SCHEDULE))),
    )


def test_seeds_are_the_pipelines():
    with guidestar.guided(stable_diffusion(), "cfg(4) | cads(0.5)") as pipe:
        first, again = drawn(pipe, latents=start()), drawn(pipe, latents=start())
        other = drawn(pipe, latents=start(), generator=seeded(3, 9))
        one = drawn(pipe, latents=start(), generator=torch.Generator().manual_seed(3))
    assert torch.equal(first, again) and torch.equal(first[0], other[0])
    assert not close(first[1], other[1], 1e-3) and not close(one[1], first[1], 1e-3)
    with guidestar.guided(stable_diffusion(), "cfg(4) | cads(0.5)", seeds=[5, 6]) as pipe:
        given = drawn(pipe, latents=start())
        assert torch.equal(given, drawn(pipe, latents=start(), generator=seeded(8, 9)))
    assert not close(given, first, 1e-3)


def test_without_a_generator_seeds_are_of_what_the_latents_are_drawn_from():
    with guidestar.guided(stable_diffusion(), "cfg(4) | cads(0.5)") as pipe:
        torch.manual_seed(1)
        first, second = (
            drawn(pipe, latents=start(), generator=None) for _ in "ab"
        )  # given latents draw nothing
        torch.manual_seed(2)
        other = drawn(pipe, latents=start(), generator=None)
    assert torch.equal(first, second) and not close(other, first, 1e-3)


def test_without_a_generator_the_device_of_the_run_has_one(monkeypatch):
    each = tuple(seeded(7, 8))
    for name, value in (
        ("default_generators", each),
        ("current_device", lambda: 0),
        ("init", lambda: None),
    ):
        monkeypatch.setattr(torch.cuda, name, value)

    def streams(device, **asked):
        pipe = SimpleNamespace(_execution_device=torch.device(device))
        return Run(
            pipe, Wanted(guidance=as_guidance(guidestar.cfg(2))), asked, lambda *_: None
        ).streams

    for device, generator in (
        ("cuda:1", each[1]),
        ("cuda", each[0]),
        ("cpu", torch.default_generator),
    ):
        (state,) = streams(device)
        assert torch.equal(state, generator.get_state()), device
    given = seeded(3, 4)
    assert [s.tolist() for s in streams("cuda:1", generator=given)] == [
        g.get_state().tolist() for g in given
    ]
    assert streams("cuda:1", generator=given[1])[0].tolist() == given[1].get_state().tolist()


def far(x0):
    """A loss of clean latents: how far their numbers are from 0.3."""
    return ((x0 - 0.3) ** 2).flatten(1).sum(1)


@pytest.mark.parametrize("through", [None, "cond"])
def test_a_loss_made_in_python_is_lowered(through):
    """Of the base's clean estimate, and of that of a pass that is named, through the network."""
    pipe, x = stable_diffusion(), start()
    with guidestar.guided(pipe, guidestar.cond + guidestar.ugd(0.1, far, through=through)):
        ours = drawn(pipe, latents=x)
    embeds = told(pipe)[2:]

    def pushed(i, c, u, x, alpha, sigma):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            x0 = (
                leaf
                - sigma
                * pipe.unet(leaf, pipe.scheduler.timesteps[i], encoder_hidden_states=embeds).sample
            ) / alpha
            (gradient,) = torch.autograd.grad(((x0 - 0.3) ** 2).sum(), leaf)
        return c - 0.1 * sigma**2 / alpha * gradient

    assert close(ours, walked(pipe, pushed, x), 1e-9) and not close(
        ours, walked(pipe, lambda i, c, *_: c, x), 1e-2
    )


@pytest.mark.parametrize("name", ["ugd", "ugd_backward", "pigdm", "mmps"])
def test_a_loss_by_name_is_refused_and_one_of_its_own_works(name):
    pipe = stable_diffusion()
    own = drawn(pipe, guidance_scale=1.0)
    line = (
        rf"^{name} lowers a loss, and a pipeline has none by name; make the term in Python "
        rf"with its own, {name}\(2, loss=…\), or load the pipeline's folder with guidestar\.load"
    )
    with pytest.raises(ValueError, match=line):
        guidestar.guide(pipe, f"cfg(5) + {name}(2)")
    loss = (
        far
        if name.startswith("ugd")
        else guidestar.Observation(guidestar.Downsample(factor=2), 0.3, noise=0.1)
    )
    with guidestar.guided(pipe, guidestar.cfg(1) + getattr(guidestar, name)(0.5, loss)):
        assert not close(drawn(pipe, guidance_scale=1.0), own, 1e-3)


@pytest.mark.parametrize("name", ["dps", "freedom", "lgd", "mpgd", "tfg"])
def test_a_loss_whose_push_splits_the_prediction_is_sent_to_our_solvers(name):
    line = (
        f"^{name} splits the prediction .* cannot follow; load the model with guidestar.load "
        "and use a solver of ours$"
    )
    for term in (f"{name}(1)", getattr(guidestar, name)(1, far)):
        with pytest.raises(ValueError, match=line):
            guidestar.guide(stable_diffusion(), term)


class Bright:
    """A classifier of anything: how near its numbers are to the target."""

    def log_prob(self, x, level, target):
        return -((x.double() - target.double().reshape(-1, 1, 1, 1) / 10) ** 2).flatten(1).sum(1)


def test_a_classifier_of_noisy_latents():
    pipe, x = stable_diffusion(), start()
    with guidestar.guided(
        pipe, "cfg(3) + classifier(2)", classifiers={"classifier": Bright()}, target=[3, 7]
    ):
        ours = drawn(pipe, latents=x)
    goal = torch.tensor([0.3, 0.7], dtype=torch.float64).reshape(-1, 1, 1, 1)
    assert close(
        ours,
        walked(pipe, lambda i, c, u, x, a, s: u + 3 * (c - u) + 2 * s**2 / a * -2 * (x - goal), x),
        1e-9,
    )


def test_a_classifier_of_pictures_through_the_vae_and_the_network():
    pipe, x = stable_diffusion(), start()
    with guidestar.guided(
        pipe,
        "cond + classifier(0.1, through='cond')",
        classifiers={"classifier": Bright()},
        target=5,
        through_vae=True,
    ):
        ours = drawn(pipe, latents=x)
    embeds, goal = told(pipe)[2:], torch.tensor([5.0])

    def pushed(i, c, u, x, alpha, sigma):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            d = (
                leaf
                - sigma
                * pipe.unet(leaf, pipe.scheduler.timesteps[i], encoder_hidden_states=embeds).sample
            ) / alpha
            image = pipe.vae.decode(d / pipe.vae.config.scaling_factor).sample
            (gradient,) = torch.autograd.grad(Bright().log_prob(image, None, goal).sum(), leaf)
        return c + 0.1 * sigma**2 / alpha * gradient

    assert close(ours, walked(pipe, pushed, x), 1e-9)


def test_half_precision_keeps_its_type_and_is_no_further_off():
    exact = drawn(stable_diffusion(), latents=start())
    pipe = stable_diffusion()
    pipe.to(torch.bfloat16)
    own = drawn(pipe, latents=start().bfloat16())
    with guidestar.guided(pipe, "cfg(5)"):
        ours = drawn(pipe, latents=start().bfloat16())
    pipe.to(torch.float64)  # the text encoder is shared by the tests
    assert ours.dtype == own.dtype == torch.bfloat16
    assert (ours.double() - exact).abs().mean() < 1.2 * (own.double() - exact).abs().mean()


def test_offloaded_weights_stay_weights():
    hooks = pytest.importorskip("accelerate.hooks")
    accelerate = pytest.importorskip("accelerate")
    pipe = stable_diffusion()
    own = drawn(pipe)
    guidestar.guide(pipe, "cfg(5)")
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert close(drawn(pipe), own, 1e-9)
    guidestar.guide(pipe, None)
    assert torch.equal(drawn(pipe), own)
    hooks.remove_hook_from_submodules(pipe.unet)
    assert not any(p.is_inference() for p in pipe.unet.parameters())


def test_weights_that_are_moved_within_the_run_stay_weights():
    pipe = stable_diffusion()
    handle = pipe.unet.register_forward_pre_hook(
        lambda m, args: m._apply(torch.clone) and None
    )  # as moving to a device does
    with guidestar.guided(pipe, "cfg(5) + pag(2)"):
        drawn(pipe)
    handle.remove()
    assert not any(p.is_inference() for p in pipe.unet.parameters())
    pipe.unet(start(), 5, encoder_hidden_states=told(pipe)[2:]).sample.sum().backward()
    assert pipe.unet.conv_in.weight.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("in_place", [False, True])
def test_compiled_networks_stay_compiled(in_place):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    small = {
        "block_out_channels": (8,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    }
    pipe = stable_diffusion(**small)
    own = drawn(pipe)
    if in_place:
        pipe.unet.compile(backend=backend)
    else:
        pipe.unet = torch.compile(pipe.unet, backend=backend)
    with guidestar.guided(pipe, "cfg(5)"):
        assert close(drawn(pipe), own, 1e-6)
        compiled = len(graphs)
        assert compiled > 0
        drawn(pipe)
        assert len(graphs) == compiled
    with pytest.raises(ValueError, match="compiled"):
        guidestar.guide(pipe, "pag(3)")


REFUSED = {
    "cfgpp splits the prediction.*guidestar.load": lambda p: guidestar.guide(p, "cfgpp(0.6)"),
    r"classifier splits the prediction": lambda p: guidestar.guide(
        p, "classifier(1, target=0, form='mean')"
    ),
    "UNet2DConditionModel has no layer of self-attention 'mid'; there are .*mid_block": lambda p: (
        guidestar.guide(p, "pag(3, layers='mid')")
    ),
    "unknown name 'cgf'": lambda p: guidestar.guide(p, "cgf(3)"),
    "'main' is the pipeline's own": lambda p: guidestar.guide(
        p, "cfg(3)", nets={"main": text_unet()}
    ),
    "cfg needs the negative pass, but StableDiffusionPipeline was called with guidance_scale=1, "
    "at which it makes none; give any guidance_scale above 1": lambda p: drawn(
        guidestar.guide(p, "cfg(3)"), guidance_scale=1.0
    ),
    "the base 'uncond' needs the negative pass": lambda p: drawn(
        guidestar.guide(p, "uncond"), guidance_scale=1.0
    ),
    "tcfg and the base 'uncond' need the negative pass": lambda p: drawn(
        guidestar.guide(p, "uncond + tcfg(3)"), guidance_scale=1.0
    ),
    "^cfg needs the negative pass, but": lambda p: drawn(
        guidestar.guide(p, "cfg([3, 1])"), guidance_scale=1.0
    ),
    "nag needs the negative pass": lambda p: drawn(
        guidestar.guide(p, "nag(5)"), guidance_scale=0.0
    ),
    "there is no network 'weak'": lambda p: drawn(guidestar.guide(p, "autoguidance(2)")),
    "the network 'weak' is in float32, but the pipeline's is in float64; give": lambda p: drawn(
        guidestar.guide(p, "autoguidance(2)", nets={"weak": text_unet().float()})
    ),
    "the network 'weak' is on meta, but the pipeline runs on cpu; move it there": lambda p: drawn(
        guidestar.guide(p, "autoguidance(2)", nets={"weak": text_unet().to("meta")})
    ),
    "3 seeds were given for 2 samples": lambda p: drawn(
        guidestar.guide(p, "cfg(4) | cads(0.2)", seeds=[1, 2, 3])
    ),
    "there is no classifier 'classifier'": lambda p: drawn(
        guidestar.guide(p, "classifier(1, target=0)")
    ),
}


@pytest.mark.parametrize("line", REFUSED)
def test_what_is_refused_says_what_to_do(line):
    with pytest.raises(ValueError, match=line) as caught:
        REFUSED[line](stable_diffusion())
    # An expression is shown, and under it where it is wrong.
    assert str(caught.value).count("\n") == (2 if line.startswith("unknown name") else 0)


@pytest.mark.parametrize(
    "expression",
    [
        "cfg(1)",
        "cfg([1, 1])",
        "cfg(3, interval=(0, 0.0001))",
        "tcfg(1) + cfg(3, interval=(1e5, inf))",
    ],
)
def test_what_has_no_weight_in_the_whole_run_needs_no_negative_pass(expression):
    own = drawn(stable_diffusion(), guidance_scale=1.0)
    with guidestar.guided(stable_diffusion(), expression) as pipe:
        assert close(drawn(pipe, guidance_scale=1.0), own, 1e-9)
    with guidestar.guided(stable_diffusion(), f"{expression} + pag(3)") as pipe:
        assert not close(drawn(pipe, guidance_scale=1.0), own, 1e-3)


def test_a_missing_negative_pass_is_told_of_before_the_first_step():
    """Of the four steps, only the last has so little noise."""
    pipe, seen = stable_diffusion(), []
    scheduler = pipe.scheduler
    scheduler.set_timesteps(STEPS)
    ratios = [float((1 / scheduler.alphas_cumprod[t] - 1).sqrt()) for t in scheduler.timesteps]
    assert ratios[-1] < 0.5 < ratios[-2]
    pipe.unet.register_forward_hook(lambda *_: seen.append(1))
    with (
        guidestar.guided(pipe, "cfg(3, interval=(0, 0.5))"),
        pytest.raises(ValueError, match=r"^cfg needs the negative pass"),
    ):
        drawn(pipe, guidance_scale=1.0)
    assert not seen


def test_a_run_that_ends_early_is_asked_for_no_more_than_its_own_steps():
    pipe = quiet(made.sdxl())
    draw = lambda **more: (
        pipe(
            "cat",
            num_inference_steps=4,
            generator=seeded(1),
            output_type="latent",
            guidance_scale=1.0,
            **more,
        ).images
    )
    own = draw(denoising_end=0.5)
    with guidestar.guided(pipe, "cfg(3, interval=(0, 0.5))"):
        assert close(draw(denoising_end=0.5), own, 1e-5)
        with pytest.raises(ValueError, match=r"^cfg needs the negative pass"):
            draw()


def test_a_callback_may_end_the_negative_pass_where_nothing_needs_it_any_more():
    def stop(pipe, i, t, kept):
        if i == 1:
            pipe._guidance_scale = 1.0
            kept["prompt_embeds"] = kept["prompt_embeds"].chunk(2)[1]
        return kept

    more = {
        "callback_on_step_end": stop,
        "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"],
    }
    own = drawn(stable_diffusion(), **more)
    with guidestar.guided(stable_diffusion(), "cfg(5, interval=(1, inf))") as pipe:
        assert close(drawn(pipe, **more), own, 1e-9)


def test_pipelines_that_cannot_be_guided():
    pipe = stable_diffusion()
    pipe.scheduler = type("OddScheduler", (DDPMScheduler,), {})()
    assert close(
        drawn(guidestar.guide(pipe, "cfg(5)")), drawn(guidestar.guide(pipe, None)), 1e-5
    )  # a table of a known kind
    pipe.unet = UNet2DModel(
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=2,
    )
    pipe.unet.__class__ = type("OddNet", (UNet2DModel,), {})
    with pytest.raises(
        ValueError,
        match=r"has no denoising network that guidestar knows how to guide; found vae "
        r"\(AutoencoderKL\).*unet \(OddNet\).*known are UNet2DModel",
    ):
        guidestar.guide(pipe, "cfg(5)")
    with pytest.raises(
        ValueError,
        match=r"KarrasVeScheduler has no table of noise levels that guidestar knows; these have: "
        r".*DDIMScheduler",
    ):
        read_timetable(KarrasVeScheduler())


class Twice(StableDiffusionPipeline):
    """Walks through its timesteps twice in one call."""

    def __call__(self, *args, **kwargs):
        super().__call__(*args, **{**kwargs, "generator": seeded(8, 9)})
        return super().__call__(*args, **kwargs)


class Lazy(EulerDiscreteScheduler):
    """Keeps its timesteps where it is asked for as many."""

    def set_timesteps(self, count=None, **more):
        kept = self.timesteps if self.num_inference_steps == count else None
        super().set_timesteps(count, **more)
        self.timesteps = self.timesteps if kept is None else kept


@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, Lazy])
def test_nothing_is_remembered_where_time_goes_up(scheduler):
    once, twice = (
        guidestar.guide(
            stable_diffusion(kind, scheduler=scheduler(**SCHEDULE)), "apg(5, momentum=-0.7)"
        )
        for kind in (StableDiffusionPipeline, Twice)
    )
    assert close(drawn(twice), drawn(once), 1e-9)


@pytest.mark.parametrize("known", [True, False])
def test_a_rounded_timestep_is_found(known):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(60)
    table = read_timetable(scheduler)
    for i, t in enumerate(scheduler.timesteps):
        scheduler._step_index = i if known else None
        assert table.place((t.expand(2) / 1000).bfloat16(), -1 if known else i - 1) == i
        assert table.place(t.expand(2) / 1000, -1) == table.place(float(t), -1) == i


def test_a_timestep_of_the_table_is_found_without_reading_it():
    scheduler = HeunDiscreteScheduler(**SCHEDULE)
    scheduler.set_timesteps(4)
    table = read_timetable(scheduler)
    assert len(set(table.times)) < len(table.times)
    for i, t in enumerate(scheduler.timesteps):
        assert (
            table._find_in_table(t)
            == table._find_in_table(t[None].expand(3))
            == table.place(t, -1)
            == i
        )
        assert table._find_in_table(t.clone()) is None and table._find_in_table(float(t)) is None
        assert table.place(float(t), i - 1) == i


def test_flux_without_a_true_scale_makes_no_negative_rows():
    """Its guidance_scale is the distilled one: a Flux pipeline without true_cfg_scale calls its
    network once a step.
    """
    flux = FAMILIES["FluxTransformer2DModel"]
    given = {"negative_prompt": "mud", "true_cfg_scale": 2.0}
    assert not negative_rows(object(), flux, {"guidance_scale": 30.0}) and negative_rows(
        object(), flux, given
    )


@pytest.mark.parametrize("strength", [0.95, 0.9, 0.8])
def test_a_run_that_begins_later_is_placed_by_the_scheduler(strength):
    """As Flux is told it in bfloat16: rounded by more than its levels lie apart."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / 28, 28).tolist(), mu=1.15)
    begin = 28 - int(28 * strength)
    scheduler.set_begin_index(begin)
    told = scheduler.timesteps[begin].to(torch.bfloat16).expand(2) / 1000
    assert read_timetable(scheduler).place(told, -1) == begin


def test_second_calls_between_two_levels_are_at_their_geometric_mean():
    """As DPMSolverSDEScheduler keeps them, which only is there where torchsde is."""
    scheduler = type("DPMSolverSDEScheduler", (HeunDiscreteScheduler,), {})()
    scheduler.timesteps, scheduler.sigmas = (
        torch.tensor([900.0, 700.0, 500.0]),
        torch.tensor([4.0, 2.0, 2.0, 0.0]),
    )
    table = read_timetable(scheduler)
    assert [float(level.rho) for level in table.levels] == pytest.approx([4, 8**0.5, 2, 0])
    assert table.order == 2


def test_every_pipeline_that_is_known_is_one():
    """And its network is of a family; Kolors and IF are read with Stable Diffusion's."""
    for name in KNOWN_PIPELINES:
        kind = getattr(diffusers, name)
        if "sentencepiece" in getattr(kind, "_backends", ()):
            continue
        told = inspect.signature(kind.__init__).parameters
        asked = " ".join(
            str(told[part].annotation) for part in ("unet", "transformer") if part in told
        )
        assert any(family in asked for family in FAMILIES), name


def test_a_pipeline_of_ones_own_is_guided_as_the_one_it_comes_from():
    once = drawn(guidestar.guide(stable_diffusion(), "cfg(5)"))
    assert torch.equal(
        drawn(
            guidestar.guide(
                stable_diffusion(type("Mine", (StableDiffusionPipeline,), {})), "cfg(5)"
            )
        ),
        once,
    )
