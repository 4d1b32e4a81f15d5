"""What a training step is made of: samples read ahead, geometry, texts."""
