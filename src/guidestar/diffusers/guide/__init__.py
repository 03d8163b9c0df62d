"""Guide the pipelines of Diffusers."""
