"""A small random pipeline of each class of Diffusers that takes a guidance scale."""
