"""The embedded base model `builtin:emoji-64` and the recipe that trains it."""
