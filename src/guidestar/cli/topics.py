"""Common names of methods, and what they are called here."""

from __future__ import annotations

import difflib
import re

TOPICS: dict[str, str] = {
    "classifier guidance": "classifier",
    "classifier-free guidance, guidance scale": "cfg",
    "clip guidance": "clip",
    "negative prompt": "cfg(7, negative='blurry'), or --negative; nag inside the attention",
    "guidance interval, limited interval, cfg truncation": "interval=(lo, hi) of every term, in "
    "noise ratios σ/α: cfg(3, interval=(0.2, 5))",
    "weight schedule, dynamic cfg, cosine, linear, clamp": "schedule= of every term: cfg(3, "
    "schedule=cosine)",
    "per-sample scales": "a list as the scale of any term: cfg([1, 2, 4])",
    "InstructPix2Pix, image guidance scale": "pix2pix",
    "composable diffusion, prompt composition": "AND, NOT",
    "CFG rescale, guidance rescale": "rescale (after |)",
    "dynamic thresholding, static thresholding, clip sample": "threshold, clip_x0 (after |)",
    "perturbed attention guidance": "pag",
    "smoothed energy guidance": "seg",
    "skip-layer guidance, spatiotemporal skip guidance": "slg",
    "STG, LTX's spatiotemporal guidance": "stg",
    "modality guidance, sound and video": "modality",
    "guidance scale by frame, min_guidance_scale": "frames= of every term: cfg(3, frames=[0, 1])",
    "self-attention guidance": "sag",
    "token perturbation guidance, token shuffling": "tpg",
    "normalized attention guidance": "nag",
    "adaptive projected guidance": "apg",
    "CFG++": "cfgpp",
    "CFG-Zero*": "cfg_zero",
    "frequency-decoupled guidance": "fdg",
    "condition-annealed diffusion": "cads (after |)",
    "independent condition guidance": "icg",
    "time-step guidance": "tsg",
    "a weaker model, bad version of itself": "autoguidance",
    "training-free guidance, universal guidance, loss guidance": "dps, freedom, lgd, mpgd, ugd, "
    "ugd_backward, tfg",
    "inverse problems, inpainting, super-resolution, deblurring": "pigdm, mmps, dps; --observe "
    "and --operator; gs.RePaint",
    "FK steering, Feynman-Kac, particles, best-of-N, rewards": "Model.steer(reward, …) and "
    "gs.steer, in Python; every=0 is best of N",
    "time travel, resampling, recurrence": "gs.TimeTravel, a solver around a solver, in Python",
    "samplers, Euler a, LMS, iPNDM, UniPC, DEIS, DPM++, gradient estimation": "--solver, by the "
    "names of other projects too: --solver 'DPM++ 2M Karras'; docs/expression.md",
    "restart sampling": "--solver \"restart(solver='heun', low=0.1, high=2)\"",
    "SDEdit, image to image": "Model.sample(start=…, start_rho=…), in Python",
}
"""Common names, and the method, option or function for each."""


def look_up(word: str) -> list[tuple[str, str]]:
    """Return the topics in which a word, or the start of one, occurs."""
    wanted = _letters(word)
    return [(names, home) for names, home in TOPICS.items() if wanted and wanted in _letters(names)]


def suggest_topics(word: str, known: list[str]) -> list[str]:
    """Return the known names that resemble a word."""
    return difflib.get_close_matches(word, known, n=5, cutoff=0.5)


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9+*]", "", text.lower())
