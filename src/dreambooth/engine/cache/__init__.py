"""The content-keyed store of tensors that all jobs share, and its entries."""
