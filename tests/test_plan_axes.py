"""What a plan says of split lengths, experts and stages: bytes sent against hand counts, the bubble, large buffers."""

import functools

import numpy as np
import pytest

from bigjax.build.program import build_program
from bigjax.config.resolve import resolve
from bigjax.data.sources import Arrays
from bigjax.plan import topology
from bigjax.plan.answer import answer
from bigjax.plan.buffers import largest_results
from bigjax.plan.chips import CHIPS
from bigjax.plan.collectives import of_text
from bigjax.plan.flops import COUNTED
from bigjax.plan.roofline import roofline

ROWS, LENGTH, WIDTH, VOCAB = 16, 16, 32, 16
DECODER = dict(vocab=VOCAB, layers=2, width=WIDTH, heads=4, context=LENGTH)
GPT = dict(type="gpt2", **DECODER, scan_layers=True)
ROUTED = dict(type="llama", **DECODER, kv_heads=4, mlp_width=24, experts=4, expert_capacity=1.5)


@functools.cache
def plan_of(name):
    """The plan of a small decoder in float32 on eight simulated devices, 16 rows of 16 tokens."""
    model, mesh = {
        "sequence": (GPT, dict(data=2, sequence=4)),
        "pipeline": (GPT, dict(data=4, pipeline=2)),
        "expert": (ROUTED, dict(data=2, expert=4)),
    }[name]
    config = resolve(
        dict(
            train=dict(steps=3, batch_size=ROWS),
            data=dict(source=dict(type="npz", directory="/nowhere"), splits=dict(train="train")),
            model=model,
            task=dict(type="language_model"),
            optimizer=dict(type="adam", learning_rate=1e-3),
            mesh=mesh,
        )
    )
    source = Arrays({"tokens": np.zeros((ROWS, LENGTH), np.int32)})
    program = build_program(config, source)
    cpu = topology.parsed("cpu:8")
    return answer(program, source.features, ROWS, 3, cpu, narrow=False)


def sent(name, kind, axes):
    """(count, bytes) of the collectives of a kind over these axes."""
    rows = [(row["kind"], row["axes"]) for row in plan_of(name)["collectives"]]
    found = plan_of(name)["collectives"][rows.index((kind, axes))]
    return found["count"], found["bytes"]


