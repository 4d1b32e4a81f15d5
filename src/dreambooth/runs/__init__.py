"""A run on disk: its folder, its records, its checkpoints, its lock."""
