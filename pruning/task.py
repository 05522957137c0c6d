"""The pruning task: one network, its sites and the patterns that can be chosen there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from graphs.network_graph import NetworkGraph
from networks.data import SearchSplits
from patterns.library import PatternLibrary
from pruning.cost import CostModel
from pruning.importance import score_groups
from pruning.keep_set import CountGrid, KeepSet, count_steps, kept_count, unclipped_count
from pruning.local_error import LocalErrors, measure_local_errors
from pruning.masks import MaskChoice, PatternMasks
from pruning.plan import Candidate, Decision, PruningPlan
from pruning.reconstruction import ReconstructingEvaluator, Reconstruction
from pruning.slimming import Slimmer


@dataclass(frozen=True)
class Site:
    """A place where one decision is made.

    Attributes:
        name: name of the site, that of its group.
        group: name of the dependency group.
        operators: the operators that produce the group's channels, in execution order.
    """

    name: str
    group: str
    operators: tuple[str, ...]


class PruningTask:
    """What is decided, executed and measured; built once, shared by environments, agents, report.

    Args:
        network: the unpruned network; its weights are never written.
        graph: its trace.
        search: the train, calibration and reward splits; the test split is not here.
        library: the patterns to choose from.
        criterion: importance criterion, see `pruning.importance.score_groups`.
        recalibrate: whether batch-norm statistics are measured again after pruning.
        evaluator_options: further arguments of `Evaluator`.
        seed: seed of the random criterion.
        scope: weights that the norm criteria read, see `pruning.importance.score_groups`.
        reconstruction: how the weights that are left are refitted, on the calibration split, before
            anything is measured or saved; None leaves them as they are.
        importances: further importances that a decision may name instead of the task's own, which
            is called as `criterion` is: arguments `criterion` and `scope` by name.

    Attributes:
        search: as given.
        criterion: as given.
        sites: one site per group, in graph order.
        scores: importance of each channel by group name, of the unpruned network: the task's own.
        importances: names that a decision may give, the task's own first.
        cost: MACs and parameters of a keep-set.
        slimmer: removes channels, undoes it.
        evaluator: measures candidates on the reward split, counts and caches.
        base: the unpruned network on the reward split; not counted as an evaluation.
        valid: which pattern makes sense at which site, bool, shape (num_sites, len(library)).
        min_macs: MACs of the smallest reachable network.
        count_grid: the allowed kept counts of the groups.

    Raises:
        ValueError: the network has no group to prune.
    """

    def __init__(
        self,
        network: nn.Module,
        graph: NetworkGraph,
        search: SearchSplits,
        *,
        library: PatternLibrary,
        criterion: str = "l1",
        recalibrate: bool = True,
        evaluator_options: Mapping[str, Any] | None = None,
        seed: int = 0,
        scope: str = "producer",
        reconstruction: Reconstruction | None = None,
        importances: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if not graph.groups:
            reasons = "; ".join(f"{name}: {why}" for name, why in graph.frozen.items())
            raise ValueError(
                f"The network has no channels that can be removed ({reasons or 'no operators'}). "
                f"Change network."
            )
        self.network = network
        self.graph = graph
        self.search = search
        self.criterion = criterion
        self.library = library
        self._seed = seed
        self.sites = tuple(Site(group.name, group.name, group.producers) for group in graph.groups)
        self.scores = score_groups(
            network, graph, criterion, search.calibration, scope=scope, seed=seed
        )
        self.importances = tuple(dict.fromkeys((criterion, *(importances or ()))))
        self._importance_options = dict(importances or {})
        self._scores = {criterion: self.scores}
        self._seed = seed
        self.cost = CostModel(graph)
        self.slimmer = Slimmer(network, graph)
        self._reconstructor = (
            None
            if reconstruction is None
            else reconstruction.bind(self.slimmer, search.calibration, recalibrate=recalibrate)
        )
        self.evaluator = ReconstructingEvaluator(
            self.overlay,
            self.slimmer,
            search.calibration,
            search.reward,
            recalibrate=recalibrate,
            **(evaluator_options or {}),
        )
        self.base = self.evaluator.measure(network, search.reward)
        self._sizes = np.array([group.size for group in graph.groups])
        self._min_keep = np.array([group.min_keep for group in graph.groups])
        self.count_grid = CountGrid(graph.groups)
        self.min_macs = int(self.cost.macs_of_counts(self._min_keep))
        self._masks = PatternMasks(network, graph, library)
        # where each mask pattern lands, by (site name, pattern name)
        self._places = {
            (group.name, pattern.name): self._masks.where(group, pattern)
            for group in graph.groups
            for pattern in library
        }
        self._site_index = {site.name: index for index, site in enumerate(self.sites)}
        self.valid = self._valid_choices()
        self.valid.setflags(write=False)

    def scores_by(self, importance: str | None = None) -> Mapping[str, np.ndarray]:
        """Importance of each channel by group name, of the unpruned network; scored once.

        Args:
            importance: one of `importances`; None for the task's own.

        Raises:
            ValueError: no such importance, or it cannot score this network.
        """
        name = self.criterion if importance is None else importance
        if name not in self.importances:
            raise ValueError(
                f"No importance is called {name!r} here. There are: {', '.join(self.importances)}."
            )
        if name not in self._scores:
            self._scores[name] = score_groups(
                self.network,
                self.graph,
                data=self.search.calibration,
                seed=self._seed,
                **self._importance_options[name],
            )
        return self._scores[name]

    def candidate(self, decisions: Iterable[Decision]) -> Candidate:
        """What the decisions execute; sites without a decision are left alone.

        Channel counts are rounded to allowed ones (`pruning.keep_set.kept_count`), and never fall
        below the group's `min_keep`. The least important channels go first, by the importance that
        the decision names.

        Raises:
            ValueError: unknown site, pattern or importance, two decisions for one site, or a
                pattern that is not valid at its site.
        """
        ratios: dict[str, float] = {}
        scores: dict[str, np.ndarray] = {}
        masks: list[MaskChoice] = []
        for decision in decisions:
            if decision.site not in self._site_index:
                raise ValueError(
                    f"No site is called {decision.site!r}. The sites are: "
                    f"{', '.join(self._site_index)}."
                )
            if decision.site in ratios:
                raise ValueError(f"Site {decision.site!r} has two decisions; give one.")
            scores[decision.site] = self.scores_by(decision.importance)[decision.site]
            if decision.pattern is None:
                assert decision.ratio is not None, "checked by Decision"
                ratios[decision.site] = decision.ratio
                continue
            index = self.library.index(decision.pattern)
            row = self.valid[self._site_index[decision.site]]
            if not row[index]:
                allowed = [name for name, ok in zip(self.library.names, row, strict=True) if ok]
                raise ValueError(
                    f"The pattern {decision.pattern!r} is not valid at site {decision.site!r}. "
                    f"Valid there: {', '.join(allowed)}."
                )
            ratios[decision.site] = self.library[index].channel_ratio
            places = self._places[decision.site, decision.pattern]
            masks.extend((place, decision.pattern) for place in places)
        keep = KeepSet.from_ratios(self.graph, ratios, scores)
        return Candidate(keep, tuple(sorted(masks)))  # equal whatever the order of the decisions

    def mask_tensors(self, candidate: Candidate) -> dict[str, Tensor]:
        """Boolean masks (True = kept) by weight name, in the shape of the base weights."""
        return self._masks.tensors(candidate.masks)

    def overlay(self, candidate: Candidate) -> dict[str, Tensor]:
        """Masked and refitted weights by name, for `Evaluator.evaluate` and `Slimmer`.

        A weight that a mask touches is not refitted.
        """
        masked = self._masks.overlay(candidate.masks)
        if self._reconstructor is None:
            return masked
        return self._reconstructor.overlay(candidate.keep, masked)

    def plan(self, decisions: Iterable[Decision], candidate: Candidate) -> PruningPlan:
        """The replayable record of a candidate and of the decisions that led to it."""
        decisions = tuple(decisions)
        names = {decision.pattern for decision in decisions} | {name for _, name in candidate.masks}
        groups = self.graph.groups
        kept = [np.flatnonzero(candidate.keep.mask[list(group.units)]) for group in groups]
        return PruningPlan(
            graph=self.graph.fingerprint,
            decisions=decisions,
            keep={
                group.name: tuple(indices.tolist())
                for group, indices in zip(groups, kept, strict=True)
            },
            masks=candidate.masks,
            patterns=tuple(p.spec for p in self.library if p.name in names),
        )

    @cached_property
    def local_errors(self) -> LocalErrors:
        """What each group's channels mean to the operators that read them; measured when asked.

        Raises:
            ValueError: no calibration images, or a network that takes more than one input.
        """
        return measure_local_errors(
            self.network, self.graph, self.scores, self.search.calibration, seed=self._seed
        )

    def smallest_macs(self, max_ratio: float) -> int:
        """MACs with every group pruned by `max_ratio`, the largest ratio an action may have.

        Args:
            max_ratio: fraction of the channels removed, in [0, 1].
        """
        counts = [kept_count(group, max_ratio) for group in self.graph.groups]
        return int(self.cost.macs_of_counts(np.array(counts)))

    def uniform_counts(self, max_macs: float) -> np.ndarray:
        """Kept channels when every group keeps the same fraction, as large as the budget allows.

        The counts are rounded down, then topped up one channel (or `round_to` channels) at a time,
        the largest remainder that fits first, until no further one fits anywhere.

        Args:
            max_macs: upper bound on the MACs, inclusive.

        Returns:
            Kept channels per group, int64 of shape (num_groups,).

        Raises:
            ValueError: the budget is below the smallest reachable network.
        """
        base = self.cost.base_macs
        if not max_macs >= self.min_macs:
            raise ValueError(
                f"The budget of {max_macs:.0f} MACs (relative_macs {max_macs / base:.4f}) cannot "
                f"be met: the smallest reachable network has {self.min_macs} "
                f"(relative_macs {self.min_macs / base:.4f}). Raise budget.relative_macs, or lower "
                f"round_to."
            )
        # the fractions at which some group gains a channel
        groups = self.graph.groups
        fractions = np.unique(np.concatenate([count_steps(g) / g.size for g in groups]))
        low, high = -1, len(fractions)  # fractions[low] fits, fractions[high] does not
        while high - low > 1:
            middle = (low + high) // 2
            fits = self.cost.macs_of_counts(self._floor_counts(fractions[middle])) <= max_macs
            low, high = (middle, high) if fits else (low, middle)
        counts = self._floor_counts(fractions[low]) if low >= 0 else self._min_keep.copy()
        # the fraction that just does not fit says which groups are closest to their next channel
        wanted = fractions[min(high, len(fractions) - 1)] * self._sizes
        return self.cost.top_up(counts, wanted, max_macs)

    def uniform_candidate(self, max_macs: float) -> Candidate:
        """The most uniform pruning within a budget, least important channels first.

        Raises:
            ValueError: the budget is below the smallest reachable network.
        """
        counts = self.uniform_counts(max_macs)
        return Candidate(KeepSet.from_counts(self.graph, counts, self.scores))

    def _floor_counts(self, fraction: float) -> np.ndarray:
        """Every group at `fraction` of its channels, rounded down, at least min_keep."""
        return self.count_grid.round_down(fraction * self._sizes)

    def _valid_choices(self) -> np.ndarray:
        """Which pattern makes sense at which site, shape (num_sites, len(library)).

        The dense pattern always does; a channel pattern when it leaves min_keep channels without
        being clipped; a mask pattern when a producer of the group accepts it. Where counts are
        multiples of `round_to` > 1, a channel pattern that rounds to the whole group would be one
        more name for dense, so it is not valid there; of several that round to the same count all
        are, since other sites tell them apart.
        """
        valid = np.zeros((len(self.sites), len(self.library)), dtype=bool)
        valid[:, 0] = True
        for row, group in enumerate(self.graph.groups):
            for column, pattern in enumerate(self.library):
                if pattern.channel_ratio > 0.0:
                    left = unclipped_count(group, pattern.channel_ratio)
                    removes = group.round_to == 1 or left < group.size
                    valid[row, column] = left >= group.min_keep and removes
                elif self._places[group.name, pattern.name]:
                    valid[row, column] = True
        return valid
