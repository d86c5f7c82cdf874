"""`python -m densevl` is the `densevl` command."""

from densevl.cli import app

app(prog_name="densevl")
