"""Trained networks in files that other programs run: one file a format. What is shared begins with an underscore."""
