"""norms-and-biases, for dreambooth-trainer."""
