"""One runnable config per file. `python -m experiments` lists them."""

import sys

if sys.argv[:1] == ["-m"]:  # Python is looking for the module of `python -m experiments.NAME`
    for _module in [word for word in sys.orig_argv if word.startswith("experiments.")][:1]:
        from experiments.__main__ import check_name

        check_name(_module)
