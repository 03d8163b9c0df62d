"""The second schedulers of pipelines whose entry has one, and why others have none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .base import FLOW

_LEARNED = {"variance_type": "learned_range", "thresholding": True}
_FAR = {"prediction_type": "v_prediction"}
_SHAPE = ("EulerDiscreteScheduler", {"prediction_type": "sample", "use_karras_sigmas": True})

SECOND: dict[str, tuple[str, Mapping[str, Any]]] = {
    **dict.fromkeys(
        (
            *("IFPipeline", "IFImg2ImgPipeline", "IFInpaintingPipeline"),
            *("IFSuperResolutionPipeline", "IFImg2ImgSuperResolutionPipeline"),
            "IFInpaintingSuperResolutionPipeline",
        ),
        ("DPMSolverMultistepScheduler", _LEARNED),
    ),
    **dict.fromkeys(
        ("Cosmos2TextToImagePipeline", "Cosmos2VideoToWorldPipeline"),
        ("EDMEulerScheduler", {"sigma_max": 80.0, "sigma_data": 1.0}),
    ),
    **dict.fromkeys(
        (
            "KandinskyV22CombinedPipeline",
            "KandinskyV22Img2ImgCombinedPipeline",
            "KandinskyV22InpaintCombinedPipeline",
        ),
        ("DDIMScheduler", {"clip_sample": False}),
    ),
    **dict.fromkeys(("ShapEPipeline", "ShapEImg2ImgPipeline"), _SHAPE),
    "LDMTextToImagePipeline": ("DPMSolverMultistepScheduler", {}),
    **dict.fromkeys(
        (
            "StableCascadePriorPipeline",
            "StableCascadeDecoderPipeline",
            "StableCascadeCombinedPipeline",
        ),
        ("DDIMScheduler", {"clip_sample": False}),
    ),
    "StableAudioPipeline": ("DPMSolverMultistepScheduler", _FAR),
    "StableVideoDiffusionPipeline": ("DDIMScheduler", _FAR | {"clip_sample": False}),
    "StableDiffusionLatentUpscalePipeline": (
        "DPMSolverMultistepScheduler",
        {"prediction_type": "sample"},
    ),
    "StableAudio3Pipeline": ("LTXEulerAncestralRFScheduler", {"num_train_timesteps": 1}),
    "HeliosPipeline": ("FlowMatchLCMScheduler", {}),
    "LongCatAudioDiTPipeline": ("LTXEulerAncestralRFScheduler", {}),
    "OmniGenPipeline": ("UniPCMultistepScheduler", FLOW["UniPCMultistepScheduler"]),
}
"""Name and settings of a second scheduler by the class of the pipeline."""

ALONE: dict[str, str] = {
    **dict.fromkeys(
        ("CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline"),
        "EDMEulerScheduler's step alone takes `pred_original_sample`",
    ),
    **dict.fromkeys(
        ("LTXConditionPipeline", "SanaWMPipeline"),
        "FlowMatchEulerDiscreteScheduler's step alone takes `per_token_timesteps`",
    ),
    **dict.fromkeys(
        ("KandinskyPriorPipeline", "KandinskyV22PriorPipeline", "KandinskyV22PriorEmb2EmbPipeline"),
        "UnCLIPScheduler's step alone takes `prev_timestep`",
    ),
    **dict.fromkeys(
        ("SanaSprintPipeline", "SanaSprintImg2ImgPipeline"),
        "SCMScheduler alone takes `max_timesteps`",
    ),
    **dict.fromkeys(
        ("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
        "LCMScheduler alone takes `original_inference_steps` and no `eta`",
    ),
    "HeliosPyramidPipeline": "HeliosScheduler alone has stages",
}
"""Why a class has one scheduler only."""
