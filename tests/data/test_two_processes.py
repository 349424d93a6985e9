"""Two real processes of four devices each: together the same batches, each reading its own half."""

import json
import os
import socket
import subprocess
import sys

import numpy as np

from bigjax.core.order import sample_ids

PROGRAM = """
import json, sys
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from bigjax.data import pipeline
from bigjax.data.pipeline import eval_batches, local_rows, train_batches

pipeline.AHEAD = 0  # nothing is read before it is asked for
from bigjax.data.sources import Arrays

read = []
class Recorded(Arrays):
    def read(self, ids):
        read.extend(ids.tolist())
        return super().read(ids)

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
sharding = NamedSharding(mesh, PartitionSpec("data"))
source = Recorded({"x": np.arange(37)})

def rows_of(batch):
    shards = batch["x"].addressable_shards
    return {shard.index[0].start: shard.data.tolist() for shard in shards}

train = train_batches(source, batch_size=16, seed=2, start_step=5, sharding=sharding)
batch = next(train)
held = rows_of(batch)
own = sorted(read)
total = jax.jit(lambda b: (b["x"].sum(), (b["x"] == b["sample"]).all()))(batch)
counted = [float(b["mask"].sum()) for b in eval_batches(source, batch_size=16, sharding=sharding)]
print("RESULT", json.dumps([held, own, int(total[0]), bool(total[1]), counted]))
"""


def test_two_processes_hold_and_read_what_one_would():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, address, str(process)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    outputs = [run.communicate(timeout=120)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    results = [json.loads(output.split("RESULT ")[1].splitlines()[0]) for output in outputs]

    ids = sample_ids(2, 5 * 16 + np.arange(16), 37)[0]
    for process, (held, read, total, consistent, counted) in enumerate(results):
        mine = ids[process * 8 : process * 8 + 8]
        rows = {int(start): values for start, values in held.items()}
        assert np.concatenate([rows[start] for start in sorted(rows)]).tolist() == mine.tolist()
        assert read == sorted(mine.tolist())
        assert total == ids.sum() and consistent
        assert counted == [16, 16, 5]
