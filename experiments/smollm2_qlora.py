"""SmolLM2-135M learns Spanish by QLoRA, its kernels held in four bits: a beginning, not run here.

    scripts/fetch_data smollm2 && scripts/fetch_data kjv_es                                  once
    scripts/run experiments.smollm2_qlora

The run of `smollm2_lora` with every kernel of the frozen base in nf4, in groups of 64 inputs, and the embedding in eight
bits (Dettmers et al. 2023). Nothing of the base is in the optimizer or in a checkpoint; a step makes full numbers
of a kernel where it uses it, and again in the backward pass. XLA's memory analysis of a step of these sizes for
a TPU v5e (libtpu 0.0.42.1, rank 8): a peak of 826 MiB, of 2,470 with all parameters trained. Arguments, results and
temporaries, what is given on taken off: 1,201 and 3,211 there, 1,730 and 2,949 on a CPU, where XLA keeps the full
numbers from the forward pass.

Hardware: meant for 2 CPU cores, for some 60 minutes. Not run here: no quality is stated yet.
"""

from bigjax import launch
from experiments import smollm2_lora


def get_config():
    config = smollm2_lora.get_config()
    formats = ((".*kernel", "nf4"), (".*embedding", "int8"), (".*", None))
    config.adapt = (dict(type="quantize", rules=formats, group=64), *config.adapt)
    return config


if __name__ == "__main__":
    launch.run(get_config)
