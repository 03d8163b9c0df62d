"""The training loop: trainer, averages, checkpoints."""
