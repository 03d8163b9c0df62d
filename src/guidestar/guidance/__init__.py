"""Guidance: terms, posts and the expressions they make."""

from ._core import Context, Contrast, Direction, Guidance, Live, Post, cond, neg, uncond
from .adaptive import Adaptive as adaptive
from .apg import APG as apg
from .autoguidance import Autoguidance as autoguidance
from .cads import CADS as cads
from .cfg import CFG as cfg
from .cfg_zero import CFGZero as cfg_zero
from .cfgpp import CFGPP as cfgpp
from .classifier import Classifier as classifier
from .clip import Clip as clip
from .compose import AND, NOT
from .expression import METHODS, ExpressionError, parse
from .fdg import FDG as fdg
from .guided import Guided
from .icg import ICG as icg
from .mambo import Mambo as mambo
from .perp_neg import PerpNeg as perp_neg
from .pix2pix import Pix2Pix as pix2pix
from .plan import Plan, StepPlan
from .posts import Clip as clip_x0
from .posts import Rescale as rescale
from .posts import Threshold as threshold
from .tcfg import TCFG as tcfg
from .tsg import TSG as tsg
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
    "adaptive",
    "apg",
    "autoguidance",
    "cads",
    "cfg",
    "cfg_zero",
    "cfgpp",
    "clamp",
    "classifier",
    "clip",
    "clip_x0",
    "cond",
    "cosine",
    "fdg",
    "icg",
    "linear",
    "mambo",
    "neg",
    "parse",
    "perp_neg",
    "pix2pix",
    "rescale",
    "tcfg",
    "threshold",
    "tsg",
    "uncond",
]
