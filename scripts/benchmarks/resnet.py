"""Samples a second of a ResNet-18 training step on the CPU, against PyTorch, eager and compiled.

    .venv/bin/python -m scripts.benchmarks.resnet [--rounds=7] [--side=224 --batch=16] [--out=FILE] [--busy]

SGD with momentum, float32, BatchNorm in training, one batch that lies ready in memory. Needs torch
(requirements-test.txt). The figure is the median over rounds of (bigjax's samples a second / the
peer's); target: at least 1.0. How contestants take turns, and --busy: see `measure.steps_in_turn`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from scripts.benchmarks.measure import bigjax_step, steps_in_turn, torch_step

CLASSES, RATE, MOMENTUM, LAYERS, WIDTH = 1000, 0.01, 0.9, (2, 2, 2, 2), 64


def examples(batch: int, side: int) -> dict[str, np.ndarray]:
    """Images (batch, side, side, 3) float32 and labels."""
    generator = np.random.default_rng(0)
    images = generator.standard_normal((batch, side, side, 3), np.float32)
    return dict(image=images, label=generator.integers(0, CLASSES, batch))


def bigjax_round(batch: int, side: int) -> Callable[[], None]:
    from bigjax.models.resnet import PRESETS

    config = dict(
        train=dict(steps=1000, batch_size=batch),
        model=dict(type="resnet", outputs=CLASSES, **PRESETS["18"]),
        task=dict(type="classification"),
        optimizer=dict(type="momentum", learning_rate=RATE, momentum=MOMENTUM),
    )
    return bigjax_step(config, examples(batch, side))


def torch_round(batch: int, side: int, compiled: bool) -> Callable[[], None]:
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int):
            super().__init__()
            self.f = nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
                nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )
            same = stride == 1 and inputs == outputs
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = (
                nn.Identity() if same else nn.Sequential(projection, nn.BatchNorm2d(outputs))
            )

        def forward(self, x):
            return torch.relu(self.f(x) + self.shortcut(x))

    layers = [
        nn.Conv2d(3, WIDTH, 7, 2, 3, bias=False),
        nn.BatchNorm2d(WIDTH),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = WIDTH
    for stage, blocks in enumerate(LAYERS):
        for i in range(blocks):
            outputs = WIDTH * 2**stage
            layers.append(Block(inputs, outputs, 2 if stage and not i else 1))
            inputs = outputs
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))
    model = nn.Sequential(*layers, *head)
    assert sum(p.numel() for p in model.parameters()) == 11_689_512  # as published
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM)
    images, labels = (torch.from_numpy(values) for values in examples(batch, side).values())
    images = images.permute(0, 3, 1, 2).contiguous()  # PyTorch's own layout

    def loss_of(forward):
        return nn.functional.cross_entropy(forward(images), labels)

    return torch_step(model, optimizer, compiled, loss_of)


if __name__ == "__main__":
    steps_in_turn(
        "scripts.benchmarks.resnet",
        __doc__,
        bigjax_round,
        torch_round,
        batch=16,
        size=224,
        size_is="side",
    )
