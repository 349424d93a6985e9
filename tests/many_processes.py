"""The experiment that test_distributed.py runs: digits, from a source that keeps a record of its
reads and, told so by $BIGJAX_MISHAP, goes wrong in one process. Not a test itself."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import jax
from ml_collections import ConfigDict

from bigjax.core.errors import UserError
from bigjax.data.sources import TFDS
from bigjax.verbs import launch

MISHAP_AT = 12  # reads


@dataclasses.dataclass(frozen=True)
class Recorded:
    """`TFDS` digits, with every read as a line of $BIGJAX_READS/SPLIT-PROCESS.jsonl."""

    def open(self, split):
        # "WHAT PROCESS", e.g. "kill 1"
        mishap, _, process = os.environ.get("BIGJAX_MISHAP", "").partition(" ")
        mine = process == str(jax.process_index())
        if mine and mishap == "wrong_input":
            raise UserError("no data on this machine")
        source, reads = TFDS(name="digits").open(split), []
        plain_read, folder = source.read, Path(os.environ["BIGJAX_READS"])

        def read(ids):
            reads.append(ids.tolist())
            path = folder / f"{split}-{jax.process_index()}.jsonl"
            with open(path, "a") as file:
                file.write(json.dumps(ids.tolist()) + "\n")
            if mine and split == "train" and len(reads) == MISHAP_AT:
                (folder / "mishap").write_text(str(time.time()))
                if mishap == "raise":
                    raise RuntimeError("the disk fell off")
                os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGTERM}[mishap])
            return plain_read(ids)

        source.read = read
        return source


def get_config():
    config = ConfigDict()
    config.seed = 3
    config.train = dict(steps=20, batch_size=48)
    config.data = dict(
        source=dict(type="tests.many_processes:Recorded"),
        splits=dict(train="train", test="test"),
        augment=(dict(type="shift", pixels=1),),
        preprocess=(dict(type="normalize", scale=16.0),),
        workers=1,
    )
    config.model = dict(type="mlp", widths=(64, 64), outputs=10, dropout=0.1)
    config.task = dict(type="classification")
    config.optimizer = dict(type="adam", learning_rate=1e-3)
    config.sharding = dict(rules=((".*", "fsdp"),))
    config.mesh = dict(data=1, fsdp=8)
    config.evaluate = dict(splits=("test",), every=10)
    config.checkpoint = dict(every=10)
    config.log = dict(every=5, tensorboard=False)
    return config


if __name__ == "__main__":
    launch.run(get_config)
