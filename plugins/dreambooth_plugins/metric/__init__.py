"""Default metric plugins."""
