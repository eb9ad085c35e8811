"""Training data: indexed datasets, fixed-length windows, the order of samples."""
