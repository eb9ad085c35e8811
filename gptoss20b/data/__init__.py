"""Reading token files and choosing which sequences a run sees, in which order."""
