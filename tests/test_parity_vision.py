"""Vision families and their published weights against PyTorch: logits, both ways.

transformers has ViT, DeiT and ResNet. The others are written here in PyTorch, with the parameter
names of torchvision (ResNet, VGG, MobileNetV2) and of PyPI's efficientnet-lite-pytorch.
"""

from pathlib import Path

import flax.linen
import jax
import numpy as np
import pytest

from bigjax.core.errors import UserError
from bigjax.core.rules import map_with_path, paths
from bigjax.core.settings import Init
from bigjax.data.augment import Resize
from bigjax.data.sources import default_data_dir
from bigjax.data.transforms import Normalize
from bigjax.models import efficientnet_lite, mobilenet
from bigjax.pretrained.families import family_of_source, open_family
from bigjax.pretrained.load import read_published
from tests.parity import build, export, model_values

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

IMAGES = np.random.default_rng(0).standard_normal((3, 32, 32, 3)).astype(np.float32)


def randomized(module):
    """Norms and their statistics off their initial values, so that a swapped name shows."""
    torch.manual_seed(0)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3), m.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(m.weight, 0.5, 1.5), nn.init.normal_(m.bias, 0, 0.3)
        if isinstance(m, nn.LayerNorm):
            nn.init.uniform_(m.weight, 0.5, 1.5), nn.init.normal_(m.bias, 0, 0.3)
    return module.eval()


def logits_of(module, images=IMAGES):
    with torch.no_grad():
        out = module(torch.from_numpy(images).permute(0, 3, 1, 2))
    return (out if isinstance(out, torch.Tensor) else out.logits).numpy()


def saved(module, folder):
    """The module's state dict as a folder, without a config.json."""
    folder.mkdir()
    state = {k: v.contiguous() for k, v in module.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return folder


def load(folder, family, images=IMAGES, **given):
    """(model, variables, values): published weights in our model, which is never made from scratch."""
    values = model_values(folder, family, **given)
    model = build(values)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    wanted = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        for path, leaf in paths(flax.linen.unbox(abstract)).items()
    }
    init = Init(source=str(folder), family=family)
    found = read_published(init, values, wanted, lambda names: pytest.fail(f"no {names}"))
    return model, map_with_path(lambda path, _: found[path], flax.linen.unbox(abstract)), values


def close(ours, theirs):
    scale = np.abs(theirs).max()
    assert scale > 1e-3  # logits that say something
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1.0, scale))


# References.


def unit(inputs, outputs, kernel, stride=1, groups=1):
    pad = (kernel - 1) // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, pad, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs)


class ResNetBlock(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        outputs = width * (4 if bottleneck else 1)
        shapes = [(inputs, width, 3, stride), (width, outputs, 3)]
        if bottleneck:
            shapes = [(inputs, width, 1), (width, width, 3, stride), (width, outputs, 1)]
        self.count = len(shapes)
        for i, shape in enumerate(shapes, start=1):
            conv, norm = unit(*shape)
            setattr(self, f"conv{i}", conv), setattr(self, f"bn{i}", norm)
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(*unit(inputs, outputs, 1, stride))

    def forward(self, x):
        shortcut = self.downsample(x) if hasattr(self, "downsample") else x
        for i in range(1, self.count + 1):
            x = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x))
            x = x.relu() if i < self.count else x
        return (x + shortcut).relu()


class ResNet(nn.Module):
    def __init__(self, layers, bottleneck, width, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1, self.maxpool = nn.BatchNorm2d(width), nn.MaxPool2d(3, 2, 1)
        inputs, self.stages = width, len(layers)
        for stage, count in enumerate(layers):
            blocks = []
            for i in range(count):
                stride = 2 if stage and not i else 1
                blocks.append(ResNetBlock(inputs, width * 2**stage, stride, bottleneck))
                inputs = width * 2**stage * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, outputs)

    def forward(self, x):
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for stage in range(self.stages):
            x = getattr(self, f"layer{stage + 1}")(x)
        return self.fc(x.mean((2, 3)))


class VGG(nn.Module):
    def __init__(self, layers, width, pooled, dense, norm, outputs):
        super().__init__()
        features, inputs = [], 3
        for stage, count in enumerate(layers):
            for _ in range(count):
                channels = width * min(2**stage, 8)
                features.append(nn.Conv2d(inputs, channels, 3, padding=1))
                features += [nn.BatchNorm2d(channels)] if norm else []
                features.append(nn.ReLU())
                inputs = channels
            features.append(nn.MaxPool2d(2, 2))
        self.features, self.avgpool = nn.Sequential(*features), nn.AdaptiveAvgPool2d(pooled)
        head, inputs = [], inputs * pooled**2
        for size in dense:
            head += [nn.Linear(inputs, size), nn.ReLU(), nn.Dropout()]
            inputs = size
        self.classifier = nn.Sequential(*head, nn.Linear(inputs, outputs))

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class MobileNetBlock(nn.Module):
    def __init__(self, inputs, outputs, expand, stride):
        super().__init__()
        wide, layers = inputs * expand, []
        if expand != 1:
            layers.append(nn.Sequential(*unit(inputs, wide, 1), nn.ReLU6()))
        layers.append(nn.Sequential(*unit(wide, wide, 3, stride, groups=wide), nn.ReLU6()))
        self.conv = nn.Sequential(*layers, *unit(wide, outputs, 1))
        self.same = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.conv(x) if self.same else self.conv(x)


