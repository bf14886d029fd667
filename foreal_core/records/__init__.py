"""Records on disk, and where they were made."""
