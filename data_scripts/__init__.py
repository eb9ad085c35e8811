"""Commands that download, verify, make and inspect the datasets a run reads."""
