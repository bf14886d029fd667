"""FoReaL-Decoding inside other frameworks; each subpackage needs the extra of its own name."""
