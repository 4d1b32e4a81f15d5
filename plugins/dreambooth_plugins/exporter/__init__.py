"""Default exporter plugins."""
