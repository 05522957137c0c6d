"""What a proposal may choose further: importance, granularity, fine-tuning; and what it may not."""

from __future__ import annotations

import json

import pytest
import torch

from agents.llm.agent import LLMAgent
from agents.llm.choices import FineTuneLimits
from agents.llm.exchanges import EXCHANGES_FILE, ReplayProvider
from agents.llm.granularity import Granularity
from agents.llm.names import Refused
from agents.llm.proposals import PROPOSALS_FILE
from agents.llm.provider import ProviderError
from agents.llm.schema import CHOICES, RatioProposal, strict_schema, with_choices
from agents.llm.strategies import PatternStrategies, RatioStrategies
from agents.search import run_search
from envs.actions import PatternAction
from envs.budgets import Tolerance
from pruning.journal import EvaluationJournal, JournalSubject

NOTES = {"summary": "s", "sensitive_groups": [], "robust_groups": [], "advice": "a"}
RANKINGS = {"l2": {"criterion": "l2"}, "bn_gamma": {"criterion": "bn_gamma"}}
LIMITS = {"epochs": [0, 10], "learning_rate": [0.001, 0.1], "distillation": [False, True]}
FEW_LARGE, MANY_SMALL = (0, 1, 2, 3), (4, 5, 6, 7)


@pytest.fixture
def make_ranked_env(make_plan_env):
    """conv1 has four filters of one weight 3 (l1 3, l2 3), then four of nine 0.5 (4.5 and 1.5)."""
    weight = torch.full((8, 1, 3, 3), 0.5)
    weight[:4] = 0.0
    weight[:4, 0, 1, 1] = 3.0

    def make(**options):
        options = {"importances": RANKINGS, "weights": {"conv1.weight": weight}, **options}
        return make_plan_env(budget=Tolerance(0.5, above=0.2, below=0.2), **options)

    return make


def propose(conv2=0.25, **further):
    ratios = [{"group": "conv1", "ratio": 0.5}, {"group": "conv2", "ratio": conv2}]
    return {"reasoning": "because", "ratios": ratios, **further}


def search(env, provider, folder=None, **options):
    agent = LLMAgent(env, llm=provider, **{"importances": ["l2"], **options})
    if folder is not None:
        agent.keep_records_in(folder)
    run_search(agent, env, evaluations=50)
    return agent


def kept(env):
    return [record.plan.keep["conv1"] for record in env.history]


def test_a_proposal_prunes_by_the_importance_it_names(make_ranked_env, scripted):
    env = make_ranked_env()
    provider = scripted(
        NOTES, propose(), propose(importance="L2"), propose(conv2=0.2, start_from=1), propose(0.3),
    )  # fmt: skip
    agent = search(env, provider, max_proposals=4)
    assert kept(env) == [MANY_SMALL, FEW_LARGE, FEW_LARGE, MANY_SMALL]
    assert [p.importance for p in agent.proposals] == ["l1", "l2", "l2", "l1"]
    assert agent.proposals[1].repairs == ("importance 'L2' read as 'l2'",)
    first, second = agent.proposals[:2]
    assert (first.plan, first.macs) == (second.plan, second.macs)  # the size says nothing of which
    assert (env.num_evaluations, env.task.evaluator.num_cache_hits) == (4, 0)
    assert first.loss != second.loss
    assert provider.told[1]["strategies"]["importances"] == ["l1", "l2"]
    assert provider.told[3]["history"][1]["importance"] == "l2"


def test_the_same_plan_and_importance_again_is_refused(make_ranked_env, scripted):
    provider = scripted(NOTES, propose(importance="l2"), propose(), propose(importance="l1"))
    agent = search(make_ranked_env(), provider, max_proposals=3)
    assert [p.status for p in agent.proposals] == ["measured", "measured", "refused"]
    assert agent.proposals[2].refusal == "after rounding this is the plan of proposal 1 again"


