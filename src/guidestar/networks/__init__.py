"""Network families, and what a model needs to know about them."""
