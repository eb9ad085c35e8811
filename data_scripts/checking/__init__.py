"""What is right and wrong with a data set on disk."""
