"""Guidance: terms, posts and the expressions they make."""

from .bases.conditional_contrast import Conditioned
from .bases.loss_term import Steered, losses_of
from .bases.perturbation_contrast import Perturbed
from .expression import METHODS, ExpressionError, parse, register
from .guided import Guided
from .losses import Observation
from .methods.adaptive import Adaptive as adaptive
from .methods.apg import APG as apg
from .methods.autoguidance import Autoguidance as autoguidance
from .methods.cads import CADS as cads
from .methods.cfg import CFG as cfg
from .methods.cfg_zero import CFGZero as cfg_zero
from .methods.cfgpp import CFGPP as cfgpp
from .methods.classifier import ClassifierGuidance as classifier
from .methods.clip import Clip as clip
from .methods.compose import AND, NOT
from .methods.discriminator import Discriminator as discriminator
from .methods.dps import DPS as dps
from .methods.fdg import FDG as fdg
from .methods.freedom import FreeDoM as freedom
from .methods.icg import ICG as icg
from .methods.lgd import LGD as lgd
from .methods.mambo import Mambo as mambo
from .methods.modality import Modality as modality
from .methods.mpgd import MPGD as mpgd
from .methods.nag import NAG as nag
from .methods.pag import PAG as pag
from .methods.perp_neg import PerpNeg as perp_neg
from .methods.pix2pix import Pix2Pix as pix2pix
from .methods.posterior import MMPS as mmps
from .methods.posterior import PiGDM as pigdm
from .methods.posts import ClipX0 as clip_x0
from .methods.posts import Rescale as rescale
from .methods.posts import Threshold as threshold
from .methods.sag import SAG as sag
from .methods.seg import SEG as seg
from .methods.slg import SLG as slg
from .methods.stg import STG as stg
from .methods.tcfg import TCFG as tcfg
from .methods.tfg import TFG as tfg
from .methods.tpg import TPG as tpg
from .methods.tsg import TSG as tsg
from .methods.ugd import UGD as ugd
from .methods.ugd import UGDBackward as ugd_backward
from .operators import Blur, Colour, Downsample, Identity, Inpaint, Linear, get_operator
from .plan import Plan, StepPlan
from .term import Context, Contrast, Direction, Guidance, Live, Post, Traits, cond, neg, uncond
from .weights import clamp, cosine, linear

__all__ = [
    "AND",
    "METHODS",
    "NOT",
    "Blur",
    "Colour",
    "Conditioned",
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
    "Perturbed",
    "Plan",
    "Post",
    "Steered",
    "StepPlan",
    "Traits",
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
    "modality",
    "mpgd",
    "nag",
    "neg",
    "pag",
    "parse",
    "perp_neg",
    "pigdm",
    "pix2pix",
    "register",
    "rescale",
    "sag",
    "seg",
    "slg",
    "stg",
    "tcfg",
    "tfg",
    "threshold",
    "tpg",
    "tsg",
    "ugd",
    "ugd_backward",
    "uncond",
]
