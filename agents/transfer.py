"""What a policy learns on some networks, for networks it never saw: weights that fit any graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.allocation_policy import AllocationPolicy
from agents.evolution import EvolutionAgent
from agents.imagination import ImaginationAgent
from agents.reward_model import RewardModel

PER_GROUP = ("offset", "free_log_std")
"""Parameters of an `AllocationPolicy` with one entry per group; they fit no other network."""


@dataclass(frozen=True)
class Lesson:
    """One network to learn from: what was measured there, as a model, and who decides there.

    Attributes:
        policy: decides for this network; its shared weights are tied to those of the other lessons.
        observation: the one observation, that of the unpruned network.
        preview: gives the plans of actions, as `PruningEnv.preview` does.
        model: what plans of this network are worth, fitted to its measurements.
    """

    policy: AllocationPolicy
    observation: Any
    preview: Callable[..., np.ndarray]
    model: RewardModel


def check_transferable(policy: Any) -> None:
    """Refuse a policy whose decisions depend on more than weights that fit any network.

    Raises:
        ValueError: it is no `AllocationPolicy`, reads no graph, has offsets, or has no head.
    """
    if not isinstance(policy, AllocationPolicy):
        raise ValueError(
            f"Only an AllocationPolicy can be transferred, and this is a {type(policy).__name__}. "
            "Set env=allocation."
        )
    if not policy.reads_graph:
        raise ValueError(
            "A policy that reads the flat observation fits one network only. Set "
            "encoder=gatv2 (or gcn, sage, gin, none)."
        )
    if policy.offset_scale != 0.0:
        raise ValueError(
            f"A policy with offsets cannot be transferred: they belong to the "
            f"{len(policy.offset)} groups of one network. Set "
            "transfer.policy_kwargs.offset_scale=0."
        )
    if policy.head_scale == 0.0:
        raise ValueError(
            "Without its head a policy without offsets decides nothing. Set "
            "transfer.policy_kwargs.head_scale above 0."
        )


def shared_weights(policy: AllocationPolicy) -> dict[str, nn.Parameter]:
    """The parameters of a policy that fit any network, by name; those per group are left out."""
    return {name: value for name, value in policy.named_parameters() if name not in PER_GROUP}


def save_shared(policy: AllocationPolicy, path: Path) -> None:
    """Write the weights that fit any network.

    Args:
        policy: a policy that `check_transferable` accepts.
        path: a .safetensors file; it appears when it is whole.

    Raises:
        ValueError: the policy cannot be transferred.
    """
    from safetensors.torch import save

    from networks.checkpoints import whole_file

    check_transferable(policy)
    weights = {name: value.detach().clone() for name, value in shared_weights(policy).items()}
    with whole_file(path) as stream:
        stream.write(save(weights))


def load_shared(policy: AllocationPolicy, path: Path) -> None:
    """Take over what `save_shared` wrote on other networks; what there is per group stays.

    Args:
        policy: a policy with the same encoder and head, for a network of any size.
        path: the file; nothing in it is executed.

    Raises:
        ValueError: the file is missing or damaged, or was written by a policy of another form.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ValueError(f"There is no file {path} with the weights of a policy.")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} does not hold the weights of a policy: {error}.") from error
    own = shared_weights(policy)
    differing = sorted(
        name
        for name in {*own, *weights}
        if name not in own or name not in weights or own[name].shape != weights[name].shape
    )
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(
            f"The policy in {path} has another form: {', '.join(differing[:3])}{more} differ. "
            "Use the encoder and the transfer.policy_kwargs it was trained with."
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(weights[name])


def tie(policies: Sequence[AllocationPolicy]) -> None:
    """Let policies of several networks share every weight that fits any: what one learns, all know.

    Args:
        policies: of the same form, for networks of any size; the weights of the first stay.

    Raises:
        ValueError: a policy cannot be transferred.
    """
    for policy in policies:
        check_transferable(policy)
    weights = shared_weights(policies[0])
    for policy in policies[1:]:
        for name, value in weights.items():
            path, _, leaf = name.rpartition(".")
            setattr(policy.get_submodule(path), leaf, value)


def train_shared(
    lessons: Sequence[Lesson],
    *,
    updates: int,
    plans: int,
    deviation: float,
    learning_rate: float,
    weight_decay: float,
    caution: float,
    anchor: float,
    seed: int,
) -> list[float]:
    """Train the shared weights on imagined plans of all networks; nothing is measured.

    An update draws plans around the policy's mean on every network, lets the model of that network
    say what they are worth, and takes one policy-gradient step on all networks together: PPO with a
    single pass over its plans. Worth is `mean - caution * deviation of the model`, brought to
    mean 0 and variance 1 within a network, so that every network counts alike. A penalty, the
    KL divergence to the same Gaussian around the uniform plan, lets only those groups leave it that
    matter. Draws come in mirrored pairs, and the learning rate falls to 0 along a cosine.

    Args:
        lessons: the networks; their policies are tied here.
        updates: gradient steps, at least 1.
        plans: imagined plans per network and update, even and at least 2.
        deviation: standard deviation of the draws around the mean, above 0.
        learning_rate: first one, of AdamW.
        weight_decay: of AdamW, at least 0; keeps few networks from being learned by heart.
        caution: what a standard deviation of a model costs, at least 0; keeps the policy where
            something was measured.
        anchor: weight of the KL divergence, at least 0.
        seed: of the draws.

    Returns:
        Mean worth of the drawn plans at each update, over all networks, each in standard deviations
        of what was drawn at its first update.

    Raises:
        ValueError: there is no lesson, or a policy cannot be transferred.
    """
    if not lessons:
        raise ValueError("There is no network to learn from. Name some in transfer.sources.")
    policies = [lesson.policy for lesson in lessons]
    tie(policies)
    weights = list(shared_weights(policies[0]).values())
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    rng = np.random.default_rng(seed)
    first: list[tuple[float, float]] = []
    progress = []
    for _ in range(updates):
        optimizer.zero_grad()
        gains = []
        for index, lesson in enumerate(lessons):
            mean = _mean(lesson.policy, lesson.observation)
            half = rng.standard_normal((plans // 2, len(mean)))
            noise = np.concatenate([half, -half])
            actions = np.clip(mean.detach().numpy() + deviation * noise, -1.0, 1.0)
            expected, doubt = lesson.model.predict(lesson.preview(actions, rounded=False))
            worth = expected - caution * doubt
            scale = max(float(worth.std()), 1e-8)
            if len(first) == index:
                first.append((float(worth.mean()), scale))
            advantages = torch.as_tensor((worth - worth.mean()) / scale, dtype=torch.float32)
            drawn = torch.as_tensor(actions, dtype=torch.float32)
            log_prob = torch.distributions.Normal(mean, deviation).log_prob(drawn).sum(dim=1)
            divergence = mean.square().sum() / (2.0 * deviation**2)
            loss = anchor * divergence - (advantages * log_prob).mean()
            (loss / len(lessons)).backward()
            gains.append((float(worth.mean()) - first[index][0]) / first[index][1])
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        progress.append(float(np.mean(gains)))
    return progress


def zero_shot_action(policy: AllocationPolicy, observation: Any) -> np.ndarray:
    """The mean action of a policy, float32 (S,) in [-1, 1]; nothing is drawn.

    Args:
        policy: decides for the network.
        observation: that of the unpruned network, not a batch.
    """
    with torch.no_grad():
        return np.clip(_mean(policy, observation).numpy(), -1.0, 1.0)


def start_at(agent: Any, observation: Any, action: np.ndarray, path: Path | None = None) -> None:
    """Let an agent begin its search at an action, with the shared weights where it has a head.

    Its offsets make the action the mean whatever the head says, so `offset_scale` and `head_scale`
    of the agent are free.

    Args:
        agent: an `EvolutionAgent` (imagination, cmaes, one_plus_one) that has not searched yet, or
            an SB3 agent with an `AllocationPolicy` with offsets.
        observation: that of the unpruned network, not a batch.
        action: where to begin, shape (S,).
        path: what `save_shared` wrote; None leaves the head as it is.

    Raises:
        ValueError: the agent cannot begin at a given plan, or its head has another form.
    """

    def adopt(policy: AllocationPolicy) -> None:
        if path is not None and policy.reads_graph and policy.head_scale > 0.0:
            load_shared(policy, path)

    if isinstance(agent, EvolutionAgent):
        agent.start_at(action)
        if isinstance(agent, ImaginationAgent):
            agent.prepare_policy = adopt
        return
    policy = getattr(agent, "policy", None)
    if not isinstance(policy, AllocationPolicy):
        raise ValueError(
            f"{type(agent).__name__} cannot begin its search at a given plan. Take "
            "agent=imagination, cmaes or one_plus_one, or agent=ppo with env=allocation."
        )
    adopt(policy)
    policy.centre(observation, action)


def _mean(policy: AllocationPolicy, observation: Any) -> Tensor:
    """Mean of the action, (S,), with its gradient."""
    batch, _ = policy.obs_to_tensor(observation)
    distribution: Any = policy.get_distribution(batch).distribution
    return distribution.mean[0]
