"""The observation part: what the agent sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces

from envs.cut_features import check_ratios, cut_features
from envs.problem import Problem, State
from graphs.features import NetworkFacts, mean_length, owning_site
from graphs.network_graph import FROZEN
from graphs.observation import GLOBALS, GraphObservationSpace, build_topology
from pruning.keep_set import KeepSet

LAYER_FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "macs", "reduced", "rest", "a")
"""The features of AMC, section 3.1, in the order of the paper."""

NUM_STATIC = LAYER_FEATURES.index("macs")
PREVIOUS = LAYER_FEATURES.index("a")


class View(Protocol):
    """An observation part bound to one problem."""

    @property
    def space(self) -> spaces.Space[Any]:
        """Space of the observations."""

    def observe(self, state: State, mask: np.ndarray | None) -> Any:
        """The observation of a state.

        Args:
            state: where the episode stands.
            mask: allowed choices, see `Actions.mask`.
        """


class Observation(Protocol):
    """What an agent sees."""

    @property
    def name(self) -> str:
        """Name of the option in conf/env/observation."""

    def view(self, problem: Problem) -> View:
        """The observation part for one problem."""


@dataclass(frozen=True)
class LayerObservation:
    """AMC's vector of 11 features (https://arxiv.org/abs/1802.03494, section 3.1) for a group.

    | feature | meaning | scaled |
    |---|---|---|
    | t | index of the site | min-max over the sites |
    | n, c | output and input channels, unpruned | min-max |
    | h, w | size of the input | min-max |
    | stride, k | stride and kernel length | min-max |
    | macs | MACs of the site's operators, given all decisions so far | over all MACs |
    | reduced | MACs that all decisions so far have removed, anywhere | over all MACs |
    | rest | all other MACs still there: the other sites, and operators of no site | over all MACs |
    | a | pruning ratio executed at the previous site, 0 at first | as it is |

    macs + reduced + rest = 1 at every step: every operator is counted once, at the first site it
    produces, or in `rest` (the classifier). A site is a dependency group; n, c, h, w, stride and k
    are those of its first producer. MACs are those of dense hardware, whatever the budget counts.
    Layerwise the vector of the current site, shape (11,); the vector after the last decision is
    that of the last site. In whole episodes one vector per site one after the other, shape
    (S * 11,), where `a` is the fraction now removed at the site itself. What the arguments add
    comes after the 11, see `envs.cut_features`.

    Args:
        local_errors: whether a vector also holds the local errors of its site at three fractions.
        sensitivities: pruning ratios in (0, 1) at which every site is pruned alone and measured,
            before the first episode; a vector also holds how much the loss rises.

    Raises:
        ValueError: a ratio is out of range.
    """

    local_errors: bool = False
    sensitivities: Sequence[float] = ()

    name = "layer"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sensitivities", check_ratios(self.sensitivities))

    def view(self, problem: Problem) -> View:
        """The vectors of the sites of `problem`."""
        more = cut_features(problem, local_errors=self.local_errors, ratios=self.sensitivities)
        return LayerView(problem, more)


class LayerView:
    """`LayerObservation` bound to a problem.

    Args:
        problem: what is pruned.
        more: further static features in [0, 1], (S, K).
    """

    def __init__(self, problem: Problem, more: np.ndarray) -> None:
        self._problem = problem
        self._more = more
        graph = problem.task.graph
        operators = [site.operators for site in problem.task.sites]
        # Operators of no site are counted at one more site behind the last.
        owner = owning_site(graph, operators)
        self._owner = np.where(owner < 0, problem.num_sites, owner)
        columns = []
        for index, names in enumerate(operators):
            first = graph.operator_by_name[names[0]]
            height, width = (*first.input_size, 1, 1)[:2]
            columns.append(
                (
                    index,
                    len(first.out_units),
                    len(first.in_units),
                    height,
                    width,
                    mean_length(first.stride),
                    mean_length(first.kernel_size),
                )
            )
        raw = np.asarray(columns, dtype=np.float64)
        span = raw.max(axis=0) - raw.min(axis=0)
        self._static = (raw - raw.min(axis=0)) / np.where(span > 0, span, 1.0)
        width = len(LAYER_FEATURES) + more.shape[1]
        length = width * (1 if problem.is_sequential else problem.num_sites)
        self.space: spaces.Space[Any] = spaces.Box(0.0, 1.0, (length,), np.float32)

    def observe(self, state: State, mask: np.ndarray | None) -> np.ndarray:
        """The vector of the current site, or of all sites."""
        problem = self._problem
        removed = problem.actions.removed(state.assignment)
        macs, reduced = self._shares(state)
        table = np.empty((problem.num_sites, len(LAYER_FEATURES)))
        table[:, :NUM_STATIC] = self._static
        table[:, NUM_STATIC] = macs
        table[:, NUM_STATIC + 1] = reduced
        table[:, NUM_STATIC + 2] = 1.0 - reduced - macs
        if problem.is_sequential:
            site = problem.num_sites - 1 if state.site is None else state.site
            previous = problem.num_sites - 1 if state.site is None else site - 1
            table[site, PREVIOUS] = removed[previous] if previous >= 0 else 0.0
            rows = np.concatenate([table[site], self._more[site]])
        else:
            table[:, PREVIOUS] = removed
            rows = np.concatenate([table, self._more], axis=1)
        return np.clip(rows.ravel(), 0.0, 1.0).astype(np.float32)

    def _shares(self, state: State) -> tuple[np.ndarray, float]:
        """MACs of each site (S,), and MACs removed anywhere, as fractions of all MACs."""
        task = self._problem.task
        keep = KeepSet.from_counts(task.graph, state.assignment.counts)
        per_operator = task.cost.macs_per_operator(keep)
        macs = np.asarray([per_operator[operator.name] for operator in task.graph.operators])
        per_site = np.bincount(self._owner, weights=macs, minlength=self._problem.num_sites + 1)
        base = task.cost.base_macs
        return per_site[:-1] / base, 1.0 - float(macs.sum()) / base


@dataclass(frozen=True)
class GraphObservation:
    """The whole network as a graph: nodes are feature maps, edges are operators.

    The observation holds what changes (`graphs.observation.GraphObservationSpace`); what never
    does, with all features of the real network, is `observation_space.topology`. The same network
    in the same state always gives the same observation. What the arguments add are site features of
    the topology, see `envs.cut_features`.

    Args:
        local_errors: whether sites have their local errors at three fractions as features.
        sensitivities: pruning ratios in (0, 1) at which every site is pruned alone and measured,
            before the first episode; how much the loss rises is a feature.

    Raises:
        ValueError: a ratio is out of range.
    """

    local_errors: bool = False
    sensitivities: Sequence[float] = ()

    name = "graph"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sensitivities", check_ratios(self.sensitivities))

    def view(self, problem: Problem) -> View:
        """The graph of the network of `problem`."""
        more = cut_features(problem, local_errors=self.local_errors, ratios=self.sensitivities)
        return GraphView(problem, more)


class GraphView:
    """`GraphObservation` bound to a problem.

    Args:
        problem: what is pruned.
        more: further static site features in [0, 1], (S, K).
    """

    def __init__(self, problem: Problem, more: np.ndarray) -> None:
        self._problem = problem
        graph = problem.task.graph
        operators = [site.operators for site in problem.task.sites]
        topology = build_topology(
            graph,
            network_facts(problem),
            num_patterns=problem.actions.num_patterns,
            is_sequential=problem.is_sequential,
            more_site_features=more,
        )
        has_mask = problem.actions.mask(problem, problem.initial()) is not None
        self.space: spaces.Space[Any] = GraphObservationSpace(topology, has_action_mask=has_mask)
        owner = owning_site(graph, operators)
        # The site of each edge's operator; edges of no site read one more entry that stays 0.
        self._edge_site = np.asarray(
            [
                problem.num_sites
                if edge.operator is None or owner[edge.operator] < 0
                else owner[edge.operator]
                for edge in graph.edges
            ],
            dtype=np.int64,
        )
        self._membership, self._fixed = _node_membership(problem)

    def observe(self, state: State, mask: np.ndarray | None) -> dict[str, np.ndarray]:
        """What changes, as float32 arrays."""
        problem = self._problem
        kept = state.assignment.counts / problem.sizes
        current = np.zeros(problem.num_sites)
        if not problem.is_sequential:
            current[:] = 1.0
        elif state.site is not None:
            current[state.site] = 1.0
        node_state = np.stack([kept, state.decided], axis=1)
        globals_ = {
            "relative_macs": state.cost / problem.meter.base,
            "budget": problem.budget.relative_macs,
            "progress": state.step / problem.horizon,
            "quality": state.quality,
        }
        observation = {
            "node_state": self._membership @ node_state + self._fixed[:, None],
            "edge_pattern": np.append(state.assignment.patterns, 0)[self._edge_site],
            "site_state": np.stack(
                [problem.actions.removed(state.assignment), state.decided, current], axis=1
            ),
            "globals": np.asarray([globals_[key] for key in GLOBALS]),
        }
        for key, value in observation.items():
            observation[key] = value.astype(np.float32)
            if key != "edge_pattern":
                np.clip(observation[key], 0.0, 1.0, out=observation[key])
        if mask is not None:
            observation["action_mask"] = mask.astype(np.float32)
        return observation


def network_facts(problem: Problem) -> NetworkFacts:
    """What the static features of a graph observation are computed from."""
    task = problem.task
    tensors = task.network.state_dict()
    names = {operator.weight for operator in task.graph.operators if operator.weight}
    floors = np.asarray([group.min_keep for group in task.graph.groups], dtype=np.int64)
    alone = np.tile(problem.sizes, (problem.num_sites, 1))
    np.fill_diagonal(alone, floors)
    macs = np.asarray(task.cost.macs_of_counts(alone))
    return NetworkFacts(
        weights={name: tensors[name].detach().cpu().numpy() for name in sorted(names)},
        importances=task.scores,
        operator_macs=task.cost.macs_per_operator(KeepSet.full(task.graph)),
        savings=[float(saving) for saving in 1.0 - macs / task.cost.base_macs],
        sites=[site.operators for site in task.sites],
    )


def _node_membership(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Fraction of each node's channels that belong to each group (N, S), and to none (N,)."""
    graph = problem.task.graph
    membership = np.zeros((len(graph.feature_maps), problem.num_sites))
    fixed = np.zeros(len(graph.feature_maps))
    for index, node in enumerate(graph.feature_maps):
        units = np.asarray(node.units, dtype=np.int64)
        free = units[units != FROZEN]
        total = max(1, len(units))
        membership[index] = np.bincount(graph.unit_group[free], minlength=problem.num_sites) / total
        fixed[index] = 1.0 - len(free) / total
    return membership, fixed