class MobileNetV2(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        features, inputs = [nn.Sequential(*unit(3, 32, 3, 2), nn.ReLU6())], 32
        for expand, channels, blocks, stride in mobilenet.STAGES:
            for i in range(blocks):
                features.append(MobileNetBlock(inputs, channels, expand, 1 if i else stride))
                inputs = channels
        features.append(nn.Sequential(*unit(inputs, 1280, 1), nn.ReLU6()))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, outputs))

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class Same(nn.Conv2d):
    """TensorFlow's padding: what is needed in all, the larger half after the image."""

    def forward(self, x):
        k, s = self.kernel_size[0], self.stride[0]
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // s) - 1) * s + k - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(nn.functional.pad(x, pads))


def tf_norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class LiteBlock(nn.Module):
    def __init__(self, inputs, outputs, expand, kernel, stride):
        super().__init__()
        wide = inputs * expand
        if expand != 1:
            self._expand_conv, self._bn0 = Same(inputs, wide, 1, bias=False), tf_norm(wide)
        self._depthwise_conv = Same(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = tf_norm(wide)
        self._project_conv, self._bn2 = Same(wide, outputs, 1, bias=False), tf_norm(outputs)
        self.same = stride == 1 and inputs == outputs

    def forward(self, x):
        y = nn.functional.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_bn0") else x
        y = nn.functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.same else y


class EfficientNetLite0(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self._conv_stem, self._bn0 = Same(3, 32, 3, 2, bias=False), tf_norm(32)
        blocks, inputs = [], 32
        for expand, channels, count, stride, kernel in efficientnet_lite.STAGES:
            for i in range(count):
                blocks.append(LiteBlock(inputs, channels, expand, kernel, 1 if i else stride))
                inputs = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = nn.Conv2d(320, 1280, 1, bias=False), tf_norm(1280)
        self._fc = nn.Linear(1280, outputs)

    def forward(self, x):
        x = nn.functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return self._fc(nn.functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))


SMALL_VGG = dict(layers=(1, 2, 1), width=8, pooled=3, dense=(12, 10))
REFERENCES = {
    "resnet basic": (
        "resnet_torchvision",
        lambda: ResNet((2, 1, 1, 2), False, 8, 5),
        dict(outputs=5, layers=(2, 1, 1, 2), width=8),
    ),
    "resnet bottleneck": (
        "resnet_torchvision",
        lambda: ResNet((1, 2, 1), True, 8, 5),
        dict(outputs=5, layers=(1, 2, 1), width=8, block="bottleneck"),
    ),
    "vgg": ("vgg", lambda: VGG(**SMALL_VGG, norm=False, outputs=5), dict(SMALL_VGG, outputs=5)),
    "vgg with norms": (
        "vgg",
        lambda: VGG(**SMALL_VGG, norm=True, outputs=5),
        dict(SMALL_VGG, outputs=5, batch_norm=True),
    ),
    "mobilenet": ("mobilenet", lambda: MobileNetV2(5), dict(outputs=5)),
    "efficientnet_lite": ("efficientnet_lite", lambda: EfficientNetLite0(5), dict(outputs=5)),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_logits_and_export_equal_torch(name, tmp_path):
    family, make, values = REFERENCES[name]
    reference = randomized(make())
    folder = saved(reference, tmp_path / "published")
    model, variables, values = load(folder, family, **values)
    assert ("batch_stats" in variables) == (name != "vgg")
    close(jax.jit(lambda v: model.apply(v, IMAGES, train=False))(variables), logits_of(reference))

    written = load_file(export(variables, values, family, tmp_path / "out") / "model.safetensors")
    counters = {k for k in reference.state_dict() if k.endswith("num_batches_tracked")}
    assert written.keys() == reference.state_dict().keys() - counters
    for key, tensor in written.items():
        np.testing.assert_array_equal(tensor, reference.state_dict()[key], err_msg=key)
    # The config.json of an export is enough to build the model again.
    if family != "resnet_torchvision":
        assert model_values(tmp_path / "out", family) == values


SMALL_VIT = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    image_size=32,
    patch_size=8,
    num_labels=5,
)


def transformers_model(name):
    t = transformers
    if name == "vit":
        return t.ViTForImageClassification(t.ViTConfig(**SMALL_VIT))
    if name == "deit":
        return t.DeiTForImageClassificationWithTeacher(t.DeiTConfig(**SMALL_VIT))
    if name == "deit, one head, no biases of queries":
        return t.DeiTForImageClassification(t.DeiTConfig(**SMALL_VIT, qkv_bias=False))
    if name == "mobilenet":
        return t.MobileNetV2ForImageClassification(
            t.MobileNetV2Config(depth_multiplier=0.35, num_labels=5)
        )
    if name == "efficientnet":  # of odd sides inside: 18, 9, 5, 3, 2
        config = t.EfficientNetConfig(
            width_coefficient=0.3,
            depth_coefficient=0.4,
            image_size=36,
            hidden_dim=384,
            depthwise_padding=[2, 3, 7],
            initializer_range=0.2,
            num_labels=5,
        )
        return t.EfficientNetForImageClassification(config)
    bottleneck = name == "resnet bottleneck"
    sizes = [32, 64, 128] if bottleneck else [8, 16, 32]
    config = t.ResNetConfig(
        embedding_size=8,
        hidden_sizes=sizes,
        depths=[1, 2, 1],
        layer_type=name.split()[1],
        num_labels=5,
    )
    return t.ResNetForImageClassification(config)


@pytest.mark.parametrize(
    "name",
    [
        "vit",
        "deit",
        "deit, one head, no biases of queries",
        "resnet basic",
        "resnet bottleneck",
        "mobilenet",
        "efficientnet",
    ],
)
def test_logits_equal_transformers_both_ways(name, tmp_path):
    reference = randomized(transformers_model(name))
    reference.save_pretrained(tmp_path / "published")
    family = family_of_source(str(tmp_path / "published"))
    images = IMAGES
    if name == "efficientnet":
        images = np.random.default_rng(0).standard_normal((2, 36, 36, 3)).astype(np.float32)
    model, variables, values = load(tmp_path / "published", family, images)
    expected = logits_of(reference, images)
    close(jax.jit(lambda v: model.apply(v, images, train=False))(variables), expected)

    export(variables, values, family, tmp_path / "out")
    again, loading = type(reference).from_pretrained(tmp_path / "out", output_loading_info=True)
    missing = {k for k in loading["missing_keys"] if not k.endswith("num_batches_tracked")}
    assert not missing and not loading["unexpected_keys"]
    np.testing.assert_allclose(logits_of(again.eval(), images), expected, atol=1e-6)


def test_scanned_blocks_take_the_same_weights(tmp_path):
    reference = randomized(transformers_model("vit"))
    reference.save_pretrained(tmp_path / "published")
    model, variables, _ = load(tmp_path / "published", "vit", scan_layers=True)
    assert "blocks" in variables["params"]
    close(model.apply(variables, IMAGES, train=False), logits_of(reference))


@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("vit", dict(SMALL_VIT, hidden_act="relu9"), "hidden_act 'relu9' is not known"),
        (
            "resnet",
            dict(layer_type="basic", embedding_size=8, depths=[1, 1], hidden_sizes=[8, 12]),
            r"hidden_sizes \[8, 12\] is not known; \[8, 16\] is",
        ),
        ("mobilenet", dict(output_stride=16), "output_stride 16 is not known; 32 is"),
        ("mobilenet", dict(depth_multiplier=0.1), "model.width 0.1 has other channels"),
        (
            "efficientnet",
            dict(width_coefficient=1.0, hidden_dim=1280, image_size=240),
            r"depthwise_padding \[\] is not known; \[\d+\] is",
        ),
    ],
)
def test_a_checkpoint_of_another_kind_is_the_users_error(family, config, message):
    with pytest.raises(UserError, match=message):
        open_family(family).model_values(config)


