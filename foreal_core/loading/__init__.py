"""Hub ids and folders to loaded models, and whether they fit where they are to go."""
