"""Who computes: models in this process, inference servers, a script."""
