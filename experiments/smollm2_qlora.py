"""SmolLM2-135M learns Spanish by QLoRA, its kernels held in four bits: 2.14 bits a byte in 0.37 of the memory.

    scripts/fetch_data smollm2 && scripts/fetch_data kjv_es                                  once
    scripts/run experiments.smollm2_qlora
    scripts/run experiments.smollm2_qlora plan --topology=cpu:1                              memory of a step

The run of `smollm2_lora` with every kernel of the frozen base in nf4, in groups of 64 inputs, and the embedding in eight
bits (Dettmers et al. 2023). Nothing of the base is in the optimizer or in a checkpoint; a step makes full numbers
of a kernel where it uses it, and again in the backward pass.

Hardware: 2 CPU cores shared with a dozen other jobs: 9 minutes, 5 minutes of processor time. Reached on 63 held-out verses,
seed 0, after 30 steps of 4 rows of 128 tokens; peak of a step by XLA's memory analysis for one CPU
(QLoRA's is compiled for little memory, the others as XLA does by itself):

    trained          bits a byte  tokens right  GiB
    everything       2.07         35.0 %        3.01
    adapters         2.12         36.1 %        2.08
    adapters, QLoRA  2.14         34.7 %        1.13

For a TPU v5e (libtpu 0.0.42.1, rank 8): a peak of 826 MiB, of 2,470 with all parameters trained.
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
