"""Measures of samples: are they what was asked for, do they look real, do they differ."""

from .accuracy import Accuracy
from .class_shares import LeastShare, class_shares
from .classifier_levels import accuracy_by_level, trusted_rho
from .diversity import Diversity, DiversityRatio, within_class_distances
from .frechet import Frechet, gaussian_distance
from .metric import Judge, Judged, Metric, look
from .reconstruction import psnr, ssim
from .sweep import METRICS, Row, sweep

__all__ = [
    "METRICS",
    "Accuracy",
    "Diversity",
    "DiversityRatio",
    "Frechet",
    "Judge",
    "Judged",
    "LeastShare",
    "Metric",
    "Row",
    "accuracy_by_level",
    "class_shares",
    "gaussian_distance",
    "look",
    "psnr",
    "ssim",
    "sweep",
    "trusted_rho",
    "within_class_distances",
]
