"""Tables, figures and pages, made from records alone: no torch, no models."""
