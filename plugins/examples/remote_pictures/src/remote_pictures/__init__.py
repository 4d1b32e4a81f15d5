"""remote-pictures, for dreambooth-trainer."""
