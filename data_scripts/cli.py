"""The commands of `python -m data_scripts`, each in a module of its own."""

import typer

from data_scripts import download, inspection, make_sample_data, preprocess, verify

app = typer.Typer(
    help="Fetch, check, make and look into the data sets that a run reads.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
app.command("download")(download.main)
app.command("verify")(verify.main)
app.command("preprocess")(preprocess.main)
app.command("inspect")(inspection.main)
app.command("sample")(make_sample_data.main)
