"""Batches on the device: which keys, their inputs and their targets."""
