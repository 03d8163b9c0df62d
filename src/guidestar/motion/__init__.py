"""Motion: sequences of skeleton poses, from BVH files to numbers that a model learns, and back."""

from .bvh import Bvh, Joint, read_bvh, write_bvh
from .features import MotionFormat
from .skeleton import Pose, Skeleton

__all__ = ["Bvh", "Joint", "MotionFormat", "Pose", "Skeleton", "read_bvh", "write_bvh"]
