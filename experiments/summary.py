"""What a finished run says about itself: the numbers of `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class NetworkReport:
    """Accuracy and cost of one network; accuracies are fractions in [0, 1].

    Attributes:
        reward_accuracy: accuracy on the reward split, not fine-tuned, as the search measures it.
        reward_loss: loss on the reward split, likewise.
        test_accuracy: accuracy on the test split, before fine-tuning.
        test_accuracy_finetuned: the same after fine-tuning; None when there was none.
        macs: multiply-accumulates of dense hardware, per sample.
        nonzero_macs: multiply-accumulates with a weight that is not masked, per sample.
        params: parameters of the slim network.
        nonzero_params: parameters that are not masked.
        latency_ms: median time of one batch, in milliseconds.
        latency_onnxruntime_ms: the same in onnxruntime; None when it was not measured.
    """

    reward_accuracy: float
    reward_loss: float
    test_accuracy: float
    test_accuracy_finetuned: float | None
    macs: int
    nonzero_macs: int
    params: int
    nonzero_params: int
    latency_ms: float
    latency_onnxruntime_ms: float | None


@dataclass(frozen=True)
class LatencyConditions:
    """What the latencies of a report were measured with.

    Attributes:
        runtime: name of the runtime.
        batch: samples per batch.
        threads: threads of the runtime.
        onnxruntime: name and version of the second runtime; None when it was not measured.
    """

    runtime: str
    batch: int
    threads: int
    onnxruntime: str | None


@dataclass(frozen=True)
class PrunedFile:
    """What reloading the saved network reproduces.

    Attributes:
        file: name of the file in the run folder.
        reproduces: which key of the summary its test accuracy equals.
        test_accuracy: that accuracy, in [0, 1].
        test_correct: test images classified correctly; None when the metric does not count them.
        test_images: test images.
    """

    file: str
    reproduces: str
    test_accuracy: float
    test_correct: int | None
    test_images: int


@dataclass(frozen=True)
class Summary:
    """The result of one run, written as `summary.json`.

    Attributes:
        network: chosen network.
        data: chosen data.
        agent: chosen agent.
        env: chosen environment.
        seed: seed of the whole run.
        evaluations: evaluations that were measured during the search.
        cache_hits: evaluations answered from the cache, not counted above.
        episodes: finished episodes.
        replayed_evaluations: those of the evaluations that were measured before the run was
            interrupted and resumed; 0 for a run in one go.
        wall_seconds: duration of the run, from start to this summary; of a resumed run, since it
            was resumed, and of its search before.
        search_seconds: duration of the search alone; of a resumed run, the time before the
            interruption counts, up to the last evaluation that was kept, and the replay does not.
        stop_reason: what ended the search: "evaluations", "minutes", "max_timesteps", "patience",
            "finished" (the agent had nothing more to try) or "interrupted" (Ctrl-C).
        best_reward: reward of the plan that was kept.
        relative_macs: MACs left over those of the base, as the budget counts them, in [0, 1].
        budget_relative_macs: most relative MACs allowed; 1 without a budget.
        budget_cost: "macs" of dense hardware, or "nonzero_macs" of weights that are not masked.
        budget_met: whether the pruned network is within budget after rounding.
        base: the network before pruning.
        pruned: the network the best plan gives.
        uniform: every group pruned by the same fraction, at equal MACs as the budget counts them.
        frozen: reasons why channels could not be removed, by operator or tensor.
        latency: how latencies were measured.
        pruned_file: what the saved network reproduces.
    """

    network: str
    data: str
    agent: str
    env: str
    seed: int
    evaluations: int
    cache_hits: int
    episodes: int
    replayed_evaluations: int
    wall_seconds: float
    search_seconds: float
    stop_reason: str
    best_reward: float
    relative_macs: float
    budget_relative_macs: float
    budget_cost: str
    budget_met: bool
    base: NetworkReport
    pruned: NetworkReport
    uniform: NetworkReport
    frozen: dict[str, str]
    latency: LatencyConditions
    pruned_file: PrunedFile

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain data, ready for JSON."""
        data = asdict(self)
        data["budget"] = {
            "relative_macs": data.pop("budget_relative_macs"),
            "cost": data.pop("budget_cost"),
            "met": data.pop("budget_met"),
        }
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Summary:
        """Read what `to_dict` wrote.

        Raises:
            ValueError: keys are missing or unknown, as in a summary of another version.
        """
        try:
            fields = dict(data)
            fields |= {f"budget_{key}": value for key, value in fields.pop("budget").items()}
            for name in ("base", "pruned", "uniform"):
                fields[name] = NetworkReport(**fields[name])
            fields["latency"] = LatencyConditions(**fields["latency"])
            fields["pruned_file"] = PrunedFile(**fields["pruned_file"])
            return cls(**fields)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Not a complete summary of this version of Topiary: {type(error).__name__}: "
                f"{error}. Run the job again with resume=null."
            ) from error
