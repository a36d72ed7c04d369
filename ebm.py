"""The `ebm` command: the one place that knows training and service both."""

from __future__ import annotations

import typer

import service.cli
import training.cli

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(training.cli.app)
app.add_typer(service.cli.app)

if __name__ == "__main__":
    app()
