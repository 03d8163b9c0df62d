"""Training objectives, their weightings and their distributions of noise levels."""
