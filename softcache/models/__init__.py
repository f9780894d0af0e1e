"""One file a place where networks come from."""
