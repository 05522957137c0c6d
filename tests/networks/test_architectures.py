"""Shapes, sizes and names of the networks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from networks.digits import digits_resnet
from networks.mobilenet import mobilenet_v2
from networks.resnet import PadShortcut, ResNet, cifar_resnet
from networks.vgg import vgg16_bn
from networks.vit import Attention, vit

CASES = [
    pytest.param(lambda: cifar_resnet(20), (3, 32, 32), 269_722, 40_551_040, id="resnet20"),
    pytest.param(lambda: cifar_resnet(56), (3, 32, 32), 853_018, 125_485_696, id="resnet56"),
    pytest.param(lambda: cifar_resnet(56, "B"), (3, 32, 32), 855_770, 125_747_840, id="resnet56-b"),
    pytest.param(lambda: cifar_resnet(110), (3, 32, 32), 1_727_962, 252_887_680, id="resnet110"),
    pytest.param(vgg16_bn, (3, 32, 32), 14_724_042, 313_201_664, id="vgg16"),
    pytest.param(mobilenet_v2, (3, 32, 32), 2_236_682, 87_976_448, id="mobilenet"),
    pytest.param(vit, (3, 32, 32), 1_806_538, 125_341_824, id="vit"),
    pytest.param(digits_resnet, (1, 8, 8), 167_546, 1_336_960, id="digits"),
]


def macs(network: nn.Module, inputs: torch.Tensor) -> int:
    meta = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        meta(inputs.to("meta"))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("build", "size", "params", "expected_macs"), CASES)
def test_networks_have_the_known_size_and_give_ten_scores(build, size, params, expected_macs):
    network = build().eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, *size)).shape == (2, 10)
    assert sum(p.numel() for p in network.parameters()) == params
    assert macs(network, torch.zeros(1, *size)) == expected_macs


@pytest.mark.parametrize(
    "build",
    [
        lambda: cifar_resnet(8, num_classes=7, width=4, in_channels=1),
        lambda: vgg16_bn(7, width=0.1, in_channels=1),
        lambda: mobilenet_v2(7, width=0.25, in_channels=1),
        lambda: vit(32, 8, 12, 1, 2, pool="mean", num_classes=7, in_channels=1),
        lambda: digits_resnet(4, 7, "B", (1, 1, 1)),
    ],
    ids=["resnet", "vgg", "mobilenet", "vit", "digits"],
)
def test_width_classes_and_input_channels_can_be_chosen(build):
    assert build().eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_resnet_names_are_those_of_the_public_checkpoints():
    names = {name for name, _ in cifar_resnet(20).named_parameters()}
    for expected in ("conv1.weight", "bn1.bias", "layer3.2.conv2.weight", "layer2.0.bn1.weight"):
        assert expected in names
    assert {"linear.weight", "linear.bias"} <= names
    assert not any("shortcut" in name for name in names)
    projected = {name for name, _ in cifar_resnet(20, "B").named_parameters()}
    assert "layer2.0.shortcut.0.weight" in projected


def test_a_pad_shortcut_subsamples_and_centres_the_channels():
    shortcut = PadShortcut(2, 6, 2)
    assert (shortcut.pad_before, shortcut.pad_after) == (2, 2)
    x = torch.randn(1, 2, 5, 4)
    out = shortcut(x)
    assert out.shape == (1, 6, 3, 2)
    assert torch.equal(out[:, 2:4], x[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 4:].any()


def test_a_pad_shortcut_follows_its_two_attributes_and_nothing_else():
    shortcut = PadShortcut(16, 32, 2)
    shortcut.pad_before, shortcut.pad_after = 1, 3
    out = shortcut(torch.ones(1, 5, 4, 4))
    assert out[0, :, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 0, 0, 0]
    assert "pad_before=1, pad_after=3" in repr(shortcut)


def test_an_odd_number_of_new_channels_is_padded_completely():
    shortcut = PadShortcut(3, 6, 1)
    assert shortcut.pad_before + shortcut.pad_after == 3


def test_attention_runs_with_fewer_heads_and_equals_the_masked_one():
    torch.manual_seed(0)
    attention = Attention(dim=12, heads=3).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    masked, slim = copy.deepcopy(attention), copy.deepcopy(attention)
    masked.proj.weight.data[:, 4:8] = 0  # the middle head no longer counts
    rows = [i for i in range(36) if not 4 <= i % 12 < 8]
    slim.qkv.weight = nn.Parameter(attention.qkv.weight[rows])
    slim.qkv.bias = nn.Parameter(attention.qkv.bias[rows])
    slim.proj.weight = nn.Parameter(attention.proj.weight[:, [0, 1, 2, 3, 8, 9, 10, 11]])
    torch.testing.assert_close(slim(x), masked(x))


def test_attention_is_softmax_of_scaled_products():
    torch.manual_seed(0)
    attention = Attention(dim=4, heads=1)
    x = torch.randn(1, 3, 4)
    query, key, value = attention.qkv(x)[0].split(4, dim=1)
    expected = attention.proj(torch.softmax(query @ key.T / 2, dim=1) @ value)
    torch.testing.assert_close(attention(x)[0], expected)


def test_the_class_token_is_optional():
    assert "class_token" in dict(vit(depth=1).named_parameters())
    mean = vit(depth=1, pool="mean")
    assert "class_token" not in dict(mean.named_parameters())
    assert mean.position_embedding.shape == (1, 64, 192)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cifar_resnet(21), r"network.depth must be 6n \+ 2 .* got 21"),
        (lambda: cifar_resnet(20, "C"), r"one of \['A', 'B'\], got 'C'"),
        (lambda: cifar_resnet(20, width=0), "network.width must be at least 1, got 0"),
        (lambda: ResNet([1, 1]), "three stages"),
        (lambda: PadShortcut(4, 2, 1), "4 in and 2 out"),
        (lambda: vgg16_bn(width=0), "network.width must be positive, got 0"),
        (lambda: mobilenet_v2(width=-1), "network.width must be positive, got -1"),
        (lambda: vit(patch=5), "network.patch must divide the image size 32, got 5"),
        (lambda: vit(heads=5), "network.heads must divide network.dim 192, got 5"),
        (lambda: vit(pool="max"), "'cls' or 'mean', got 'max'"),
        (lambda: vit(depth=0), "network.depth must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
