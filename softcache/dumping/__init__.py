"""How a teacher is run once per key."""
