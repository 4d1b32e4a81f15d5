"""A word of its own for the subject."""
