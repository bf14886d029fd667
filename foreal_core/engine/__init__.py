"""Threads: the one that owns the models, and the streams that carry tokens out of it."""
