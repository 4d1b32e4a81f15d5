"""The original Stable Diffusion layout: one file with the whole model."""
