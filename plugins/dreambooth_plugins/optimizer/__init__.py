"""Default optimizer plugins."""
