"""Read networks, schedulers, text encoders and VAEs as Diffusers writes them."""