def test_a_ring_passes_keys_and_values_round_twice_and_their_gradients_once():
    n, layers = 4, DECODER["layers"]
    chunk = 4 * (ROWS // 2) * (LENGTH // n) * WIDTH  # a device's keys, values, or activations
    # Forward K and V take n - 1 steps, backward again, and dK and dV n: all the way home.
    ring = layers * (2 * (n - 1) + 2 * (n - 1) + 2 * n) * chunk
    # Into zig-zag order and out of it, forward and backward, each in two halves.
    order = 4 * chunk
    # A row's next token stands, for a chunk's last place, on the next device.
    labels = 4 * (ROWS // 2)
    assert sent("sequence", "collective-permute", "sequence")[1] == ring + order + labels


def test_a_pipeline_hands_on_a_microbatch_at_every_tick_and_its_gradient_back():
    pipeline = plan_of("pipeline")["pipeline"]
    stages, count = pipeline["stages"], pipeline["microbatches"]
    ticks, rows = count + stages - 1, ROWS // 4 // count
    assert (stages, count) == (2, 4)
    assert pipeline["bubble"] == pytest.approx(1 / 5)
    microbatch = 4 * rows * LENGTH * WIDTH
    # Each tick: on to the next stage; back, XLA turns the ring's end and the rest of it by themselves.
    # Once: what the last stage gave at every tick, and the gradient of that of its own microbatches.
    sizes = [microbatch] * (ticks + 2 * ticks) + [ticks * microbatch, count * microbatch]
    permuted = sent("pipeline", "collective-permute", "pipeline")
    assert permuted == (len(sizes), sum(sizes))


def test_experts_exchange_their_tokens_by_all_to_all():
    layers, experts, devices = DECODER["layers"], 4, 8
    room = -(-1.5 * 2 * LENGTH // experts)  # an expert's places in a row
    places = 4 * experts * (ROWS // devices) * int(room) * WIDTH
    # To the experts and back, and the gradients likewise.
    assert sent("expert", "all-to-all", "expert") == (4 * layers, 4 * layers * places)


def test_the_bubble_is_computed_and_told():
    """Stages out of turn work on copies: of m + p - 1 ticks of the blocks p - 1 are for nothing."""
    tokens, layers = ROWS * LENGTH, DECODER["layers"]
    blocks = 3 * layers * tokens * (2 * 12 * WIDTH * WIDTH + 4 * LENGTH * WIDTH)
    head = 3 * 2 * tokens * WIDTH * VOCAB
    assert plan_of("pipeline")["flops"][COUNTED] == pytest.approx(blocks * 5 / 4 + head)
    found = roofline(
        CHIPS["v5e"], 1, flops=197e12, moved=1, collectives=None, narrow=True, bubble=0.2
    )
    assert found["bubble_seconds"] == pytest.approx(0.2)


def test_the_largest_results_are_named_by_the_part_of_the_model_and_not_those_inside_of_a_fusion():
    text = """HloModule jit_step

%fused (p: f32[64,64]) -> f32[8] {
  %p = f32[64,64]{1,0} parameter(0)
  %big = f32[64,64]{1,0} exponential(%p), metadata={op_name="jit(step)/hidden/exp"}
  ROOT %sum = f32[8]{0} reduce(%big), to_apply=%add, metadata={op_name="jit(step)/sum"}
}

ENTRY %main (x: f32[64,64]) -> (f32[8], bf16[64,64]) {
  %x = f32[64,64]{1,0} parameter(0), metadata={op_name="x"}
  %fusion = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(step)/sum"}
  %dot = bf16[64,64]{1,0} dot(%x, %x), metadata={op_name="jit(step)/block_0/mlp/dot"}
  ROOT %out = (f32[8]{0}, bf16[64,64]{1,0}) tuple(%fusion, %dot)
}
"""
    assert largest_results(text, 3) == [
        {"what": "jit(step)/block_0/mlp/dot", "bytes": 2 * 64 * 64},
        {"what": "jit(step)/sum", "bytes": 4 * 8},
    ]
    of_gpt = [row["what"] for row in plan_of("pipeline")["largest"][:8]]
    assert any("GPT2" in name and "train_step" in name for name in of_gpt)


# As libtpu prints a loop of three turns around one of seven: no turns noted, and a gather that runs beside
# two products shown in each of the fusions that it spans.
OF_A_TPU = """
%beside.1 (p: bf16[128,512]) -> bf16[512,512] {
  %g.1 = bf16[512,512]{1,0:T(8,128)} all-gather(%p), channel_id=8, replica_groups=mesh['x'=4] {'x'}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1"}}
}
%beside.2 (p: bf16[128,512]) -> bf16[512,512] {
  %g.2 = bf16[512,512]{1,0:T(8,128)} all-gather(%p), channel_id=8, replica_groups=mesh['x'=4] {'x'}, dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2"}}
}
%less.7 (t: (s32[])) -> pred[] {
  %c.7 = s32[]{:T(128)} constant(7)
  %i.7 = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt.7 = pred[]{:T(512)} compare(%i.7, %c.7), direction=LT, backend_config={}
}
%less.3 (t: (s32[])) -> pred[] {
  %c.3 = s32[]{:T(128)} constant(3)
  %i.3 = s32[]{:T(128)} get-tuple-element(%t), index=0
  ROOT %lt.3 = pred[]{:T(512)} compare(%i.3, %c.3), direction=LT, backend_config={}
}
%inner (t: (s32[])) -> (s32[]) {
  %f.1 = bf16[512,512]{1,0} fusion(%p), kind=kOutput, calls=%beside.1
  %f.2 = bf16[512,512]{1,0} fusion(%f.1), kind=kOutput, calls=%beside.2
  %r = f32[512,512]{1,0:T(8,128)} all-reduce(%x), channel_id=5, replica_groups=mesh['x'=4] {'x'}, to_apply=%add
}
%outer (t: (s32[])) -> (s32[]) {
  %while.7 = (s32[]{:T(128)}) while(%tuple), condition=%less.7, body=%inner
}
ENTRY %main (t: (s32[])) -> (s32[]) {
  %while.3 = (s32[]{:T(128)}) while(%tuple), condition=%less.3, body=%outer
}
"""


def test_turns_of_a_loop_and_gathers_beside_products_are_read_as_libtpu_prints_them():
    gathered, reduced = of_text(OF_A_TPU, 4)
    assert (gathered["count"], gathered["bytes"]) == (21, 21 * 2 * 512 * 512)
    assert (reduced["count"], reduced["bytes"]) == (21, 21 * 4 * 512 * 512)
