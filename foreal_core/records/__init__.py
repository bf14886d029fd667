"""JSON records on disk, with the machine, versions and models that made them."""
