"""Which of Diffusers' pipelines can be guided, and which of their own numbers then have no
effect.
"""

from __future__ import annotations

import warnings

from ...guidance import Guidance
from ...guidance.serialize import literal
from ..objects import Arguments, Pipeline
from ..read.scheduler import PREDICTS
from .classes import plain_kind

_BOTH = (
    *("", "Img2Img", "Inpaint", "InstructPix2Pix", "Adapter", "PAG", "PAGImg2Img", "PAGInpaint"),
    *("ControlNet", "ControlNetImg2Img", "ControlNetInpaint", "ControlNetPAG"),
)
"""What there is of Stable Diffusion and of XL."""

KNOWN_PIPELINES = frozenset(
    (
        *(
            "DDIMPipeline",
            "DDPMPipeline",
            "PNDMPipeline",
            "DiTPipeline",
            "AuraFlowPipeline",
            "StableAudioPipeline",
        ),
        *("AudioLDM2Pipeline", "StableVideoDiffusionPipeline"),
        *(
            "LTXPipeline",
            "LTXImageToVideoPipeline",
            "WanPipeline",
            "WanImageToVideoPipeline",
            "WanVideoToVideoPipeline",
        ),
        *("PixArtAlphaPipeline", "PixArtSigmaPipeline", "PixArtSigmaPAGPipeline"),
        *("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline", "FluxFillPipeline"),
        *("FluxControlPipeline", "FluxControlImg2ImgPipeline", "FluxControlInpaintPipeline"),
        *(
            "FluxControlNetPipeline",
            "FluxControlNetImg2ImgPipeline",
            "FluxControlNetInpaintPipeline",
        ),
        *(
            "StableDiffusion3Pipeline",
            "StableDiffusion3Img2ImgPipeline",
            "StableDiffusion3InpaintPipeline",
        ),
        *("StableDiffusion3ControlNetPipeline", "StableDiffusion3ControlNetInpaintingPipeline"),
        *("StableDiffusion3PAGPipeline", "StableDiffusion3PAGImg2ImgPipeline"),
        *("IFPipeline", "IFImg2ImgPipeline", "IFInpaintingPipeline"),
        *("KandinskyPipeline", "KandinskyImg2ImgPipeline", "KandinskyInpaintPipeline"),
        *("KandinskyV22Pipeline", "KandinskyV22Img2ImgPipeline", "KandinskyV22InpaintPipeline"),
        *("KolorsPipeline", "KolorsImg2ImgPipeline", "KolorsPAGPipeline"),
        *("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
        "StableUnCLIPImg2ImgPipeline",
        *(
            "StableDiffusionDepth2ImgPipeline",
            "StableDiffusionImageVariationPipeline",
            "StableDiffusionUpscalePipeline",
        ),
        *(f"StableDiffusion{size}{kind}Pipeline" for size in ("", "XL") for kind in _BOTH),
        *(
            "StableDiffusionControlNetPAGInpaintPipeline",
            "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        ),
        *(f"StableDiffusionXLControlNetUnion{kind}Pipeline" for kind in ("", "Img2Img", "Inpaint")),
    )
)
"""Classes of pipelines whose rows and channels are laid out as in their network's family
(`families.FAMILIES`).
"""


REFUSED: dict[str, str] = {
    "AceStepPipeline": "its own guidance keeps what its network answered from one step to the next",
    "AnyFlowFARPipeline": "its network keeps a cache of what it was given",
    "Cosmos3OmniPipeline": "its network takes all its inputs as one packed sequence",
    "ConsisIDPipeline": "it cannot be made without further packages, so it was not tried",
    **{
        f"LEditsPPPipelineStableDiffusion{size}": "its edits are masked by what its network "
        "answered, so they are no sum of passes"
        for size in ("", "XL")
    },
    **{
        f"OnnxStableDiffusion{kind}Pipeline": "its network runs in ONNX Runtime, not in torch"
        for kind in ("", "Img2Img", "Inpaint", "Upscale")
    },
}
"""Classes of pipelines that cannot be guided, and why."""


def own_kind(pipe: object) -> type:
    """Return the class whose call a pipeline makes."""
    return next((k for k in plain_kind(type(pipe)).__mro__ if "__call__" in vars(k)), object)


def learns(pipe: object) -> bool:
    """Return whether a pipeline's layout is learnt from its run: that of Diffusers' pipelines that
    are no `KNOWN_PIPELINES` ones.
    """
    kind = own_kind(pipe)
    return kind.__module__.startswith("diffusers.") and kind.__name__ not in KNOWN_PIPELINES


def check_kind(pipe: object) -> None:
    """Refuse Diffusers' pipelines that cannot be guided.

    Raises:
        ValueError: the pipeline's class is one of them; it is named, with the reason.
    """
    kind = own_kind(pipe)
    if kind.__module__.startswith("diffusers.") and kind.__name__ in REFUSED:
        raise ValueError(f"{kind.__name__} cannot be guided: {REFUSED[kind.__name__]}")


def warn_of_numbers(
    pipe: Pipeline, given: Arguments, arguments: Arguments, guidance: Guidance
) -> None:
    """Warn of each further number of a pipeline's own guidance that has no effect, with what to
    write in its place.

    Args:
        pipe: the guided pipeline.
        given: the arguments that its caller gave.
        arguments: all of them, with the defaults.
        guidance: the pipeline's.
    """
    named = {term.name for term in (*guidance.terms, *guidance.posts)}
    intervals = any(getattr(term, "interval", None) is not None for term in guidance.terms)
    framed = any(term.frames is not None for term in guidance.terms)
    for name, advice, wrong in (
        (
            "guidance_scale_2",
            _two_intervals,
            not intervals
            and given.get("guidance_scale_2") not in (None, arguments.get("guidance_scale")),
        ),
        (
            "guidance_rescale",
            _rescale,
            "rescale" not in named and bool(given.get("guidance_rescale")),
        ),
        (
            "image_guidance_scale",
            _pix2pix,
            "pix2pix" not in named and given.get("image_guidance_scale") is not None,
        ),
        (
            "min_guidance_scale",
            _frames,
            not framed
            and given.get("min_guidance_scale") not in (None, arguments.get("max_guidance_scale")),
        ),
        ("pag_adaptive_scale", _adaptive, bool(given.get("pag_adaptive_scale"))),
    ):
        if wrong:
            warnings.warn(
                f"{name}={literal(given[name])} has no effect while guidestar guides "
                f"{type(pipe).__name__}; {advice(pipe, arguments)}",
                stacklevel=3,
            )


def _two_intervals(pipe: Pipeline, arguments: Arguments) -> str:
    share = getattr(pipe.config, "boundary_ratio", None) or 0.9
    first, second, rho = (
        literal(arguments.get("guidance_scale")),
        literal(arguments["guidance_scale_2"]),
        f"{share / (1 - share):.6g}",
    )
    return (
        f"write a scale for each of its networks, cfg({first}, interval=({rho}, inf)) + "
        f"cfg({second}, interval=(0, {rho}))"
    )


def _rescale(pipe: Pipeline, arguments: Arguments) -> str:
    space = PREDICTS.get(
        getattr(pipe.scheduler.config, "prediction_type", "flow_prediction"), "velocity"
    )
    return (
        f"write | rescale({literal(arguments['guidance_rescale'])}, space='{space}') in the "
        "expression"
    )


def _pix2pix(pipe: Pipeline, arguments: Arguments) -> str:
    return (
        f"write pix2pix({literal(arguments['image_guidance_scale'])}, "
        f"{literal(arguments['guidance_scale'])}) in the expression"
    )


def _frames(pipe: Pipeline, arguments: Arguments) -> str:
    low, high = arguments["min_guidance_scale"], arguments["max_guidance_scale"]
    if high == 1:
        return "the expression's scale is that of every frame"
    first = (low - 1) / (high - 1)
    return f"write cfg({literal(high)}, frames=[{literal(first)}, 1])"


def _adaptive(pipe: Pipeline, arguments: Arguments) -> str:
    return "write how the scale of pag depends on the noise, pag(3, interval=(lo, hi))"
