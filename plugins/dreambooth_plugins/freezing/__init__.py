"""Default freezing plugins."""
