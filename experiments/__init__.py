"""One runnable config per file. `python -m experiments` lists them."""
