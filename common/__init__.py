"""Small utilities, independent of models: files, interrupts, hardware, names, number checks, progress."""
