"""Offline jobs that turn data into checkpoints."""
