"""One file a loss on activations."""
