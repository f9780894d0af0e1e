"""One file a loss on logits; `hints/` has the losses on activations."""
