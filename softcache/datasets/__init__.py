"""One file a place where samples come from."""
