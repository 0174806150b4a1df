"""Small utilities that know nothing of models: files, interrupts, hardware, names, number checks."""
