"""Pictures: reading, writing and decoding files, and grids of images. Needs no torch."""
