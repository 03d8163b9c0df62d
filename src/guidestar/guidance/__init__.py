"""Guidance: terms, posts and the expressions they make."""

from ._core import Context, Contrast, Direction, Guidance, Live, Post, cond, neg, uncond
from ._steered import Steered, losses_of
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
from .discriminator import Discriminator as discriminator
from .dps import DPS as dps
from .expression import METHODS, ExpressionError, parse
from .fdg import FDG as fdg
from .freedom import FreeDoM as freedom
from .guided import Guided
from .icg import ICG as icg
from .lgd import LGD as lgd
from .losses import Observation
from .mambo import Mambo as mambo
from .mpgd import MPGD as mpgd
from .nag import NAG as nag
from .operators import Blur, Colour, Downsample, Identity, Inpaint, Linear, get_operator
from .pag import PAG as pag
from .perp_neg import PerpNeg as perp_neg
from .pix2pix import Pix2Pix as pix2pix
from .plan import Plan, StepPlan
from .posterior import MMPS as mmps
from .posterior import PiGDM as pigdm
from .posts import Clip as clip_x0
from .posts import Rescale as rescale
from .posts import Threshold as threshold
from .sag import SAG as sag
from .seg import SEG as seg
from .slg import SLG as slg
from .tcfg import TCFG as tcfg
from .tfg import TFG as tfg
from .tsg import TSG as tsg
from .ugd import UGD as ugd
from .ugd import UGDBackward as ugd_backward
from .weights import clamp, cosine, linear

__all__ = [
    "AND",
    "METHODS",
    "NOT",
    "Blur",
    "Colour",
    "Context",
    "Contrast",
    "Direction",
    "Downsample",
    "ExpressionError",
    "Guidance",
    "Guided",
    "Identity",
    "Inpaint",
    "Linear",
    "Live",
    "Observation",
    "Plan",
    "Post",
    "Steered",
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
    "discriminator",
    "dps",
    "fdg",
    "freedom",
    "get_operator",
    "icg",
    "lgd",
    "linear",
    "losses_of",
    "mambo",
    "mmps",
    "mpgd",
    "nag",
    "neg",
    "pag",
    "parse",
    "perp_neg",
    "pigdm",
    "pix2pix",
    "rescale",
    "sag",
    "seg",
    "slg",
    "tcfg",
    "tfg",
    "threshold",
    "tsg",
    "ugd",
    "ugd_backward",
    "uncond",
]
