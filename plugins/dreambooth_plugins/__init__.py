"""The default plugins; the core reaches them through entry points only, like anybody else's."""
