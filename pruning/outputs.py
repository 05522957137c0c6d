"""What a network answers: its outputs on many samples, in batches and in inference mode."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from networks.data import SampleSet
from pruning.folding import channels_last_weights
from pruning.recalibration import evaluation_mode


def forward(network: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Outputs (N, ...) of `network` over all batches, in inference mode.

    Raises:
        ValueError: the network returns something else than one tensor.
    """
    with torch.inference_mode():
        return torch.cat([_tensor(network(batch)) for batch in batches])


def outputs_and_targets(
    network: nn.Module, samples: SampleSet, batch_size: int, *, channels_last: bool
) -> tuple[Tensor, Tensor]:
    """What a network answers to every sample, and what it should have answered.

    The one way in which a network is tested: what a run reports and what a reloaded network shows
    come from here, so that they are equal to the last bit. Batch norms are not folded: that would
    measure other weights than those that are saved.

    Args:
        network: runs in eval mode; left unchanged.
        samples: any split.
        batch_size: samples in one forward pass.
        channels_last: whether 4-d inputs are laid out channels last, where the network takes it.

    Returns:
        Outputs (N, ...) and targets (N, ...), on the device of the network.

    Raises:
        ValueError: the sample set is empty, or the network returns something else than one tensor.
    """
    if len(samples) == 0:
        raise ValueError("Cannot measure a network on an empty sample set.")
    device = device_of(network)
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(network))
        stack.enter_context(torch.inference_mode())
        for inputs, batch_targets in samples.batches(batch_size):
            batch = inputs.to(device)
            if not outputs:
                channels_last = channels_last and takes_channels_last(network, batch)
                if channels_last:
                    stack.enter_context(channels_last_weights(network))
            if channels_last:
                batch = batch.contiguous(memory_format=torch.channels_last)
            outputs.append(_tensor(network(batch)))
            targets.append(batch_targets.to(device))
    return torch.cat(outputs), torch.cat(targets)


def takes_channels_last(network: nn.Module, batch: Tensor) -> bool:
    """Whether a network reads images channels last; one with `x.view(n, -1)` does not.

    Args:
        network: left unchanged.
        batch: inputs, (N, C, H, W) or of other dimensions, which have no such layout.
    """
    if batch.dim() != 4:
        return False
    few = batch[:2].contiguous(memory_format=torch.channels_last)
    with evaluation_mode(network), channels_last_weights(network), torch.inference_mode():
        try:
            network(few)
        except RuntimeError as error:
            if "view size is not compatible" not in str(error):
                raise
            return False
    return True


def _tensor(output: object) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(
            "A network is measured by the one tensor it returns, got "
            f"{type(output).__name__}. Wrap the network so that it returns one tensor."
        )
    return output


def device_of(network: nn.Module) -> torch.device:
    """Where the first parameter lies."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
