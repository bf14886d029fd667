"""What people look at, made from records alone: no torch, no models."""
