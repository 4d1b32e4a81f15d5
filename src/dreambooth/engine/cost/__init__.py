"""What a run costs: memory by phase, time in steps."""
