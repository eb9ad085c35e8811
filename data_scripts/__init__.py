"""Commands that download, verify, make and inspect the data sets a run reads."""
