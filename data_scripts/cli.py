"""The commands of `python -m data_scripts`, one module each."""

from __future__ import annotations

import typer

from . import download, inspection, make_sample_data, preprocess, verify

app = typer.Typer(
    help="Download, verify, make and inspect the datasets that a run reads.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.command("download")(download.main)
app.command("verify")(verify.main)
app.command("preprocess")(preprocess.main)
app.command("inspect")(inspection.main)
app.command("sample")(make_sample_data.main)
