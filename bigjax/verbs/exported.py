"""`python -m bigjax predict FOLDER`: an exported folder answers, without the run that it came from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bigjax.config.flags import expanded, read_options
from bigjax.core.errors import UserError
from bigjax.export.open import open_exported
from bigjax.verbs.predict import check_paths, write_answers


def main(arguments: Sequence[str]) -> None:
    """Writes one JSON object a row of the input; bad rows are told by number and left out.

    Raises:
      UserError: the folder or the input cannot be read; an unknown flag.
    """
    parser = argparse.ArgumentParser(
        prog="python -m bigjax predict", allow_abbrev=False, exit_on_error=False
    )
    parser.add_argument("folder", nargs="?", type=expanded, help="what `export` wrote")
    parser.add_argument("--input", type=expanded, help="a file or a folder")
    parser.add_argument("--output", type=expanded, help="JSON lines go here, not to the terminal")
    parser.add_argument("--trust", action="store_true", help="the folder may name any code")
    options = read_options(parser, arguments)
    if options.folder is None:
        raise UserError("predict needs the folder that `export` wrote")
    check_paths(options.input, options.output)
    model = open_exported(options.folder, options.trust)
    write_answers({None: model}, options.input, options.output)