@pytest.mark.parametrize(
    ("family", "model"),
    [
        ("vit", dict(width=8, heads=2, pool="mean", positions="learned")),
        ("resnet", dict(stem="small")),
    ],
)
def test_what_transformers_lacks_is_not_exported(family, model):
    with pytest.raises(UserError, match="export: transformers"):
        open_family(family).published_config(model)


@pytest.mark.slow
def test_the_published_efficientnet_sees_what_torch_sees_on_two_photographs():
    from sklearn.datasets import load_sample_images

    weights = Path(default_data_dir()) / "weights" / "efficientnet_lite0"
    if not weights.exists():
        pytest.skip("scripts/fetch_data efficientnet_lite0")
    resize, normalize = Resize(224), Normalize(mean=127.0, std=128.0)
    photographs = [
        np.asarray(resize({"image": x}, None)["image"]) for x in load_sample_images().images
    ]
    images = np.stack([normalize({"image": x}, None)["image"] for x in photographs])
    reference = EfficientNetLite0(1000).eval()
    reference.load_state_dict(torch.load(next(weights.glob("*.pth")), weights_only=True))
    expected = logits_of(reference, images)
    model, variables, _ = load(weights, "efficientnet_lite", outputs=1000)
    logits = jax.jit(lambda v: model.apply(v, images, train=False))(variables)
    close(logits, expected)
    top = np.argsort(-logits, axis=1)[:, :5]
    np.testing.assert_array_equal(top, np.argsort(-expected, axis=1)[:, :5])
    assert top[1, 0] == 985  # "daisy", for the photograph of a dahlia; ImageNet has no dahlia
