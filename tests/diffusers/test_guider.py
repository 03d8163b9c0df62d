"""Our expressions in the guider slot of Diffusers' modular pipelines, against Diffusers' own
guiders and our formulas.
"""

from dataclasses import replace

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.modular_pipelines import StableDiffusion3AutoBlocks, StableDiffusionXLAutoBlocks

import diffusers
import guidestar as gs
from diffusers import EulerDiscreteScheduler
from guidestar.diffusers import Guider
from guidestar.diffusers import guidance_file as recipe
from guidestar.diffusers.read.scheduler import process_of
from helpers import pipeline_folders as made

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
BLOCKS = {
    "sdxl": (StableDiffusionXLAutoBlocks, made.sdxl),
    "sd3": (StableDiffusion3AutoBlocks, made.sd3),
}


def modular(family):
    blocks, build = BLOCKS[family]
    parts = build()
    pipe = blocks().init_pipeline()
    names = set(pipe._component_specs)
    pipe.update_components(
        **{
            name: part
            for name, part in parts.components.items()
            if part is not None and name in names
        }
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def calls_of(net):
    calls = []
    net.register_forward_hook(lambda _, args, kwargs, out: calls.append(out[0]), with_kwargs=True)
    return calls


def sampled(pipe, guider, steps=4):
    pipe.update_components(guider=guider)
    run = {
        "num_inference_steps": steps,
        "generator": torch.manual_seed(0),
        "height": 16,
        "width": 16,
    }
    return pipe(
        prompt="a red cat", negative_prompt="blue", **run, output_type="latent", output="latents"
    )


@pytest.mark.parametrize("family", BLOCKS)
def test_cfg_is_diffusers_own(family):
    pipe = modular(family)
    with torch.no_grad():
        theirs = sampled(pipe, ClassifierFreeGuidance(guidance_scale=3.0))
        ours = sampled(pipe, Guider("cfg(3)", scheduler=pipe.scheduler))
        plain = sampled(pipe, Guider("cond", scheduler=pipe.scheduler))
        # SDXL's blocks enable every guider again, after they left the negative prompt out.
        off = (
            plain
            if family == "sdxl"
            else sampled(pipe, Guider("cfg(3)", scheduler=pipe.scheduler, enabled=False))
        )
        theirs_off = sampled(pipe, ClassifierFreeGuidance(guidance_scale=1.0))
    assert theirs.std() > 0.01 and not torch.equal(theirs, plain)
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())
    assert torch.equal(plain, off) and torch.equal(plain, theirs_off)


def test_rescale_is_diffusers_own_in_the_networks_space():
    pipe = modular("sdxl")
    with torch.no_grad():
        theirs = sampled(pipe, ClassifierFreeGuidance(guidance_scale=3.0, guidance_rescale=0.7))
        ours = sampled(
            pipe, Guider("cfg(3) | rescale(0.7)", scheduler=pipe.scheduler)
        )  # this network predicts v
    assert float((ours - theirs).abs().max()) <= 1e-5 * float(theirs.abs().max())


@pytest.mark.parametrize("family", BLOCKS)
def test_passes_are_only_run_where_they_count(family):
    """An interval of noise ratios, and a perturbed pass: as many calls of the network as the plan
    says.
    """
    pipe = modular(family)
    net = getattr(pipe, "unet", None) or pipe.transformer
    calls = calls_of(net)
    with torch.no_grad():
        sampled(pipe, Guider("cfg(3, interval=(0, 1))", scheduler=pipe.scheduler))
        process = process_of(
            {**dict(pipe.scheduler.config), "_class_name": type(pipe.scheduler).__name__}
        )
        rhos = [
            process.schedule(float(t) / process.time_scale).rho for t in pipe.scheduler.timesteps
        ]
        assert any(r <= 1 for r in rhos) and any(r > 1 for r in rhos)
        assert len(calls) == sum(2 if r <= 1 else 1 for r in rhos)
        calls.clear()
        sampled(pipe, Guider("cfg(3) + pag(2)", scheduler=pipe.scheduler))
        assert len(calls) == 3 * 4
        calls.clear()
        sampled(pipe, Guider("cond + slg(2)", scheduler=pipe.scheduler))
        assert len(calls) == 2 * 4
    assert all("forward" not in vars(m) for m in net.modules()) and not net._forward_pre_hooks


