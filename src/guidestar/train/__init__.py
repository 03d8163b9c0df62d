"""Training: objectives, the loop, and recipes that say everything about a training."""