def test_an_importance_that_is_not_listed_is_refused_with_those_that_are(make_ranked_env, scripted):
    answers = [propose(importance=name) for name in ("taylor", "bn_gamma")]
    provider = scripted(NOTES, *answers, propose())
    agent = search(make_ranked_env(), provider, max_proposals=3, importances=["l2", "bn_gamma"])
    unknown, unfit, measured = agent.proposals
    assert unknown.refusal == "there is no importance 'taylor'; there are: l1, l2, bn_gamma"
    assert unfit.refusal.startswith(
        "the importance 'bn_gamma' cannot be used: Group 'conv1' has no"
    )
    assert measured.status == "measured"
    assert provider.told[2]["history"][0]["refusal"] == unknown.refusal
    with pytest.raises(ValueError, match=r"agent.importances names taylor, and the task scores by"):
        search(make_ranked_env(), scripted(NOTES), importances=["taylor"])


def test_without_a_list_no_importance_can_be_named(make_ranked_env, scripted):
    for options in ({}, {"prompts": "v1"}):
        provider = scripted(NOTES, propose(importance="l2"), propose())
        env = make_ranked_env()
        agent = search(env, provider, importances=None, max_proposals=1, **options)
        assert agent.proposals[0].importance is None
        assert kept(env) == [MANY_SMALL]
        correction = provider.requests[2].messages[-1].content
        assert "importance: Extra inputs are not permitted" in correction
        assert [d.importance for d in env.history[0].plan.decisions] == [None] * 3
    with pytest.raises(ValueError, match=r"prompts v1 know neither .* Set agent.prompts=v2"):
        LLMAgent(make_ranked_env(), llm=scripted(), prompts="v1", importances=["l2"])


def test_the_first_prompts_are_asked_as_they_always_were(make_ranked_env, scripted):
    provider = scripted(NOTES, propose())
    search(make_ranked_env(), provider, importances=None, prompts="v1", max_proposals=1)
    assert provider.requests[1].prompt == "v1/analysis"
    assert provider.told[1]["strategies"] == {"kind": "ratios", "round_to": [1, 2, 4, 8, 16]}
    assert set(provider.requests[1].schema["properties"]) == set(RatioProposal.model_fields)


def test_a_search_over_importances_goes_on_from_its_records(make_ranked_env, scripted, tmp_path):
    answers = [
        NOTES,
        propose(),
        propose(importance="l2"),
        propose(0.2, importance="l2"),
        propose(0.3),
    ]

    def run(provider, folder):
        env = make_ranked_env()
        evaluator = env.task.evaluator
        subject = JournalSubject(env.task.graph.fingerprint, env.task.base)
        evaluator.journal = EvaluationJournal(folder / "evaluations.jsonl", subject)
        try:
            search(env, provider, folder, max_proposals=4)
        finally:
            evaluator.journal.close()
        return env

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    unbroken = run(scripted(*answers), whole)
    with pytest.raises(ProviderError, match="3 answers are kept"):
        run(scripted(*answers[:3], ProviderError("the server is gone.")), broken)
    resumed = run(scripted(*answers[3:]), broken)
    assert resumed.history == unbroken.history
    assert resumed.task.evaluator.journal.num_replayed == 2
    first, second = (
        [{k: v for k, v in json.loads(line).items() if k != "seconds"}
         for line in (folder / "evaluations.jsonl").read_text().splitlines()]
        for folder in (whole, broken)
    )  # fmt: skip
    assert first == second
    assert len({line["candidate"] for line in first[1:]}) == 4
    assert [line["counts"] for line in first[1:3]] == [[4, 9, 6]] * 2  # told apart by the channels
    lines = (whole / PROPOSALS_FILE).read_text().splitlines()
    numbers = [json.loads(line)["exchange"] for line in lines]
    assert numbers == [1, 2, 3, 4]
    again = make_ranked_env()
    search(again, ReplayProvider(whole / EXCHANGES_FILE, strict=True), max_proposals=4)
    assert again.history == unbroken.history
    with pytest.raises(ProviderError, match="recorded for another network, budget or kind of plan"):
        search(make_ranked_env(), ReplayProvider(whole / EXCHANGES_FILE), importances=None)


