"""Many processes, on one machine or several, that sample for one server."""

from .engine import ReplicaLostError, ReplicatedEngine
from .replica import Replica
from .reports import Report
from .scale import Scale, read_scale

__all__ = ["Replica", "ReplicaLostError", "ReplicatedEngine", "Report", "Scale", "read_scale"]