@pytest.mark.parametrize(
    "guidance",
    [
        "cfg(3) + pag(2)",
        "apg(3)",
        "cfg(3, schedule=linear) | threshold(0.9)",
        "uncond + cfg(0.5) + slg(2, of='uncond')",
        "cfg_zero(2)",
        "adaptive(3, gamma=0.5)",
    ],
)
@pytest.mark.parametrize("family", BLOCKS)
def test_a_run_is_that_of_the_loaded_model(family, guidance, tmp_path):
    """The expression under `Guided`, stepped by the same levels: what a guider sees is enough for
    terms that are not linear.
    """
    parts = BLOCKS[family][1]()
    parts.save_pretrained(tmp_path)
    model, pipe = gs.load(tmp_path), modular(family)
    with torch.no_grad():
        found = sampled(pipe, Guider(guidance, scheduler=pipe.scheduler))
        scheduler = pipe.scheduler
        flow = family == "sd3"
        times = scheduler.sigmas.tolist() if flow else scheduler.timesteps.tolist()
        levels = tuple(model.schedule(float(t)) for t in times) + (
            () if flow else (model.schedule.clean,)
        )
        grid = gs.Grid(levels=levels, schedule=model.schedule)
        start = torch.randn(1, 4, 8, 8, generator=torch.manual_seed(0))
        guided = model.guided(guidance, cond=["a red cat"], negative="blue")
        null = model.encoder.encode(["blue"])
        main = replace(
            guided.nets["main"], null=null, negative=None
        )  # a guider has one other condition
        guided = gs.Guided(guided.guidance, {"main": main})
        x, state = start, None
        for i in range(grid.steps):
            step = grid.step(i)
            prediction, state = guided(x, step, state)
            x = step.s.alpha * prediction.x0 + step.s.sigma * prediction.eps
    assert float((found - x).abs().max()) <= 1e-4 * float(x.abs().max())


def test_other_schedulers_of_the_same_network():
    """Scaled inputs and fractional timesteps: the level is the one of the input that the network
    sees.
    """
    pipe = modular("sdxl")
    for more in ({}, {"use_karras_sigmas": True}):
        pipe.update_components(
            scheduler=EulerDiscreteScheduler.from_config(
                made.ddim("v_prediction").config, timestep_spacing="trailing", **more
            )
        )
        with torch.no_grad():
            theirs = sampled(pipe, ClassifierFreeGuidance(guidance_scale=3.0, guidance_rescale=0.5))
            ours = sampled(pipe, Guider("cfg(3) | rescale(0.5)", scheduler=pipe.scheduler))
        assert float((ours - theirs).abs().max()) <= 2e-5 * float(theirs.abs().max())