def test_a_saved_agent_predicts_its_best_plan_ranked_as_it_was(make_ranked_env, scripted, tmp_path):
    env = make_ranked_env()
    agent = search(env, scripted(NOTES, propose(importance="l2")), max_proposals=1,
                   proposes_fine_tune=True, fine_tune_limits=LIMITS)  # fmt: skip
    agent.save(tmp_path / "agent")
    loaded = LLMAgent.load(tmp_path / "agent", env)
    assert (loaded.proposals, loaded._settings()) == (agent.proposals, agent._settings())
    observation, _ = env.reset()
    env.step(loaded.predict(observation)[0])
    assert kept(env) == [FEW_LARGE, FEW_LARGE]
    assert env.history[-1] == env.best


def test_the_fine_tuning_of_the_kept_plan_is_the_one_proposed(make_ranked_env, scripted):
    provider = scripted(
        NOTES,
        propose(fine_tune={"epochs": 7, "distillation": True}),
        propose(0.2, fine_tune={"epochs": 11}),
        propose(0.2, fine_tune={"weight_decay": 0.1}),
        propose(0.2, fine_tune={"learning_rate": 0.2}),
        propose(0.2, start_from=0),
        propose(0.3),
        propose(0.25, fine_tune={"epochs": 1}),
    )  # fmt: skip
    agent = search(
        make_ranked_env(), provider, importances=None, max_proposals=7, master_every=9,
        proposes_fine_tune=True, fine_tune_limits=LIMITS,
    )  # fmt: skip
    recipe = {"epochs": 7, "distillation": True}
    assert [p.refusal for p in agent.proposals] == [
        None,
        "fine_tune.epochs=11 is outside its limits, 0 to 10",
        "fine_tune.weight_decay is not to be set here",
        "fine_tune.learning_rate=0.2 is outside its limits, 0.001 to 0.1",
        None,
        None,
        "after rounding this is the plan of proposal 0 again",  # another recipe is no other plan
    ]
    assert [agent.fine_tune_of(episode) for episode in (0, 1, 2, 3)] == [recipe, recipe, {}, {}]
    told = provider.told[1]["strategies"]["fine_tune"]
    assert told == LIMITS
    assert provider.told[2]["history"][0]["fine_tune"] == recipe


def test_fine_tuning_is_not_proposed_unless_it_is_asked_for(make_ranked_env, scripted):
    provider = scripted(NOTES, propose(fine_tune={"epochs": 7}), propose())
    agent = search(make_ranked_env(), provider, max_proposals=1, fine_tune_limits=LIMITS)
    assert "fine_tune: Extra inputs" in provider.requests[2].messages[-1].content
    assert agent.fine_tune_of(0) == {}


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            {"epochs": [3, 1]},
            r"fine_tune_limits.epochs must be a lowest and a highest value .*3, 1",
        ),
        ({"learning_rate": [0, 1]}, r"fine_tune_limits.learning_rate must be .* got \[0, 1\]"),
        ({"label_smoothing": [0, 1]}, r"fine_tune_limits.label_smoothing must be"),
        ({"epochs": 3}, r"fine_tune_limits.epochs must be .* got 3"),
        ({"batch_size": [1, 2]}, r"batch_size: there is no such setting. Those are: epochs, le"),
        ({"distillation": True}, r"fine_tune_limits.distillation must be a list .* got True"),
    ],
)
def test_limits_that_are_none_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        FineTuneLimits.from_config(limits)


def test_distillation_is_within_its_limits_too(make_ranked_env, scripted):
    provider = scripted(NOTES, propose(fine_tune={"distillation": True}))
    agent = search(make_ranked_env(), provider, max_proposals=1, proposes_fine_tune=True,
                   fine_tune_limits={"distillation": [False]})  # fmt: skip
    assert agent.proposals[0].refusal == "fine_tune.distillation=True is not allowed here"


