"""`python -m data_scripts`."""

from data_scripts.cli import app

app()
