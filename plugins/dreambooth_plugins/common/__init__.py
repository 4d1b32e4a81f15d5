"""What several of the default plugins share."""
