"""One file a codec: how logits lie on disk."""
