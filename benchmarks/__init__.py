"""What the speed is, measured side by side in one run: ``python -m benchmarks``, or one script at a time."""
