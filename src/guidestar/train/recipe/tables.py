"""The tables of a recipe that all its parts share: data, conditions, noise, previews, the finished
model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ...diffusers.guidance_file import GuidanceRecipe
from .strict import Pixels, Rate, StepCount, Strict, Words

OWN_VAE = "autoencoder"
"""The value of ``data.vae`` for the autoencoder that the recipe trains."""
DataKind = Literal["images", "parquet", "shards", "tensors", "motion", "fashion-mnist"]
"""The kinds of training data."""


class MotionTable(Strict):
    """How the BVH files of a folder become samples (see `MotionSettings`).

    Args:
        rate: frames a second that all motions are brought to.
        frames: of a sample; shorter motions are padded, longer ones cut (``data.crop``).
        names: how the files are called, as ``"{action}_{style}_{}"``: a word in braces is a column
            of classes, ``{}`` stands for anything.
        caption: a caption made of these columns, as ``"a person: {action}, {style}"``; it is the
            column "text".
        up: the axis that points upwards in the files.
        root: the joint that moves through space; by default the first one with several children.
    """

    rate: float = Field(default=20.0, gt=0, le=1000)
    frames: int = Field(default=80, ge=4, le=100_000)
    names: str | None = None
    caption: str | None = None
    up: Literal["Y", "Z"] = "Y"
    root: str | None = None


class Data(Strict):
    """Where the training data are (see the data room, and docs/train.md).

    Args:
        kind: "images" (a folder), "parquet", "shards" (webdataset), "tensors", "motion" (a
            folder of BVH files), "fashion-mnist".
        path: the folder or file.
        columns: what each column is: "class", "vector" or "text".
        classes: names of the classes, where the data do not name them.
        size, channels, crop, flip: of images; ``crop`` also of motions, whose frames it cuts.
        max_bad: how many unreadable images to skip before giving up.
        cache: folder of decoded images or latents, for data larger than memory.
        vae: an autoencoder of Diffusers, by path, or "autoencoder" for the recipe's own; the model
            then works on its latents.
        standardise: tensors are brought to zero mean and unit variance by channel.
        holdout: share of the samples kept aside, to measure on.
        test: folder or file of other data to measure on, in place of ``holdout``.
        shuffle: size of the buffer in which shards are mixed.
        about: what the data are and whose, for the card.
        reduced: pixels of a side that pictures are reduced to after reading, by means over squares.
        motion: of motions; they are always standardised.
    """

    kind: DataKind = "images"
    path: str | None = None
    columns: dict[str, Literal["class", "vector", "text"]] | None = None
    classes: Words = ()
    size: Pixels = 32
    channels: Literal[1, 3] | None = None
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    max_bad: int = Field(default=0, ge=0)
    cache: str | None = None
    vae: str | None = None
    standardise: bool = False
    holdout: float = Field(default=0.1, ge=0, lt=1)
    test: str | None = None
    shuffle: int = Field(default=10_000, ge=1, le=10_000_000)
    about: str = ""
    reduced: Pixels | None = None
    motion: MotionTable | None = None

    @model_validator(mode="after")
    def _check(self) -> Data:
        if self.motion is not None and self.kind != "motion":
            raise ValueError(f'motion goes with kind = "motion", not {self.kind!r}')
        if self.kind == "motion" and (self.flip or self.reduced):
            what = "flip" if self.flip else "reduced"
            raise ValueError(f"{what} is of images; leave it out of motions")
        if self.path is None and self.kind != "fashion-mnist":
            raise ValueError('say where the data are: path = "…"')
        if self.reduced and self.vae:
            raise ValueError("latents are not reduced; leave reduced or vae out")
        moved = "flip" if self.flip else "crop" if self.crop == "random" else None
        if self.vae and moved:
            raise ValueError(
                "latents are encoded once, so pictures cannot be changed anew each time; leave "
                f"{moved} or vae out"
            )
        if self.vae and self.kind not in ("images", "parquet"):
            raise ValueError(
                f"a vae encodes images or parquet, once; data of the kind {self.kind!r} are "
                "taken as they are"
            )
        return self


class ConditionSpec(Strict):
    """A condition: a column of the data that the network gets.

    Args:
        dropout: how often it is left out in training, for itself.
        encoder: of text: "clip" for the recipe's own; or CLIP by name
            ("openai/clip-vit-large-patch14") or path (also of a folder with text_encoder/ and
            tokenizer/).
        layer: which of its layers is read: "last", or "penultimate".
        output: "states" of all tokens, "pooled" into one, or "projected": CLIP's embedding of the
            caption, whose null is the zero vector.
    """

    dropout: Rate | None = None
    encoder: str | None = None
    layer: Literal["last", "penultimate"] = "last"
    output: Literal["states", "pooled", "projected"] = "states"


class Noise(Strict):
    """The noise schedule.

    Args:
        kind: "vp" (a table of betas, as Diffusers' DDPMScheduler names it), "flow" or "edm".
        zero_terminal_snr: the table ends in pure noise.
        shift: of a flow's time, when sampling.
        sigma_min, sigma_max: of edm.
        sigma_data: standard deviation of the data, of edm and of the weighting "edm".
    """

    kind: Literal["vp", "flow", "edm"] = "vp"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    num_train_timesteps: int = Field(default=1000, gt=1, le=1_000_000)
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    zero_terminal_snr: bool = False
    shift: float = Field(default=1.0, gt=0)
    sigma_min: float = Field(default=0.002, gt=0)
    sigma_max: float = Field(default=80.0, gt=0)
    sigma_data: float = Field(default=0.5, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Noise:
        if self.beta_start > self.beta_end:
            raise ValueError(
                f"beta_start must be at most beta_end, not {self.beta_start:g} and "
                f"{self.beta_end:g}"
            )
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                f"sigma_min must be below sigma_max, not {self.sigma_min:g} and {self.sigma_max:g}"
            )
        return self


class Levels(Strict):
    """Which noise levels are trained.

    Args:
        kind: "logit-normal" (``log(rho / data_std) ~ N(mean, std²)``; EDM's log-normal has mean
            −1.2 and std 1.2), or "uniform" in the schedule's time.
        data_std: by whose logarithm levels are offset, for data that are not of unit size
            (``--dry-run`` prints their size).
    """

    kind: Literal["logit-normal", "uniform"] = "logit-normal"
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    data_std: float = Field(default=1.0, gt=0)


class MotionLosses(Strict):
    """Weights of the errors of a motion beside that of its numbers (see `MotionDenoising`).

    Args:
        positions: of the joints' positions, by forward kinematics.
        velocities: of how the joints move from frame to frame.
        contacts: of how feet move that stand on the ground.
    """

    positions: float = Field(default=0.0, ge=0)
    velocities: float = Field(default=0.0, ge=0)
    contacts: float = Field(default=0.0, ge=0)


class TargetTable(Strict):
    """What the network predicts, and how errors are weighted.

    Args:
        predicts: "v", "eps", "x0", "velocity" or "edm"; by default v for vp, velocity for a flow,
            edm for edm.
        weighting: "uniform" (in the space of what is predicted), "min-snr", "snr+1", "edm",
            "sigmoid".
        gamma: of min-snr.
        bias: of sigmoid.
        variance: "learned": the network predicts its reverse variance too (2C channels), trained by
            the variational bound at whole times; of a network of Diffusers, on vp.
        bound: weight of the variational bound.
        motion: weights of further errors, of motions.
    """

    predicts: Literal["v", "eps", "x0", "velocity", "edm"] | None = None
    weighting: Literal["uniform", "min-snr", "snr+1", "edm", "sigmoid"] | None = None
    gamma: float = Field(default=5.0, gt=0)
    bias: float = 0.0
    variance: Literal["fixed", "learned"] = "fixed"
    bound: float = Field(default=0.001, gt=0)
    motion: MotionLosses | None = None


class Upscale(Strict):
    """The model is a super-resolution stage: it gets the data's own pictures, reduced, with noise.

    Args:
        size: pixels of a side of the smaller pictures.
        augmentation: the largest level of the noise added to them, in [0, 1]; each is drawn
            uniformly below it.
        dropout: how often the smaller picture is left out in training.
    """

    size: Pixels
    augmentation: float = Field(default=0.5, ge=0, le=1)
    dropout: Rate = 0.0


class PreviewTable(Strict):
    """Pictures of guided samples during the training.

    Args:
        every: steps between them (0: none).
        guidance: expressions, one row each.
        seeds: samples in a row, of seeds 0, 1, …
        steps: of the solver.
        prompts: of a text model, in turn.
    """

    every: int = Field(default=0, ge=0)
    guidance: Words = ("cfg(1)", "cfg(2)", "cfg(4)")
    seeds: StepCount = 8
    steps: StepCount = 20
    prompts: Words = ()

    @model_validator(mode="after")
    def _check(self) -> PreviewTable:
        for guidance in self.guidance:
            GuidanceRecipe(guidance=guidance)
        return self


class Export(Strict):
    """What the finished model recommends and holds.

    Args:
        guidance, steps, solver, grid: defaults of sampling.
        snapshots: export kept snapshots too, as networks for autoguidance.
    """

    guidance: str = "cfg(2)"
    steps: StepCount = 20
    solver: str = "dpmpp-2m"
    grid: str = "log_snr"
    snapshots: bool = True

    @model_validator(mode="after")
    def _check(self) -> Export:
        GuidanceRecipe(guidance=self.guidance, steps=self.steps, solver=self.solver, grid=self.grid)
        return self
