"""What a probe reads: embeddings of sites, and what it should read there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from envs.pruning_env import PruningEnv
from graphs.network_graph import NetworkGraph
from graphs.observation import GraphObservationSpace
from pruning.task import Site


@dataclass(frozen=True, eq=False)
class ProbedSites:
    """Sites of networks under random assignments; a row is one site under one assignment.

    Attributes:
        inputs: features or embeddings by source, each float64 (rows, dim).
        network: index of the network, int64 (rows,).
        site: number of the site, counted over all networks, int64 (rows,).
        assignment: number of the assignment, counted over all networks, int64 (rows,).
        kind: kinds and kernels of the site's operators, (rows,) of str.
        stage: third of the network, (rows,) of str.
        depth: position among the sites of the network in [0, 1], float64 (rows,).
        pattern: index of the pattern now assigned, int64 (rows,).
        neighbour: index of the pattern assigned to the next site, of the last one to the site
            before it, int64 (rows,).
    """

    inputs: dict[str, np.ndarray]
    network: np.ndarray
    site: np.ndarray
    assignment: np.ndarray
    kind: np.ndarray
    stage: np.ndarray
    depth: np.ndarray
    pattern: np.ndarray
    neighbour: np.ndarray


STAGES = ("first third", "middle third", "last third")


def kind_of_site(graph: NetworkGraph, site: Site) -> str:
    """Kinds and kernels of the operators that make the channels of a site, such as "conv 1x1"."""
    kinds = set()
    for name in site.operators:
        operator = graph.operator_by_name[name]
        kind = "depthwise" if operator.depthwise else operator.kind
        kernel = "x".join(map(str, operator.kernel_size))
        kinds.add(f"{kind} {kernel}".strip())
    return " + ".join(sorted(kinds))


def raw_features(space: GraphObservationSpace, observation: dict[str, np.ndarray]) -> np.ndarray:
    """What the encoder is given at the nodes of each site, without the encoder.

    Returns:
        Static and changing features of the source and of the target nodes of the site's edges,
        their means, float64 (S, 2 * (Fn + 2)).
    """
    topology = space.topology
    nodes = np.concatenate([topology.node_features, observation["node_state"]], axis=1)
    site_of, edge_of = topology.site_edges
    source, target = topology.edge_index[:, edge_of]
    ends = np.concatenate([nodes[source], nodes[target]], axis=1)
    total = np.zeros((topology.num_sites, ends.shape[1]))
    np.add.at(total, site_of, ends)
    return total / np.maximum(1, np.bincount(site_of, minlength=topology.num_sites))[:, None]


def site_embeddings(policy: Any, observation: dict[str, np.ndarray]) -> np.ndarray:
    """What the encoder of a graph policy makes of each site, float64 (S, hidden_channels).

    Only the columns that went through the encoder: the static features and the state of the site,
    which the policy reads beside them, would tell the probe the answers.
    """
    extractor = policy.pi_features_extractor
    batch = {key: torch.as_tensor(value)[None] for key, value in observation.items()}
    with torch.no_grad():
        sites = extractor.embed(batch).sites[0]
    return sites[:, : extractor.encoder.hidden_channels].double().numpy()


def collect(
    envs: Sequence[PruningEnv],
    policies: Mapping[str, Sequence[Any]],
    *,
    assignments: int,
    seed: int,
) -> ProbedSites:
    """Assign patterns at random and note what each source says of every site.

    Args:
        envs: one environment per network, whole episodes with pattern actions.
        policies: for each source, one policy per network.
        assignments: random assignments of each network, at least 1.
        seed: of the assignments.
    """
    rng = np.random.default_rng(seed)
    inputs: dict[str, list[np.ndarray]] = {name: [] for name in (*policies, RAW)}
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    first_site = 0
    for number, env in enumerate(envs):
        task, space = env.task, env.observation_space
        assert isinstance(space, GraphObservationSpace)
        count = len(task.sites)
        kinds = [kind_of_site(task.graph, site) for site in task.sites]
        depths = np.arange(count) / max(1, count - 1)
        stages = [STAGES[min(2, 3 * index // count)] for index in range(count)]
        for index in range(assignments):
            plan = np.array([rng.choice(np.flatnonzero(row)) for row in task.valid])
            env.reset()
            observation, *_ = env.step(plan)
            for name, of_networks in policies.items():
                inputs[name].append(site_embeddings(of_networks[number], observation))
            inputs[RAW].append(raw_features(space, observation))
            neighbour = np.append(plan[1:], plan[-2] if count > 1 else plan[0])
            row = {
                "network": np.full(count, number),
                "site": first_site + np.arange(count),
                "assignment": np.full(count, number * assignments + index),
                "kind": kinds,
                "stage": stages,
                "depth": depths,
                "pattern": plan,
                "neighbour": neighbour,
            }
            for name in COLUMNS:
                columns[name].append(row[name])
        first_site += count
    return ProbedSites(
        inputs={name: np.concatenate(parts) for name, parts in inputs.items()},
        **{name: np.concatenate(parts) for name, parts in columns.items()},
    )


RAW = "raw node features"
COLUMNS = ("network", "site", "assignment", "kind", "stage", "depth", "pattern", "neighbour")
