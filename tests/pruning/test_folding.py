import pytest
import torch
from torch import nn

from graphs.network_graph import Fold
from pruning.folding import channels_last_weights, folded


def randomise_norms(network):
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3.0)
            if module.affine:
                module.weight.data.normal_()
                module.bias.data.normal_()
    return network.eval()


def tensors_of(network):
    return {
        name: (tensor, tensor.clone())
        for name, tensor in network.state_dict(keep_vars=True).items()
    }


def assert_untouched(network, before, modules):
    now = network.state_dict(keep_vars=True)
    assert list(now) == list(before)
    for name, (tensor, values) in before.items():
        assert now[name] is tensor, name
        assert torch.equal(tensor, values), name
    assert [(name, id(module)) for name, module in network.named_modules()] == modules


def modules_of(network):
    return [(name, id(module)) for name, module in network.named_modules()]


def test_folded_weights_equal_hand_computed_values():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0)).eval()
    conv, norm = network
    with torch.no_grad():
        conv.weight.fill_(3.0)
        conv.bias.fill_(5.0)
        norm.running_mean.fill_(1.0)
        norm.running_var.fill_(4.0)
        norm.weight.fill_(6.0)
        norm.bias.fill_(7.0)
    with folded(network, [Fold("0", "1")]) as fast:
        # 3 · 6 / √4 = 9 and (5 − 1) · 6 / √4 + 7 = 19
        assert fast[0].weight.item() == pytest.approx(9.0)
        assert fast[0].bias.item() == pytest.approx(19.0)
        assert isinstance(fast[1], nn.Identity)
        assert fast(torch.full((1, 1, 1, 1), 2.0)).item() == pytest.approx(37.0)


@pytest.mark.parametrize(
    ("conv", "norm", "shape"),
    [
        pytest.param(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), (3, 6, 6), id="no-bias"),
        pytest.param(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False), (3, 6, 6), id="no-gamma"),
        pytest.param(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), (8, 6, 6), id="depthwise"),
        pytest.param(nn.Conv2d(8, 12, 3, groups=4), nn.BatchNorm2d(12), (8, 6, 6), id="grouped"),
        pytest.param(nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), (3, 6), id="one-dimension"),
        pytest.param(nn.Linear(5, 8), nn.BatchNorm1d(8), (5,), id="linear"),
        pytest.param(nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8), (3, 6, 6), id="transposed"),
        pytest.param(
            nn.ConvTranspose2d(8, 12, 3, groups=4),
            nn.BatchNorm2d(12),
            (8, 6, 6),
            id="transposed-grouped",
        ),
    ],
)
def test_folding_changes_no_output_and_leaves_no_trace(conv, norm, shape):
    torch.manual_seed(0)
    network = randomise_norms(nn.Sequential(conv, norm, nn.ReLU()))
    inputs = torch.randn(4, *shape)
    before, modules = tensors_of(network), modules_of(network)
    with torch.no_grad():
        expected = network(inputs)
        with folded(network, [Fold("0", "1")]):
            torch.testing.assert_close(network(inputs), expected, rtol=1e-5, atol=1e-5)
        assert_untouched(network, before, modules)
        assert torch.equal(network(inputs), expected)


def test_an_exception_inside_restores_everything():
    network = randomise_norms(nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)))
    before, modules = tensors_of(network), modules_of(network)
    with pytest.raises(RuntimeError, match="user"), folded(network, [Fold("0", "1")]):
        raise RuntimeError("user")
    assert_untouched(network, before, modules)
    assert network[0].bias is None


def test_a_refused_fold_undoes_the_ones_before_it():
    network = randomise_norms(
        nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2))
    )
    before, modules = tensors_of(network), modules_of(network)
    with (
        pytest.raises(ValueError, match="Cannot fold into '2'"),
        folded(network, [Fold("0", "1"), Fold("2", "3")]),
    ):
        pass
    assert_untouched(network, before, modules)


def test_a_norm_that_reads_two_convolutions_is_folded_into_both():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1)
            self.norm = nn.BatchNorm2d(3)
            self.also_norm = self.norm

        def forward(self, x):
            return self.norm(self.a(x)) + self.also_norm(self.b(x))

    torch.manual_seed(0)
    network = randomise_norms(Shared())
    inputs = torch.randn(2, 2, 4, 4)
    expected = network(inputs)
    modules = modules_of(network)
    with folded(network, [Fold("a", "norm"), Fold("b", "norm")]):
        torch.testing.assert_close(network(inputs), expected, rtol=1e-5, atol=1e-5)
    assert modules_of(network) == modules
    assert network.also_norm is network.norm


@pytest.mark.parametrize(
    ("network", "folds", "message"),
    [
        pytest.param(
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)),
            [Fold("0", "1")],
            "Cannot fold '1' in training mode",
            id="training-mode",
        ),
        pytest.param(
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, track_running_stats=False)).eval(),
            [Fold("0", "1")],
            "expected a batch norm with running statistics",
            id="no-statistics",
        ),
        pytest.param(
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.GroupNorm(1, 1)).eval(),
            [Fold("0", "1")],
            "got GroupNorm",
            id="not-a-batch-norm",
        ),
        pytest.param(
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.BatchNorm2d(1)).eval(),
            [Fold("0", "1"), Fold("0", "2")],
            "'0' cannot hold more than one batch norm",
            id="convolution-twice",
        ),
        pytest.param(
            nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)).eval(),
            [Fold("0", "3")],
            "Cannot fold '3': expected a batch norm .* got NoneType",
            id="no-such-module",
        ),
    ],
)
def test_what_cannot_be_folded_is_refused(network, folds, message):
    with pytest.raises(ValueError, match=message), folded(network, folds):
        pass


def test_kernels_are_channels_last_inside_and_the_same_tensors_outside():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    inputs = torch.randn(2, 3, 6, 6)
    before, modules = tensors_of(network), modules_of(network)
    with torch.no_grad():
        expected = network(inputs)
        with channels_last_weights(network):
            assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
            fast = network(inputs.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(fast, expected, rtol=1e-5, atol=1e-5)
    assert_untouched(network, before, modules)
    assert network[0].weight.is_contiguous()


def test_folding_keeps_the_channels_last_layout():
    network = randomise_norms(nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)))
    with channels_last_weights(network), folded(network, [Fold("0", "1")]):
        assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