class Residual(torch.nn.Module):
    """conv 1 -> 8, a residual block 8 -> 6 -> 8, a linear."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(1, 8, 3, padding=1)
        self.block = torch.nn.Sequential(
            torch.nn.Conv2d(8, 6, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(6, 8, 3, padding=1),
        )
        self.fc = torch.nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.fc(torch.relu(x + self.block(x)).mean((2, 3)))


@pytest.fixture
def make_residual_env(make_plan_env):
    return lambda **options: make_plan_env(network=Residual(), **options)


def entries(key, *pairs, **further):
    value = key.removesuffix("s")
    return {"reasoning": "", key: [{"group": g, value: v} for g, v in pairs], **further}


def test_a_block_is_cut_down_as_far_as_its_groups_go(make_residual_env):
    env = make_residual_env()
    granularity = Granularity.of(env.task.graph, decides_patterns=False)
    strategies = RatioStrategies(env.task, env.largest_ratios(), granularity)
    assert strategies.describe()["granularity"] == ["channel", "block"]
    assert strategies.describe()["blocks"] == {"block": ["block.0"]}

    def plan(*pairs, **further):
        return strategies.plan(strategies.answer(**entries("ratios", *pairs, **further)), {})

    whole = plan(("Block", 1.0), default_ratio=0.25, granularity="block")
    assert whole.values == pytest.approx({"stem": 0.25, "block.0": 5 / 6})
    assert whole.repairs == (
        "block or group 'Block' read as 'block'",
        "block.0: ratio 1 lowered to the largest, 0.833333",
    )
    env.reset()
    env.step(strategies.action(env, whole.values))
    assert env.history[-1].plan.keep_set(env.task.graph).counts.tolist() == [6, 1]
    mixed = plan(("bl*", 0.5), ("stem", 0.5), ("block.0", 0.0), granularity="block")
    assert mixed.values == {"stem": 0.5, "block.0": 0.0}  # a group's own name beats the block's
    with pytest.raises(Refused, match=r"there is no group 'block'; near to it are: block\.0"):
        plan(("block", 1.0))
    with pytest.raises(Refused, match=r"no block or group matches 'layer\*'"):
        plan(("layer*", 1.0), granularity="block")
    with pytest.raises(Refused, match=(
        r"the granularity 'pattern' is not executed here: the environment decides ratios; "
        r"env/action=pattern decides them\. There are: channel, block"
    )):  # fmt: skip
        plan(("stem", 0.5), granularity="pattern")


def test_a_network_without_blocks_has_no_such_granularity(make_plan_env):
    env = make_plan_env()
    granularity = Granularity.of(env.task.graph, decides_patterns=False)
    strategies = RatioStrategies(env.task, env.largest_ratios(), granularity)
    proposal = strategies.answer(**entries("ratios", ("conv1", 0.5), granularity="block"))
    with pytest.raises(Refused, match=r"the network has no block that a connection goes around\. "):
        strategies.plan(proposal, {})


def test_patterns_have_every_granularity(make_residual_env):
    specs = [{"family": "channel", "ratio": 0.5}, {"family": "kernel_shape", "shape": "plus"}]
    env = make_residual_env(specs=specs, action=PatternAction())
    granularity = Granularity.of(env.task.graph, decides_patterns=True)
    strategies = PatternStrategies(env.task, granularity)
    dense, half, plus = env.task.library.names
    assert strategies.describe()["granularity"] == ["pattern", "channel", "block"]

    def plan(*pairs, **further):
        return strategies.plan(strategies.answer(**entries("patterns", *pairs, **further)), {})

    assert plan(("stem", half), ("block.0", plus)).values == {"stem": half, "block.0": plus}
    assert plan(("block", half), granularity="block").values == {"stem": dense, "block.0": half}
    assert plan(("stem", half), granularity="channel").values["stem"] == half
    with pytest.raises(Refused, match=rf"stem: the pattern '{plus}' is of the family kernel_shape"):
        plan(("stem", plus), granularity="channel")


def test_the_widened_schema_is_strict_as_hosted_models_want_it():
    answer = with_choices(RatioProposal, CHOICES)
    schema = strict_schema(answer)
    assert answer.__name__ == "RatioProposal"
    assert set(schema["required"]) == {*RatioProposal.model_fields, *CHOICES}
    assert schema["$defs"]["FineTune"]["required"] == list(
        CHOICES["fine_tune"][0].__args__[0].model_fields
    )
    assert schema["$defs"]["FineTune"]["additionalProperties"] is False
    assert with_choices(RatioProposal, ()) is RatioProposal
