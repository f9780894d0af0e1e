"""What a command does from end to end; also the Python API."""
