"""A pipeline's guidance in a LoRA, which Diffusers alone loads and uses in one pass."""

from __future__ import annotations

import pytest
import torch

import diffusers
import guidestar as gs
from guidestar.core.denoiser import Condition
from guidestar.train.loop.signals import Stop
from guidestar.train.objectives.objective import TrainSettings
from guidestar.train.students.lora import LoRA, distil_lora
from helpers import pipeline_folders as folders

PROMPTS = ("a red coat", "two boots")
TRAIN = {"steps": 50, "batch": 4, "rate": 2e-2, "warmup": 5, "decay": 0.9}
KINDS = {"sd": folders.sd, "sd3": folders.sd3}


@pytest.fixture(scope="module", params=KINDS)
def pipeline(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param) / "pipe"
    KINDS[request.param]().save_pretrained(folder)
    return folder


def spec_of(folder, **more):
    train = TrainSettings(**{**TRAIN, **more.pop("train", {})})
    shared = {"guidance": "cfg(3) | rescale(0.7)", "prompts": PROMPTS, "rank": 4}
    return LoRA(teacher=str(folder), samples=4, steps=2, train=train, **{**shared, **more})


@pytest.mark.slow
def test_a_lora_learns_the_guided_pass_and_diffusers_reproduces_it(pipeline, tmp_path):
    spec = spec_of(pipeline, guidance="cfg(8)")
    file = distil_lora(spec, tmp_path)
    assert file is not None and file.name == "pytorch_lora_weights.safetensors"

    model = gs.load(pipeline)
    pipe = diffusers.DiffusionPipeline.from_pretrained(pipeline)
    pipe.load_lora_weights(tmp_path)
    adapted = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    cond, null = model.encoder.encode(list(PROMPTS)), model.encoder.null(2)
    # Noised samples of the teacher, as in training; the noise is another.
    data = model.sample(list(PROMPTS), guidance="cfg(8)", seeds=[0, 1], steps=2).x
    z = torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
    before = after = 0.0
    for rho in (0.3, 0.7, 1.5, 4.0):
        level = model.schedule.at_rho(rho)
        x = level.alpha * data + level.sigma * z
        with torch.no_grad():
            plain, free = model.denoiser(x, level, cond), model.denoiser(x, level, null)
            guided = free + 8 * (plain - free)
            own = model.denoiser.net.net
            model.denoiser.net.net = adapted
            learned = model.denoiser(x, level, cond)
            model.denoiser.net.net = own
        before += float((plain - guided).square().mean()) / rho**2
        after += float((learned - guided).square().mean()) / rho**2
    assert after < 0.5 * before
    image = pipe(PROMPTS[0], num_inference_steps=2, guidance_scale=1.0, output_type="latent").images
    assert bool(image.isfinite().all())


def test_the_checkpoint_holds_the_lora_alone_and_goes_on_to_the_bit(pipeline, tmp_path):
    spec = spec_of(pipeline, train={"steps": 4})
    assert distil_lora(spec, tmp_path / "whole") is not None
    stop = Stop()

    def halt(stage, progress, steps):
        stop.requested = progress.step == 2

    assert distil_lora(spec, tmp_path / "parts", halt, stop=stop) is None
    assert distil_lora(spec, tmp_path / "parts") is not None
    one, other = (
        torch.load(tmp_path / name / "parts" / "lora.pt", weights_only=True)["module"]
        for name in ("whole", "parts")
    )
    assert all("lora_" in name for name in one) and one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_the_teacher_is_the_pipeline_without_the_lora(pipeline, tmp_path):
    """The last loss is against the pipeline's own weights: a second run repeats the first."""
    losses = [[], []]
    for i, kept in enumerate(losses):
        report = lambda stage, progress, steps, kept=kept: kept.append(progress.loss)
        distil_lora(spec_of(pipeline, train={"steps": 3}), tmp_path / str(i), report)
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"rank": 0}, "rank of a LoRA must be at least 1, not 0"),
        ({"prompts": ()}, "there are no prompts"),
        ({"guidance": "cfg(w)"}, "a LoRA has no input for the scale w"),
    ],
)
def test_mistakes_are_named(more, message):
    with pytest.raises(ValueError, match=message):
        spec_of("nowhere", **more)


def test_a_distilled_pipeline_is_refused(tmp_path):
    folders.flux().save_pretrained(tmp_path / "pipe")
    with pytest.raises(
        ValueError, match=r"takes the guidance scale as an input .*distilled already"
    ):
        distil_lora(spec_of(tmp_path / "pipe"), tmp_path / "out")


def test_terms_of_state_are_refused(pipeline, tmp_path):
    with pytest.raises(ValueError, match="cfgpp splits the prediction"):
        distil_lora(spec_of(pipeline, guidance="cfgpp(0.6)"), tmp_path)


def test_conditions_are_rows_of_a_table(pipeline):
    from guidestar.train.students.lora import Prompts

    model = gs.load(pipeline)
    table = Prompts(model, PROMPTS)
    assert not table.state_dict()  # they are encoded again, and no part of a checkpoint
    found = table({"prompt": torch.tensor([1, 2, 0])})
    second, first = model.encoder.encode([PROMPTS[1]]), model.encoder.encode([PROMPTS[0]])
    expected = Condition.join([second, model.encoder.null(1), first])
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values)
