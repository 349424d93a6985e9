"""The chips that a plan knows: published figures, each with its source. A new chip is one entry.

Bytes and FLOPs are of one device as JAX counts them; bandwidths are bytes a second that one device
sends, in one direction, over all its links together.
"""

from __future__ import annotations

from dataclasses import dataclass

from bigjax.run.clock import peak_flops

GIB = 2**30
GOOGLE = "cloud.google.com/tpu/docs"
NVIDIA = "NVIDIA data sheet"
# One NIC of 400 Gb/s a GPU (DGX H100, H200, B200), one of 200 Gb/s (DGX A100).
DGX = "one network card a GPU, as in a DGX"


@dataclass(frozen=True)
class Chip:
    """kind: as `device_kind` begins, which says the peak (`bigjax.run.clock.peak_flops`).

    float32: share of that peak that float32 products reach at JAX's default precision: TPUs round
      them to bfloat16, NVIDIA GPUs to TF32.
    memory: bytes; bandwidth: of it. intra: to the chips of the same slice or node; cross: beyond.
    node: devices that the fast network joins; None: a whole TPU slice.
    shape: dimensions of a TPU slice, 0 for a GPU.
    sources: of the figures.
    """

    kind: str
    memory: int
    bandwidth: float
    intra: float
    cross: float
    sources: str
    float32: float = 1.0
    node: int | None = None
    shape: int = 0

    @property
    def flops(self) -> float:
        """Dense bfloat16 FLOP/s."""
        return peak_flops(self.kind) or 0.0


# Between slices: v5e's is its page's (6.4 Tb/s a pod of 256). The others are assumptions, as no page
# names them: v5e's for v6e, and 200 Gb/s a host of four chips for v4 and v5p.
CHIPS = {
    "v4": Chip("TPU v4", 32 * GIB, 1.2e12, 3.0e11, 6.25e9, f"{GOOGLE}/v4", shape=3),
    "v5e": Chip("TPU v5 lite", 16 * GIB, 8.19e11, 2.0e11, 3.125e9, f"{GOOGLE}/v5e", shape=2),
    "v5p": Chip("TPU v5", 95 * GIB, 2.765e12, 6.0e11, 6.25e9, f"{GOOGLE}/v5p", shape=3),
    "v6e": Chip("TPU v6", 32 * GIB, 1.638e12, 4.0e11, 3.125e9, f"{GOOGLE}/v6e", shape=2),
    "a100": Chip(
        "NVIDIA A100",
        85_100_068_864,
        2.039e12,
        3.0e11,
        2.5e10,
        f"{NVIDIA}, A100 SXM; {DGX}",
        0.5,
        8,
    ),
    "h100": Chip(
        "NVIDIA H100", 84_942_979_072, 3.35e12, 4.5e11, 5.0e10, f"{NVIDIA}, H100 SXM; {DGX}", 0.5, 8
    ),
    "h200": Chip(
        "NVIDIA H200", 151_397_597_184, 4.8e12, 4.5e11, 5.0e10, f"{NVIDIA}, H200; {DGX}", 0.5, 8
    ),
    "b200": Chip(
        "NVIDIA B200", 191_514_411_008, 7.67e12, 9.0e11, 5.0e10, f"{NVIDIA}, B200; {DGX}", 0.5, 8
    ),
}
# GPU -> (compute capability, cores, clock in GHz, L2 cache, shared memory of a core, of a block by
# choice, single-precision units of a core, name): what XLA asks of a GPU to compile for it. Sources of
# these and of the bytes of memory above: openxla/xla, xla/backends/gpu/target_config/specs.
TARGETS = {
    "a100": ((8, 0), 108, 1.41, 41_943_040, 167_936, 166_912, 64, "NVIDIA A100-SXM4-80GB"),
    "h100": ((9, 0), 132, 1.98, 52_428_800, 233_472, 232_448, 128, "NVIDIA H100 80GB HBM3"),
    "h200": ((9, 0), 132, 1.98, 52_428_800, 233_472, 232_448, 128, "NVIDIA H200 141GB HBM3e"),
    "b200": ((10, 0), 148, 1.965, 132_644_864, 233_472, 232_448, 128, "NVIDIA B200"),
}


def target(name: str) -> str:
    """XLA's description of a GPU to compile for: a GpuTargetConfigProto as text."""
    (major, minor), cores, clock, cache, shared, chosen, units, shown = TARGETS[name]
    chip = CHIPS[name]
    features = "NONE" if major < 9 else "ACCELERATED_FEATURES"
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}
  core_count: {cores} fpus_per_core: {units} clock_rate_ghz: {clock} l2_cache_size: {cache}
  memory_bandwidth: {round(chip.bandwidth)} device_memory_size: {chip.memory}
  shared_memory_per_core: {shared} shared_memory_per_block: 49152
  shared_memory_per_block_optin: {chosen}
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  dnn_version: "9.10.0" runtime_version: "12.8.0" driver_version: "13.0.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{shown}"
"""
