"""Default callback plugins."""
