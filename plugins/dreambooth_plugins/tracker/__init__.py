"""Default tracker plugins."""