@pytest.mark.parametrize(
    ("inputs", "samples"),
    [
        ([None, "text", torch.tensor(3.0), torch.zeros(5, 2), torch.zeros(4)], 5),
        ([None, torch.tensor(3.0)], 1),
        ([], 1),
    ],
)
def test_the_first_input_with_rows_has_one_a_sample(monkeypatch, inputs, samples):
    guider, asked = Guider("cfg(3)", scheduler=made.ddim()), []
    planned = type(guider._guided).plan_step

    def plan_step(self, step, batch):
        asked.append(batch)
        return planned(self, step, batch)

    monkeypatch.setattr(type(guider._guided), "plan_step", plan_step)
    guider.set_state(step=0, num_inference_steps=4, timestep=torch.tensor(500))
    guider._plan(inputs)
    assert asked == [samples] and [str(p) for p in guider._now] == ["cond", "uncond"]


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        (
            "classifier(2, target=1)",
            "classifier needs a gradient, and the pipeline evaluates its network without, so it "
            "cannot be in a guider; use guidestar.guide",
        ),
        ("clip(2, 'a cat')", "clip needs a gradient"),
        (
            "ugd(2)",
            r"^ugd needs a gradient, .*; use guidestar.guide on the whole pipeline, the term "
            r"made in Python with its loss, ugd\(2, loss=…\), or guidestar.load$",
        ),
        (
            gs.cfg(2) + gs.ugd(2, loss=lambda x0: x0.flatten(1).sum(1)),
            r"^ugd needs a gradient, .*; use guidestar.guide on the whole pipeline",
        ),
        (
            "dps(1)",
            "^dps needs a gradient, .*, so it cannot be in a guider; load the model with "
            "guidestar.load and use a solver of ours$",
        ),
        ("sag(1)", "sag needs a pass at a place that other passes tell"),
        (
            "cfgpp(0.6)",
            "^cfgpp needs a split prediction, and a pipeline has one, so it cannot be in a guider; "
            "load the model with guidestar.load and use a solver of ours$",
        ),
        (
            "autoguidance(2)",
            "^autoguidance: there is no network 'weak' \\(there is main\\)",
        ),
        (
            "cfg(3, negative='blue')",
            "the pass ''blue'' is not one that a modular pipeline can evaluate",
        ),
        ("AND(2, 'a dog')", "the pass ''a dog'' is not one"),
        ("nag(2)", "the pass 'cond nag' is not one that a modular pipeline can evaluate"),
        ("cfg(3) | cads(0.1)", "the pass 'cond edited' is not one that a modular pipeline can"),
        ("icg(2)", "the pass 'cond edited' is not one that a modular pipeline can evaluate"),
        ("tsg(2)", "the pass 'cond edited' is not one that a modular pipeline can evaluate"),
        ("pix2pix(2)", "the pass 'image of cond' is not one that a modular pipeline can evaluate"),
        ("cfg(", "this is not an expression"),
    ],
)
def test_what_a_guider_cannot_be_asked_for(guidance, message):
    with pytest.raises(ValueError, match=message):
        Guider(guidance, scheduler=made.ddim())


@pytest.mark.parametrize(
    ("guidance", "most"),
    [
        ("cond", 1),
        ("uncond", 2),
        ("cfg(3) | rescale(0.7)", 2),
        ("cond + slg(2)", 2),
        ("cfg(3) + pag(2)", 3),
        ("cfg(3) + pag(2) + pag(1)", 3),
        ("uncond + slg(2, of='uncond')", 3),
        ("cfg(3) + pag(2) + seg(1)", 4),
    ],
)
def test_before_a_run_it_says_how_many_passes_there_are_at_most(guidance, most):
    guider = Guider(guidance, scheduler=made.ddim())
    assert guider.num_conditions == most and guider.is_conditional
    off = Guider(guidance, scheduler=made.ddim(), enabled=False)
    assert off.num_conditions == 1 and off.is_conditional


def test_schedulers_that_are_refused_and_how_a_guider_is_kept(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"a guider needs the pipeline's scheduler, .*; give scheduler=pipe.scheduler$",
    ):
        Guider("cfg(3)")
    with pytest.raises(ValueError, match="a guider cannot serve an EDM scheduler"):
        Guider("cfg(3)", scheduler=diffusers.EDMEulerScheduler())
    recipe.write(recipe.GuidanceRecipe(guidance="cfg(2) + pag(1)"), tmp_path / "guidance.toml")
    guider = Guider(tmp_path / "guidance.toml", scheduler=made.ddim())
    assert guider.config["guidance"] == "cfg(2) + pag(1)" and guider.num_conditions == 3
    guider.save_pretrained(tmp_path / "guider")
    again = Guider.from_pretrained(tmp_path / "guider")
    assert again.config["guidance"] == guider.config["guidance"] and again.process == guider.process
    assert guider.new(guidance="cfg(4)").num_conditions == 2 and "cfg(2)" in repr(guider)


