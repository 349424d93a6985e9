"""`python -m bigjax new NAME`: a commented experiment file for a kind of data and a task."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bigjax.config.flags import read_options
from bigjax.core.errors import UserError, did_you_mean

# Source -> (its section, the tasks it can have, the first being the default, and the model's section).
# What is said of a model's size in `outputs` and `vocab` follows from the data.
SOURCES = {
    "table": (
        """dict(type="table", path="data", label="label"),  # data/train.csv, data/test.csv; or .parquet""",
        ("classification", "regression", "binary"),
        """dict(type="mlp", widths=(64, 64), activation="relu", dropout=0.1)""",
    ),
    "folder": (
        """dict(type="folder", directory="data", size=(32, 32)),  # data/train/CLASS/*.png, data/test/CLASS/*.png""",
        ("classification",),
        """dict(type="cnn", channels=(32, 64), batch_norm=True)""",
    ),
    "npz": (
        """dict(type="npz", directory="data"),  # data/train.npz, data/test.npz: arrays features, label""",
        ("classification", "regression", "binary", "multilabel"),
        """dict(type="mlp", widths=(64, 64), activation="relu")""",
    ),
    "tfds": (
        """dict(type="tfds", name="digits"),  # prepared by TFDS, or one of bigjax's own""",
        ("classification",),
        """dict(type="cnn", channels=(32, 64), batch_norm=True)""",
    ),
    "labelled_text": (
        """dict(  # data/train.jsonl, data/test.jsonl: {"text": ..., "label": ...} a line
            type="labelled_text", path="data", tokenizer="wordpiece-4096", length=64
        ),""",
        ("classification", "regression"),
        """dict(type="bert", head="sequence", layers=2, width=128, heads=2, context=64, dropout=0.1)""",
    ),
    "documents": (
        """dict(  # data/train.txt, data/test.txt
            type="documents", path="data", tokenizer="bpe-4096", length=128
        ),""",
        ("language_model",),
        """dict(type="gpt2", layers=4, width=128, heads=4, context=128)""",
    ),
}
# What a task reads of the examples, where it is not the task's own default.
INPUTS = {"table": "features", "npz": "features", "labelled_text": ("tokens", "segments", "types")}
# Source -> what is done to its numbers first.
PREPROCESS = {
    "table": """dict(type="standardize"),  # each column to mean 0, deviation 1, by the train split""",
    "npz": """dict(type="standardize"),  # each column to mean 0, deviation 1, by the train split""",
    "folder": """dict(type="normalize", scale=255.0),  # pixels to 0 .. 1""",
    "tfds": """dict(type="normalize", scale=16.0),  # pixels (of digits 0 .. 16, of others 0 .. 255) to 0 .. 1""",
}

TEMPLATE = '''"""What this experiment shows, in one line.

    python {name}.py                                          trains it into runs/{name}; again: goes on
    python {name}.py config                                   every value, and where it comes from
    python {name}.py --config.optimizer.learning_rate=1e-4    another value
    python {name}.py evaluate                                 the metrics of the newest checkpoint
    python {name}.py predict --input=FILE                     JSON lines
"""

from ml_collections import ConfigDict

from bigjax import launch


def get_config():
    config = ConfigDict()
    config.seed = 0  # weights, data order, dropout: all follow from it
    config.train = dict(epochs=10, batch_size=32)  # or steps=..., or examples=...: exactly one
    config.data = dict(
        source={source}
        splits=dict(train="train", test="test"),  # or parts: dict(train="train[:90%]", test="train[90%:]")
        {preprocess}
    )
    # Left out, for the data decides it: {sizes}.
    config.model = {model}
    config.task = dict({task})  # the loss and the metrics
    config.optimizer = dict(
        type="adamw",
        learning_rate=1e-3,
        schedule=dict(type="cosine"),  # down to 0 at the end
    )
    config.evaluate = dict(splits=("test",), every=0.1)  # ten times a run
    config.checkpoint = dict(every=0.1, keep=2)
    config.log = dict(every=10)  # steps: the points of the training curves
    return config


if __name__ == "__main__":
    launch.run(get_config)
'''


def text(name: str, source: str, task: str | None = None) -> str:
    """An experiment file.

    Raises:
      UserError: no such source, or a task that does not go with it.
    """
    if source not in SOURCES:
        near = did_you_mean(source, SOURCES)
        raise UserError(
            f"--source={source}: none to write for{near}; there are {', '.join(SOURCES)}"
        )
    section, tasks, model = SOURCES[source]
    task = task or tasks[0]
    if task not in tasks:
        near = did_you_mean(task, tasks)
        raise UserError(f"--task={task}: not with {source}{near}; there are {', '.join(tasks)}")
    words = [f'type="{task}"']
    if source in INPUTS:
        words.append(f"input={INPUTS[source]!r}".replace("'", '"'))
    preprocess = PREPROCESS.get(source)
    sizes = ["vocab"] * ("tokenizer" in section) + ["outputs"] * (task != "language_model")
    return TEMPLATE.format(
        name=name,
        source=section,
        preprocess=f"preprocess=(\n            {preprocess}\n        )," if preprocess else "",
        sizes=" and ".join(sizes),
        model=model,
        task=", ".join(words),
    ).replace("        \n    )", "    )")


def main(arguments: Sequence[str]) -> str:
    """Writes NAME.py into the folder one stands in; returns what to do next.

    Raises:
      UserError: wrong flags, or the file is there.
    """
    parser = argparse.ArgumentParser(prog="python -m bigjax new", exit_on_error=False)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--source", default="table", help=", ".join(SOURCES))
    tasks = "; ".join(f"{source}: {', '.join(its)}" for source, (_, its, _) in SOURCES.items())
    parser.add_argument("--task", help=f"{tasks} (the first is the default)")
    options = read_options(parser, arguments)
    if not options.name or not options.name.isidentifier():
        raise UserError("give a name that Python can import: python -m bigjax new my_experiment")
    path = Path(f"{options.name}.py")
    content = text(options.name, options.source, options.task)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        raise UserError(f"{path}: is there already") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return f"wrote {path}; put your data where it says, then: python {path}"
