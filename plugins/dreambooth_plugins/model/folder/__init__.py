"""A diffusers folder: found, read, held against what can be, and written."""
