"""decaying-guidance, for dreambooth-trainer."""
