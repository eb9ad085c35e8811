"""Commands that fetch, check or make the data sets a run reads."""
