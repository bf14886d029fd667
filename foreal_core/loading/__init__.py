"""Loads hub ids and folders, and checks that the models fit their devices."""
