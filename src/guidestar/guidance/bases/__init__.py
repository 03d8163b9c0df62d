"""Bases of methods: a contrast, a perturbed pass, a log-probability, a loss."""
