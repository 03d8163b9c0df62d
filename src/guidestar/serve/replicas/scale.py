"""How many replicas a server has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReplicaScale:
    """How many replicas there are.

    Args:
        least, most: of them; in between, their number follows the queue.
        target: requests a replica, under way or waiting; with more of them, replicas are added.

    Raises:
        ValueError: fewer than one, or ``most`` below ``least``.
    """

    least: int = 1
    most: int = 1
    target: int = 16

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ValueError(
                "the number of replicas must be at least 1, and the least of a range below its "
                f"most, not {self.least}-{self.most}"
            )
        if self.target < 1:
            raise ValueError(f"the requests a replica must be at least 1, not {self.target}")


def read_scale(text: str, target: int) -> ReplicaScale:
    """Read how many replicas there are: a number, or the least and the most.

    Raises:
        ValueError: it is neither, or below 1.

    Example:
        >>> read_scale("1-4", 16)
        ReplicaScale(least=1, most=4, target=16)
    """
    least, dash, most = text.partition("-")
    try:
        found = int(least), int(most if dash else least)
    except ValueError:
        raise ValueError(f"replicas are a number or a range, e.g. 2 or 1-4, not {text!r}") from None
    return ReplicaScale(least=found[0], most=found[1], target=target)
