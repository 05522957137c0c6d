"""Proposals are repaired where the intent is clear and refused where it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from agents.llm.names import Refused
from agents.llm.schema import (
    PatternProposal,
    RatioProposal,
    Verdict,
    parse_answer,
    strict_schema,
)
from agents.llm.strategies import PatternStrategies, Plan, RatioStrategies
from envs.actions import PatternAction


@pytest.fixture
def env(make_plan_env):
    return make_plan_env()


@pytest.fixture
def strategies(env):
    return RatioStrategies(env.task, env.largest_ratios())


def ratios(*pairs, **options):
    entries = [{"group": group, "ratio": ratio} for group, ratio in pairs]
    return RatioProposal(reasoning="", ratios=entries, **options)


def test_a_proposal_is_rounded_to_channels_and_executed_as_it_stands(env, strategies):
    plan = strategies.plan(ratios(("conv1", 0.3), ("conv3", 0.5), default_ratio=0.25), {})
    assert plan.values == {"conv1": 0.25, "conv2": 0.25, "conv3": 0.5}  # 2 of 8, 3 of 12, 3 of 6
    assert plan.repairs == ()
    env.reset()
    env.step(strategies.action(env, plan.values))
    assert dict(env.history[-1].executed) == pytest.approx(plan.values)
    assert env.history[-1].clamps == 0


@pytest.mark.parametrize("removed", range(11))
def test_every_count_survives_the_way_through_the_action(env, strategies, removed):
    plan = strategies.plan(ratios(("conv2", removed / 12)), {})
    env.reset()
    env.step(strategies.action(env, plan.values))
    assert env.history[-1].plan.keep_set(env.task.graph).counts[1] == 12 - removed


def test_kept_channels_are_rounded_to_a_multiple_or_to_all(strategies):
    plan = strategies.plan(ratios(("conv1", 0.4), ("conv2", 0.3), ("conv3", 0.6), round_to=4), {})
    kept = [
        size * (1 - ratio) for size, ratio in zip((8, 12, 6), plan.values.values(), strict=True)
    ]
    assert kept == pytest.approx([4, 8, 4])
    plan = strategies.plan(ratios(("conv3", 0.1), round_to=16), {})
    assert plan.values["conv3"] == 0.0


def test_slips_are_repaired_and_said(strategies):
    plan = strategies.plan(ratios(("'Conv1' ", 50), ("conv2", 0.99), default_ratio=0.0), {})
    assert plan.values == pytest.approx({"conv1": 0.5, "conv2": 11 / 12, "conv3": 0.0})
    assert plan.repairs == (
        "'Conv1' : 50 read as percent",
        "group \"'Conv1' \" read as 'conv1'",
        "conv2: ratio 0.99 lowered to the largest, 0.916667",
    )


def test_a_shell_pattern_stands_for_its_groups_and_a_name_beats_it(strategies):
    plan = strategies.plan(ratios(("conv3", 0.0), ("conv*", 0.5)), {})
    assert plan.values == {"conv1": 0.5, "conv2": 0.5, "conv3": 0.0}


def test_channels_are_given_back_from_an_earlier_plan(strategies):
    earlier = {4: Plan({"conv1": 0.5, "conv2": 0.5, "conv3": 0.5}, ())}
    plan = strategies.plan(ratios(("conv1", 0.25), start_from=4, default_ratio=0.9), earlier)
    assert plan.values == {"conv1": 0.25, "conv2": 0.5, "conv3": 0.5}


@pytest.mark.parametrize(
    ("proposal", "reason"),
    [
        (ratios(("layer7", 0.5)), "there is no group 'layer7'; there are: conv1, conv2, conv3"),
        (ratios(("conv", 0.5)), "there is no group 'conv'; near to it are: conv"),
        (ratios(("layer*", 0.5)), r"no group matches 'layer\*'"),
        (ratios(("conv1", 0.5), ("conv1", 0.2)), "group 'conv1' is given both 0.5 and 0.2"),
        (ratios(("conv1", -0.1)), r"conv1: a ratio must be in \[0, 1\), got -0.1"),
        (ratios(("conv1", 1.2)), r"conv1: a ratio must be in \[0, 1\), got 1.2"),
        (ratios(("conv1", 120)), r"conv1: a ratio must be in \[0, 1\), got 120"),
        (ratios(start_from=9), "start_from=9 is no executed proposal; those are: 0, 3"),
    ],
)
def test_what_is_not_clear_is_refused(strategies, proposal, reason):
    values = Plan({"conv1": 0.5, "conv2": 0.5, "conv3": 0.5}, ())
    with pytest.raises(Refused, match=reason):
        strategies.plan(proposal, {0: values, 3: values})


def test_plans_of_patterns_are_executed_too(make_plan_env):
    specs = [{"family": "channel", "ratio": 0.5}, {"family": "kernel_shape", "shape": "plus"}]
    env = make_plan_env(specs=specs, action=PatternAction())
    strategies = PatternStrategies(env.task)
    _, half, plus = env.task.library.names
    proposal = PatternProposal(
        reasoning="",
        default_pattern=half.upper(),
        patterns=[{"group": "conv2", "pattern": plus}],
    )
    plan = strategies.plan(proposal, {})
    assert plan.values == {"conv1": half, "conv2": plus, "conv3": half}
    assert "read as" in plan.repairs[0]
    env.reset()
    env.step(strategies.action(env, plan.values))
    assert dict(env.history[-1].executed) == plan.values
    assert np.array_equal(env.history[-1].plan.keep_set(env.task.graph).counts, [4, 12, 3])
    with pytest.raises(Refused, match="there is no pattern 'star'"):
        strategies.plan(PatternProposal(reasoning="", default_pattern="star", patterns=[]), {})


def test_an_answer_is_found_in_prose_and_checked():
    text = 'Sure {not json}:\n```json\n{"reasoning": "", "decision": "stop", "guidance": ""}\n```'
    assert parse_answer(text, Verdict).decision == "stop"
    with pytest.raises(ValueError, match="it holds no complete JSON object"):
        parse_answer('{"reasoning": "cut o', Verdict)
    with pytest.raises(ValueError, match=r"schema \(decision: Input should be 'continue' or"):
        parse_answer('{"reasoning": "", "decision": "later", "guidance": ""}', Verdict)
    with pytest.raises(ValueError, match=r"schema \(ratios.0.ratio: "):
        parse_answer(
            '{"reasoning": "", "ratios": [{"group": "a", "ratio": "much"}]}', RatioProposal
        )
    with pytest.raises(ValueError, match="importance: Extra inputs are not permitted"):
        parse_answer('{"reasoning": "", "ratios": [], "importance": "l2"}', RatioProposal)
    with pytest.raises(ValueError, match=r"ratios.0.ratio: "):
        parse_answer('{"reasoning": "", "ratios": [{"group": "a", "ratio": NaN}]}', RatioProposal)


def test_the_schema_is_strict_as_hosted_models_want_it():
    schema = strict_schema(RatioProposal)
    assert set(schema["required"]) == set(schema["properties"]) == set(RatioProposal.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["GroupRatio"]["required"] == ["group", "ratio"]
    assert all("default" not in field for field in schema["properties"].values())
    assert math.prod(schema["properties"]["round_to"]["enum"]) == 1 * 2 * 4 * 8 * 16
