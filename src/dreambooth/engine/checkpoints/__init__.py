"""Checkpoints: files, when one is written and which stay, the best one, going on from one."""
