"""What a request may say: every field, its kind and its range."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...io.documents import JSONObject

Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Name = Annotated[str, Field(max_length=100_000)] | Annotated[int, Field(ge=0, le=10**9)]
"""A class, by its name or index, or a prompt."""


class _Strict(BaseModel):
    """A body whose unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ObservedPicture(_Strict):
    """An observed picture, and the operator that made it."""

    image: str = Field(description="The observed picture, base64 of a PNG or JPEG.")
    operator: str = Field(description="identity, inpaint, downsample, blur or gray.")
    options: dict[str, float | int] = Field(
        default_factory=dict, description="Of the operator, e.g. {'factor': 2}."
    )
    mask: str | None = Field(
        default=None, description="Of inpaint: base64 of a picture, white where it was observed."
    )
    noise: float = Field(
        default=0.0, ge=0, le=10, description="Deviation of the noise in the picture."
    )


class SampleRequest(_Strict):
    """Samples to make; what is left out is as the model's card recommends."""

    model: str | None = Field(
        default=None, description="A name of /v1/models; the first by default."
    )
    cond: Name | list[Name] | None = Field(
        default=None, description="What to show: a class or a prompt, one or one a sample."
    )
    guidance: str | None = Field(default=None, description="An expression, e.g. 'cfg(3) + pag(1)'.")
    negative: Name | None = Field(default=None, description="What cfg moves away from.")
    scale: float | list[float] | None = Field(
        default=None, description="Of a student that takes it as an input: one, or one a sample."
    )
    n: int = Field(default=1, ge=1, description="Samples, of the seeds seed, seed + 1, …")
    seed: Seed | None = Field(default=None, description="Of the first sample; random by default.")
    seeds: list[Seed] | None = Field(
        default=None, description="One a sample, in place of n and seed."
    )
    steps: int | None = Field(default=None, ge=1, description="Solver steps.")
    solver: str | None = Field(
        default=None, description="ddim, ddpm, dpmpp-2m, sde-dpmpp-2m or heun."
    )
    grid: str | None = Field(default=None, description="How noise levels are spaced.")
    start: str | None = Field(default=None, description="A picture to start from (SDEdit), base64.")
    start_rho: float | None = Field(
        default=None, gt=0, description="The noise ratio to start at: levels above it are left out."
    )
    strength: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="In place of start_rho: the share of the steps that are left, one at least.",
    )
    resize: Literal["stretch", "crop"] | None = Field(
        default=None,
        description="How a start of another size becomes the model's; it is refused by default.",
    )
    observation: ObservedPicture | None = Field(
        default=None, description="For dps, tfg and other terms with a loss."
    )
    preview_every: int = Field(
        default=0, ge=0, description="A preview after so many steps; 0: none."
    )
    explain: bool = Field(default=False, description="Also measure each term's push at every step.")
    timeout: float | None = Field(
        default=None, gt=0, description="Seconds in which it must be done."
    )


class PlanRequest(_Strict):
    """A run to plan."""

    model: str | None = None
    cond: Name | list[Name] | None = 0
    guidance: str | None = None
    negative: Name | None = None
    scale: float | list[float] | None = None
    steps: int | None = Field(default=None, ge=1)
    solver: str | None = None
    grid: str | None = None
    strength: float | None = Field(
        default=None, ge=0, le=1, description="Of a picture to start from: the share of the steps."
    )


class ImagesRequest(_Strict):
    """OpenAI's request for images, with the fields that other servers of diffusion models add."""

    prompt: str
    model: str | None = None
    n: int = Field(default=1, ge=1)
    size: str | None = Field(default=None, description="auto, or the model's own, e.g. 28x28.")
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    stream: bool = False
    partial_images: int = Field(default=0, ge=0, le=3)
    negative_prompt: str | None = None
    num_inference_steps: int | None = Field(default=None, ge=1)
    guidance_scale: float | None = None
    seed: Seed | None = None
    guidance: str | None = Field(
        default=None, description="An expression, in place of guidance_scale."
    )
    solver: str | None = None
    quality: str | None = None
    style: str | None = None
    background: str | None = None
    moderation: str | None = None
    output_compression: int | None = None
    user: str | None = None


class Txt2Img(_Strict):
    """A1111's request; fields that mean nothing here are taken at their default, and named in a
    warning otherwise.
    """

    prompt: str = ""
    negative_prompt: str | None = ""
    seed: Seed = -1
    steps: int | None = Field(default=None, ge=1)
    cfg_scale: float | None = None
    width: int | None = Field(default=None, ge=1)
    height: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=1, ge=1)
    n_iter: int = Field(default=1, ge=1)
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    send_images: bool = True
    force_task_id: str | None = Field(default=None, max_length=200)
    override_settings: JSONObject | None = None
    guidance: str | None = Field(default=None, description="An expression, in place of cfg_scale.")
    # What means nothing here, at A1111's defaults:
    styles: list[str] | None = None
    subseed: int = -1
    subseed_strength: float = 0
    seed_resize_from_h: int = -1
    seed_resize_from_w: int = -1
    restore_faces: bool | None = None
    tiling: bool | None = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    eta: float | None = None
    s_min_uncond: float | None = None
    s_churn: float | None = None
    s_tmax: float | None = None
    s_tmin: float | None = None
    s_noise: float | None = None
    override_settings_restore_afterwards: bool = True
    refiner_checkpoint: str | None = None
    refiner_switch_at: float | None = None
    disable_extra_networks: bool = False
    firstpass_image: str | None = None
    comments: JSONObject | None = None
    enable_hr: bool = False
    firstphase_width: int = 0
    firstphase_height: int = 0
    hr_scale: float = 2
    hr_upscaler: str | None = None
    hr_second_pass_steps: int = 0
    hr_resize_x: int = 0
    hr_resize_y: int = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str | None = ""
    hr_negative_prompt: str | None = ""
    script_name: str | None = None
    script_args: list[Any] | None = None
    save_images: bool = False
    alwayson_scripts: JSONObject | None = None
    infotext: str | None = None
    # Of img2img:
    init_images: list[str] | None = None
    denoising_strength: float | None = Field(default=None, ge=0, le=1)
    resize_mode: int = 0
    image_cfg_scale: float | None = None
    mask: str | None = None
    mask_blur_x: int = 4
    mask_blur_y: int = 4
    mask_blur: int | None = None
    mask_round: bool = True
    inpainting_fill: int = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 0
    inpainting_mask_invert: int = 0
    initial_noise_multiplier: float | None = None
    latent_mask: str | None = None
    include_init_images: bool = False


MEANT = frozenset(
    (
        *("prompt", "negative_prompt", "seed", "steps", "cfg_scale", "width", "height"),
        *("batch_size", "n_iter", "sampler_name", "sampler_index", "scheduler", "send_images"),
        *("force_task_id", "override_settings", "guidance", "init_images", "denoising_strength"),
        "resize_mode",
    )
)
"""Fields of A1111 that mean something here."""


class Picture(_Strict):
    """A picture whose settings are read."""

    image: str


class Task(_Strict):
    """One's own task; all of one's own, where none is named."""

    id_task: str | None = Field(default=None, max_length=200)
