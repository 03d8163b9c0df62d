"""Fixtures of the room."""

from helpers.students import teacher

__all__ = ["teacher"]
