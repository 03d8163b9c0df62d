"""Layers of known networks that a perturbation may change."""
