"""Adapters as other tools store them: one module a layout, reading and writing."""
