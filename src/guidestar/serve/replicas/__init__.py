"""Many processes, on one machine or several, that sample for one server."""

from .engine import ReplicaLostError, ReplicatedEngine
from .replica import Replica
from .reports import ReplicaReport
from .scale import ReplicaScale, read_scale

__all__ = [
    "Replica",
    "ReplicaLostError",
    "ReplicaReport",
    "ReplicaScale",
    "ReplicatedEngine",
    "read_scale",
]
