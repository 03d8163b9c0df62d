"""Metrics of samples: do they fit their condition, do they look real, do they differ."""

from .accuracy import Accuracy
from .class_shares import LeastShare, class_shares
from .classifier_levels import accuracy_by_level, trusted_rho
from .diversity import Diversity, DiversityRatio, within_class_distances
from .frechet import Frechet, fit_gaussian, gaussian_distance
from .metric import FeatureClassifier, JudgeOutput, Metric, run_judge
from .reconstruction import psnr, ssim
from .sweep import METRICS, SweepRow, sweep

__all__ = [
    "METRICS",
    "Accuracy",
    "Diversity",
    "DiversityRatio",
    "FeatureClassifier",
    "Frechet",
    "JudgeOutput",
    "LeastShare",
    "Metric",
    "SweepRow",
    "accuracy_by_level",
    "class_shares",
    "fit_gaussian",
    "gaussian_distance",
    "psnr",
    "run_judge",
    "ssim",
    "sweep",
    "trusted_rho",
    "within_class_distances",
]
