"""`python -m codeswap`: the same as the `codeswap` command."""

from codeswap.cli import app

app(prog_name="codeswap")
