"""Several environments find the same, however many processes measure for them."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from stable_baselines3 import SAC

from agents.baselines import RandomAgent, UniformAgent
from agents.evolution import CMAESAgent, OnePlusOneAgent
from agents.off_policy import DDPG
from agents.on_policy import A2C, PPO
from agents.search import run_search
from agents.several import for_environments
from envs.allocation import AllocationAction
from envs.budgets import Project, Unlimited
from envs.episodes import Layerwise, Whole
from envs.observations import LayerObservation
from envs.pruning_env import PruningEnv
from envs.rewards import AlphaReward, LogLikelihoodReward
from envs.vec_env import PruningVecEnv
from graphs.tracing import trace_network
from networks.data import SampleSet, SearchSplits
from networks.digits import digits_resnet
from patterns.library import PatternLibrary
from pruning.evaluation import Evaluator, NonFiniteAccuracy, cross_entropy, top1_accuracy
from pruning.evaluation_pool import EvaluationPool, WorkerFailed, pack, unpack
from pruning.growth import Growth
from pruning.plan import Decision
from pruning.task import PruningTask

RATIOS = (0.1, 0.3, 0.5, 0.7)


def raise_for_few_channels(outputs, targets):
    """A metric with a bug that shows in small networks only."""
    if float(outputs.abs().mean()) >= 0:
        raise ZeroDivisionError("the metric divides by nothing")
    return 0.0


def die(outputs, targets):
    """A metric that takes its process with it, as a machine out of memory does."""
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return top1_accuracy(outputs, targets)


def no_number(outputs, targets):
    """A loss that is never a number."""
    return float("nan") if multiprocessing.parent_process() is not None else 1.0


def make_task(metric=None, loss=None, scale=1.0):
    torch.manual_seed(0)
    network = digits_resnet(width=4, blocks=(1, 1, 1)).eval()
    generator = torch.Generator().manual_seed(1)
    inputs = torch.rand(24, 1, 8, 8, generator=generator)
    samples = SampleSet(inputs, torch.randint(10, (24,), generator=generator))
    graph = trace_network(network, inputs[:1])
    options = {"metric": metric, "loss": loss}
    return PruningTask(
        network, graph, SearchSplits(samples, samples, samples),
        library=PatternLibrary.from_specs([{"family": "channel", "ratio": 0.5}]),
        evaluator_options=options,
    )  # fmt: skip


def make_env(task=None, *, sequential=False):
    return PruningEnv(
        task or make_task(),
        observation=LayerObservation(),
        action=AllocationAction(),
        episode=Layerwise() if sequential else Whole(max_steps=1),
        budget=Unlimited() if sequential else Project(relative_macs=0.5),
        reward=AlphaReward(alpha=0.5) if sequential else LogLikelihoodReward(),
    )


def candidates(task, ratios=RATIOS):
    return [task.candidate([Decision(task.sites[0].name, ratio=ratio)]) for ratio in ratios]


def make_ppo(env):
    return PPO("MlpPolicy", env, n_steps=4, batch_size=8, n_epochs=2, seed=0, device="cpu")


def shared_memory():
    folder = Path("/dev/shm")
    return {path.name for path in folder.glob("torch_*")} if folder.is_dir() else set()


@pytest.fixture(scope="module")
def task():
    torch.set_num_threads(1)
    return make_task()


def test_a_pool_measures_what_the_evaluator_measures_and_counts_nothing(task):
    before = shared_memory()
    asked = candidates(task)
    with EvaluationPool(task.evaluator, 2) as pool:
        processes = pool.processes
        outcomes = pool.measure(asked)
        assert pool.measure([]) == {}
        pids = {process.pid for process in processes}
    assert list(outcomes) == asked
    assert list(outcomes.values()) == [task.evaluator.outcome(each) for each in asked]
    assert len({outcome.loss for outcome in outcomes.values()}) == 4
    assert task.evaluator.num_evaluations == 0
    assert not pids & {process.pid for process in multiprocessing.active_children()}
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert shared_memory() <= before
    assert pool.processes == ()
    with pytest.raises(WorkerFailed, match="ended before"):
        pool.measure(asked)


def test_what_was_prepared_is_counted_when_it_is_asked_for():
    task = make_task()
    first, second, *_ = candidates(task)
    task.evaluator.prepare({first: task.evaluator.outcome(first)})
    assert (task.evaluator.has(first), task.evaluator.has(second)) == (True, False)
    assert task.evaluator.num_evaluations == 0
    measured = [task.evaluator.evaluate(first) for _ in range(2)]
    assert [each.cached for each in measured] == [False, True]
    assert (task.evaluator.num_evaluations, task.evaluator.num_cache_hits) == (1, 1)


def test_tensors_are_packed_once_and_keep_their_ties_and_views(task):
    whole = torch.arange(12.0).reshape(3, 4)
    tied = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    value = [whole, whole[1:].t(), tied, {"again": tied}, torch.tensor([True, False]), "text"]
    payload, arena = pack(value)
    assert len(arena) == 3 * 64
    copy = unpack(payload, arena)
    assert torch.equal(copy[0], whole)
    assert torch.equal(copy[1], whole[1:].t())
    assert copy[2] is copy[3]["again"]
    assert (type(copy[2]), copy[2].requires_grad) == (torch.nn.Parameter, False)
    assert (copy[4].tolist(), copy[5]) == ([True, False], "text")
    copy[0][1, 0] = 50.0
    assert copy[1][0, 0] == 50.0
    assert whole[1, 0] == 4.0


@pytest.mark.parametrize("sequential", [False, True], ids=["whole", "layerwise"])
def test_what_is_foreseen_is_what_is_measured_and_nothing_changes(sequential):
    env = make_env(sequential=sequential)
    env.reset()
    env.action_space.seed(0)
    finished, foreseen = False, None
    while not finished:
        action = env.action_space.sample()
        foreseen = env.foresee(action)
        assert env.foresee(action) == foreseen
        assert env.num_evaluations == 0
        _, _, finished, _, info = env.step(action)
        assert (foreseen is None) is not finished
    assert foreseen == info["record"].plan.candidate(env.task.graph)


@pytest.mark.parametrize("make_agent", [make_ppo, functools.partial(RandomAgent, seed=0)])
def test_the_same_seed_finds_the_same_with_and_without_a_pool(make_agent):
    found = []
    for workers in (0, 2):
        env = make_env()
        pool = EvaluationPool(env.task.evaluator, workers) if workers else None
        vec_env = PruningVecEnv(env, 2, pool)
        result = run_search(make_agent(vec_env), env, evaluations=13)
        vec_env.close()
        assert result.evaluations == env.num_evaluations == 13
        assert result.timesteps == result.episodes == len(env.history)
        assert env.best is max(env.history, key=lambda record: record.score)
        found.append((env.history, [record.evaluations for record in env.history]))
    assert found[0] == found[1]


def test_a_pool_measures_on_as_many_images_as_the_search_has_come_to():
    found = []
    for workers in (0, 2):
        task = make_task()
        task.evaluator.growth = Growth(first=0.25, whole_at=9)
        env = make_env(task)
        pool = EvaluationPool(task.evaluator, workers) if workers else None
        vec_env = PruningVecEnv(env, 4, pool)
        run_search(RandomAgent(vec_env, seed=0), env, evaluations=10)
        vec_env.close()
        found.append(env.history)
    assert found[0] == found[1]
    assert [record.num_samples for record in found[1][:9]] == [6, 8, 10, 13, 15, 17, 20, 22, 24]


def test_generations_and_random_plans_do_not_depend_on_the_number_of_environments():
    for kind in (functools.partial(CMAESAgent, population_size=6), RandomAgent):
        histories = []
        for num_envs in (1, 3):
            env = make_env()
            agent = kind(PruningVecEnv(env, num_envs), seed=0)
            run_search(agent, env, evaluations=14)
            histories.append(env.history)
        assert len(histories[0]) >= 14
        assert histories[0] == histories[1]


@pytest.mark.parametrize("sequential", [False, True], ids=["whole", "layerwise"])
@pytest.mark.parametrize("evaluations", [1, 4, 5])
def test_the_limit_is_met_exactly(evaluations, sequential):
    env = make_env(sequential=sequential)
    vec_env = PruningVecEnv(env, 3)
    result = run_search(RandomAgent(vec_env, seed=0), env, evaluations=evaluations)
    assert result.evaluations == env.num_evaluations == evaluations
    assert env.history[-1].evaluations == evaluations
    assert not env.history[-1].cached


def test_beyond_the_limit_nothing_is_measured(task, monkeypatch):
    asked = []

    class Pool:
        def measure(self, candidates, images=None):
            asked.append(len(candidates))
            return {each: env.task.evaluator.outcome(each) for each in candidates}

    env = make_env()
    run_search(RandomAgent(PruningVecEnv(env, 4, Pool()), seed=0), env, evaluations=6)
    assert asked == [4, 2]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (raise_for_few_channels, "ZeroDivisionError: the metric divides by nothing"),
        (die, r"died \(exit code -9"),
    ],
)
def test_a_worker_that_fails_gives_one_clear_error(task, broken, message):
    splits = (task.evaluator, task.slimmer)
    samples = SampleSet(torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.long))
    evaluator = Evaluator(splits[1], samples, samples, metric=broken, loss=cross_entropy)
    pool = EvaluationPool(evaluator, 2)
    with pytest.raises(WorkerFailed, match=message):
        pool.measure(candidates(task))
    assert pool.processes == ()
    assert evaluator.num_evaluations == 0


def test_an_accuracy_that_is_no_number_passes_through():
    task = make_task(loss=no_number, metric=top1_accuracy)
    (asked,) = candidates(task, (0.5,))
    with EvaluationPool(task.evaluator, 1) as pool:
        task.evaluator.prepare(pool.measure([asked]))
    for _ in range(2):
        with pytest.raises(NonFiniteAccuracy, match="The loss of the candidate"):
            task.evaluator.evaluate(asked)
    assert (task.evaluator.num_evaluations, task.evaluator.num_cache_hits) == (1, 1)


def test_ctrl_c_while_measuring_leaves_no_process(task, monkeypatch):
    pool = EvaluationPool(task.evaluator, 2)
    pids = [process.pid for process in pool.processes]

    def press(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pruning.evaluation_pool.wait", press)
    with pytest.raises(KeyboardInterrupt):
        pool.measure(candidates(task))
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_what_cannot_be_sent_is_refused(task):
    with pytest.raises(ValueError, match=r"cannot be sent to another process.*vec_env=dummy"):
        pack(lambda: None)
    with pytest.raises(ValueError, match="lies on meta"):
        pack(torch.empty(1, device="meta"))
    with pytest.raises(ValueError, match=r"vec_env.workers must be 1 or more"):
        EvaluationPool(task.evaluator, 0)
    with pytest.raises(ValueError, match=r"vec_env.num_envs must be 1 or more, got 0"):
        PruningVecEnv(make_env(), 0)


def test_updates_see_as_many_steps_as_with_one_environment():
    make_agent = functools.partial(PPO, n_steps=10, batch_size=10)
    assert for_environments(make_agent, 1) is make_agent
    assert for_environments(make_agent, 5).keywords == {"n_steps": 2, "batch_size": 10}
    assert for_environments(functools.partial(RandomAgent), 3).func is RandomAgent
    assert for_environments(functools.partial(SAC, train_freq=1), 3).keywords == {"train_freq": 1}


@pytest.mark.parametrize(
    ("make_agent", "message"),
    [
        (functools.partial(A2C, n_steps=16), "A2C learns from agent.n_steps=16 .*num_envs=3"),
        (functools.partial(DDPG), "DDPG learns after every episode of one .*vec_env=dummy"),
        (functools.partial(SAC, train_freq=(1, "episode")), "SAC learns after every episode"),
    ],
)
def test_agents_that_cannot_share_are_refused(make_agent, message):
    with pytest.raises(ValueError, match=message):
        for_environments(make_agent, 3)


def test_rules_for_one_environment_are_refused():
    for kind in (UniformAgent, OnePlusOneAgent):
        with pytest.raises(ValueError, match=rf"{kind.__name__} decides for one .*vec_env=dummy"):
            kind(PruningVecEnv(make_env(), 2), seed=0)
    agent = CMAESAgent(PruningVecEnv(make_env(), 4), population_size=6, seed=0)
    with pytest.raises(ValueError, match=r"A generation of 6 plans.*num_envs=4"):
        agent.learn(8)
