"""The training engine: the only package of the core that imports torch."""