class Inpainting(torch.nn.Module):
    """A network of two latent channels that is also given a mask."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, sample, c):
        return self.conv(sample).tanh() + c[:, :, None, None]


@pytest.mark.parametrize("from_block", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_protocol_by_hand(from_block, dtype):
    """A term that looks at the clean estimate, a scale for each sample, of a network with more
    inputs than latents.
    """
    from diffusers.modular_pipelines.modular_pipeline import BlockState

    net, scheduler = Inpainting().to(dtype), made.ddim()
    x = torch.randn(2, 3, 4, 4, generator=torch.manual_seed(1)).to(dtype)
    c, u = (torch.randn(2, 2, generator=torch.manual_seed(k)).to(dtype) for k in (2, 3))
    guider = Guider("cfg([3, 1]) | clip_x0(0.5)", scheduler=scheduler)
    guider.set_state(step=1, num_inference_steps=4, timestep=torch.tensor(400))
    if from_block:
        states = guider.prepare_inputs_from_block_state(
            BlockState(prompt=c, negative=u, other=torch.tensor(3.0)),
            {"c": ("prompt", "negative"), "more": "other"},
        )
    else:
        states = guider.prepare_inputs({"c": (c, u), "more": torch.tensor(3.0)})
    told = []
    for state in states:
        guider.prepare_models(net)
        told.append(guider.is_conditional)
        state.noise_pred = net(x, state.c)
        guider.cleanup_models(net)
    assert (
        told == [True, False]
        and [float(s.more) for s in states] == [3.0, 3.0]
        and not net._forward_pre_hooks
    )
    bar = scheduler.alphas_cumprod[400].double()
    alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
    cond, uncond = (net(x, k).double() for k in (c, u))
    eps = uncond + torch.tensor([3.0, 1.0]).view(2, 1, 1, 1) * (cond - uncond)
    latents = x[:, :2].double()
    x0 = ((latents - sigma * eps) / alpha).clamp(-0.5, 0.5)
    wanted, found = (latents - alpha * x0) / sigma, guider(states)
    assert (
        found.pred.dtype == dtype
        and torch.equal(found.pred_cond, states[0].noise_pred)
        and torch.equal(found.pred_uncond, states[1].noise_pred)
    )
    assert float((found.pred.double() - wanted).abs().max()) <= (
        1e-5 if dtype == torch.float32 else 2e-2
    ) * float(wanted.abs().max())


def test_nothing_is_left_of_a_run_that_an_exception_ended():
    pipe = modular("sdxl")
    guider = Guider("cfg(2) + pag(3)", scheduler=pipe.scheduler)
    with torch.no_grad():
        before = sampled(pipe, guider)
        calls = []

        def failing(*_):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt

        handle = pipe.unet.register_forward_hook(failing)
        with pytest.raises(KeyboardInterrupt):
            sampled(pipe, guider)
        handle.remove()
        assert torch.equal(sampled(pipe, guider), before)
    assert guider.num_conditions == 3  # at most, before a run


def test_a_blocks_state_is_read_by_its_fields():
    """The first name of a pair is of the conditional passes, the second of all others; the first
    tensor with rows gives the number of samples.
    """
    from diffusers.modular_pipelines.modular_pipeline import BlockState

    guider = Guider("cfg(3) + pag(2)", scheduler=made.ddim())
    guider.set_state(step=1, num_inference_steps=4, timestep=torch.tensor(400))
    batches, ours = [], guider._guided.plan_step
    object.__setattr__(
        guider._guided,
        "plan_step",
        lambda step, batch: batches.append(batch) or ours(step, batch),
    )
    state = BlockState(scale=torch.tensor(3.0), prompt=torch.ones(5, 2), negative=torch.zeros(5, 2))
    fields = {"missing": "x", "s": "scale", "c": ("prompt", "negative")}
    found = guider.prepare_inputs_from_block_state(state, fields)
    assert [s.as_dict()["__guidance_identifier__"] for s in found] == [
        "pred_cond", "pred_uncond", "pred_2",
    ]  # fmt: skip
    assert [float(s.c.mean()) for s in found] == [1.0, 0.0, 1.0] and batches == [5]
    assert [float(s.s) for s in found] == [3.0] * 3


def test_the_networks_input_is_its_first_or_goes_by_name():
    guider = Guider("cfg(3)", scheduler=made.ddim())
    call = guider._record_inputs(lambda *args, **kwargs: (args, kwargs))
    x, other = torch.zeros(1, 2), torch.ones(1, 3)
    for args, kwargs in [
        ((x, other), {"sample": other}),
        ((), {"hidden_states": x, "sample": other}),
        ((), {"sample": x, "x": other}),
        ((), {"timestep": other, "x": x}),
        (("text", other), {"sample": x}),  # of what goes by place, the first alone
    ]:
        assert call(*args, **kwargs) == (args, kwargs) and guider._x is x
    call("text", other)
    assert guider._x is None
    with pytest.raises(ValueError, match="the guider has not got the network's input; the pipel"):
        guider._combine([x])


def test_where_a_guider_stands():
    """Its level is the table's, its step one of so many; without any, it is the first of one."""
    scheduler = made.ddim()
    guider = Guider("cfg(3)", scheduler=scheduler)
    guider.set_state(step=3, num_inference_steps=7, timestep=torch.tensor([400, 400]))
    step = guider._here()
    bar = float(scheduler.alphas_cumprod[400])
    assert (float(step.t.alpha), float(step.s.alpha)) == pytest.approx((bar**0.5, bar**0.5))
    assert (step.index, step.grid.steps) == (3, 7) and len(step.grid) == 8
    flow = Guider("cfg(3)", scheduler=diffusers.FlowMatchEulerDiscreteScheduler())
    flow.set_state(step=0, num_inference_steps=7, timestep=torch.tensor(250.0))
    assert (float(flow._level().alpha), float(flow._level().sigma)) == (0.75, 0.25)
    guider.set_state(step=None, num_inference_steps=None, timestep=torch.tensor(400))
    step = guider._here()
    assert (step.index, step.grid.steps) == (0, 1)


