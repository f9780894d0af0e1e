"""Many students that one command asks for: which ones, where they stand, and what they came to."""
