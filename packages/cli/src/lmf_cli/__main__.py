"""``python -m lmf_cli``: the same command where another tool owns the name ``lmf``."""

from . import main

main()
