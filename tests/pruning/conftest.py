"""The small network and images of the measuring tests."""

import pytest
import torch
from torch import nn

from networks.data import SampleSet


class Net(nn.Module):
    """Two convolutions with batch norm, dropout and a classifier."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(12)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(12, 4)

    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.fc(self.dropout(x.mean((2, 3))))


@pytest.fixture
def network():
    torch.manual_seed(0)
    network = Net()
    for norm in (network.norm1, network.norm2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
    return network.eval()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return SampleSet(
        torch.randn(50, 3, 6, 6, generator=generator),
        torch.randint(4, (50,), generator=generator),
    )
