"""Guidance: terms, posts and the expressions they make."""

from ._core import Context, Contrast, Direction, Guidance, Live, Post, cond, neg, uncond
from .apg import APG as apg
from .cfg import CFG as cfg
from .cfgpp import CFGPP as cfgpp
from .classifier import Classifier as classifier
from .clip import Clip as clip
from .compose import AND, NOT
from .expression import METHODS, ExpressionError, parse
from .guided import Guided
from .nag import NAG as nag
from .pag import PAG as pag
from .plan import Plan, StepPlan
from .posts import Clip as clip_x0
from .posts import Rescale as rescale
from .posts import Threshold as threshold
from .sag import SAG as sag
from .seg import SEG as seg
from .slg import SLG as slg
from .weights import clamp, cosine, linear

__all__ = [
    "AND",
    "METHODS",
    "NOT",
    "Context",
    "Contrast",
    "Direction",
    "ExpressionError",
    "Guidance",
    "Guided",
    "Live",
    "Plan",
    "Post",
    "StepPlan",
    "apg",
    "cfg",
    "cfgpp",
    "clamp",
    "classifier",
    "clip",
    "clip_x0",
    "cond",
    "cosine",
    "linear",
    "nag",
    "neg",
    "pag",
    "parse",
    "rescale",
    "sag",
    "seg",
    "slg",
    "threshold",
    "uncond",
]
