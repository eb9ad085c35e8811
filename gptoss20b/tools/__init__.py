"""Tools beside a run: doctor, estimate and bench. They import the run; the run imports none of them."""
