"""Data: exact mixtures, and real images."""
