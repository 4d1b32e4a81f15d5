"""What the engine and plugins share: pure helpers that keep nothing of a run.

Importing them costs nothing: torch, numpy and PIL are imported by the functions that need them.
"""
