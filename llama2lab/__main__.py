"""`python -m llama2lab` is the same as `llama2lab`."""

from llama2lab.cli.main import app

app(prog_name="llama2lab")