def test_after_the_last_step_a_guider_tells_all_passes_again():
    guider = Guider("cfg(3, interval=(0, 1e-9)) + pag(2)", scheduler=made.ddim(), enabled=True)
    guider._enabled = False  # its forward gives the conditional prediction
    x = torch.zeros(1, 2)
    for step, left in ((0, 2), (1, 3), (2, 2)):
        guider.set_state(step=step, num_inference_steps=2, timestep=torch.tensor(400))
        guider._now = ["a", "b"]  # type: ignore[list-item]
        assert guider.forward(pred_cond=x).pred is x
        guider._enabled = True
        assert guider.num_conditions == left
        guider._enabled = False


def test_plain_passes_come_before_perturbed_ones():
    guider = Guider("uncond + slg(2, of='uncond') + pag(1)", scheduler=made.ddim())
    guider.set_state(step=0, num_inference_steps=4, timestep=torch.tensor(500))
    guider._plan([torch.zeros(1, 2)])
    told = [(str(p.cond), p.perturb is not None) for p in guider._now]
    assert [perturbed for _, perturbed in told] == [False, False, True, True]
    assert guider._names() == ["pred_cond", "pred_uncond", "pred_2", "pred_3"]
    guider._enabled = False
    guider._plan([torch.zeros(1, 2)])
    assert guider._names() == ["pred_cond"] and guider.is_conditional


def test_a_perturbation_ends_with_its_pass():
    """Also where an exception ended the run before, at the next step's plan."""
    from contextlib import contextmanager
    from types import SimpleNamespace

    guider, told = Guider("cfg(3)", scheduler=made.ddim()), []

    @contextmanager
    def perturb(net):
        told.append("in")
        yield
        told.append("out")

    net = torch.nn.Identity()
    guider._now = [SimpleNamespace(perturb=perturb), SimpleNamespace(perturb=None)]
    guider._count_prepared = 0
    guider.prepare_models(net)
    assert told == ["in"]
    guider.cleanup_models(net)
    assert told == ["in", "out"]
    guider.prepare_models(net)
    assert told == ["in", "out"]
    guider._count_prepared = 0
    guider.prepare_models(net)
    guider.set_state(step=0, num_inference_steps=4, timestep=torch.tensor(500))
    guider._plan([torch.zeros(1, 2)])
    assert told == ["in", "out", "in", "out"]
