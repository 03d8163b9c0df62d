"""Motion: sequences of skeleton poses, from BVH files to numbers that a model learns, and back."""

from .body import Body
from .bvh import Bvh, Joint, format_bvh, parse_bvh, read_bvh, write_bvh
from .features import MotionFormat
from .skeleton import Pose, Skeleton

__all__ = [
    "Body",
    "Bvh",
    "Joint",
    "MotionFormat",
    "Pose",
    "Skeleton",
    "format_bvh",
    "parse_bvh",
    "read_bvh",
    "write_bvh",
]
