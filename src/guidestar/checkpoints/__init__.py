"""Checkpoints that other projects published."""
