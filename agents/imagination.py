"""A policy that trains on imagined outcomes, and spends evaluations on its most promising plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

from agents.allocation_policy import AllocationPolicy
from agents.evolution import EvolutionAgent
from agents.imagined_env import ImaginedVecEnv, Preview
from agents.local_start import LocalErrorSum
from agents.on_policy import PPO
from agents.reward_model import GaussianProcess, PriorModel, RewardModel


class ImaginationStrategy:
    """Fits a reward model to all measurements, trains a policy on it, and draws plans from that.

    A round, for every `plans_per_round` measurements:

    1. the reward model is fitted to every plan measured so far;
    2. the policy starts at the measured plan that the model thinks best, with its first standard
       deviation, and PPO improves it for `updates` rollouts of `imagined_plans` plans each, paid
       by the model: mean + optimism * standard deviation;
    3. of `drawn_plans` plans drawn from the policy, those that the same sum says are worth most
       are measured, each the best of an equal share of them so that they differ.

    In the spirit of model-based policy optimisation (https://arxiv.org/abs/1906.08253) with
    episodes of one step. Measured plans are in whole channels and imagined ones are not, which
    makes an imagined plan a thousand times cheaper than a measurement.

    Args:
        start: the first plan measured, as an action, shape (S,).
        ppo: improves the policy; built with `imagined`.
        imagined: the environment of imagined outcomes.
        model: what is learned of rewards.
        warm_up: plans measured before the model is first asked, the start and draws around it, at
            least 2.
        plans_per_round: measurements between two fits of the model.
        updates: rollouts of imagined plans per round; 0 draws around the best plan.
        drawn_plans: draws that the measured plans are selected from, at least `plans_per_round`.
        optimism: what a standard deviation of the model is worth, at least 0.
        knows_before: whether the model predicts before it is fitted; half of the first plans are
            then selected like those of any round.
        seed: of the draws.
    """

    def __init__(
        self,
        start: np.ndarray,
        ppo: PPO,
        imagined: ImaginedVecEnv,
        model: RewardModel,
        *,
        warm_up: int,
        plans_per_round: int,
        updates: int,
        drawn_plans: int,
        optimism: float,
        knows_before: bool = False,
        seed: int,
    ) -> None:
        self.warm_up = warm_up
        self.plans_per_round = plans_per_round
        self.updates = updates
        self.drawn_plans = drawn_plans
        self.optimism = optimism
        self._ppo = ppo
        self._imagined = imagined
        self._knows_before = knows_before
        self._model = model
        self._rng = np.random.default_rng(seed)
        self._queue: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._plans: list[np.ndarray] = []
        self._rewards: list[float] = []
        self._start = np.asarray(start, dtype=np.float32)
        self._policy.centre(self._imagined.observation, self._start)

    @property
    def mean(self) -> np.ndarray:
        """The policy's mean action, shape (S,)."""
        return self._mean_and_deviation()[0]

    @property
    def _policy(self) -> AllocationPolicy:
        policy = self._ppo.policy
        assert isinstance(policy, AllocationPolicy), "checked by ImaginationAgent"
        return policy

    def ask(self) -> np.ndarray:
        """The next plan of this round, as an action; the same until its value is told."""
        return self.ask_several(1)[0]

    def ask_several(self, count: int) -> list[np.ndarray]:
        """The next plans of this round, in the order in which their values are told."""
        if not self._queue:
            self._queue = self._round() if self._rewards else self._warm_up()
        return self._queue[:count]

    def tell(self, value: float) -> None:
        """Remember what the plan asked last is worth."""
        action = self.ask()
        del self._queue[0]
        self._actions.append(action)
        self._plans.append(self._imagined.preview(action[None], rounded=True)[0])
        self._rewards.append(value)

    def _warm_up(self) -> list[np.ndarray]:
        if not self._knows_before:
            return [self._start, *self._draw(self.warm_up - 1)]
        # half of them: a model that was not fitted yet may be wrong about everything
        chosen = self._select(self._draw(self.drawn_plans), self.warm_up // 2)
        return [self._start, *chosen, *self._draw(self.warm_up - 1 - len(chosen))]

    def _round(self) -> list[np.ndarray]:
        plans = np.asarray(self._plans)
        self._model.fit(plans, np.asarray(self._rewards))
        best = int(np.argmax(self._model.predict(plans)[0]))
        self._policy.centre(self._imagined.observation, self._actions[best])
        self._imagined.worth = self._worth
        for _ in range(self.updates):
            self._ppo.learn(self._imagined.num_envs, reset_num_timesteps=False)
        return self._select(self._draw(self.drawn_plans), self.plans_per_round)

    def _worth(self, plans: np.ndarray) -> np.ndarray:
        mean, deviation = self._model.predict(plans)
        return mean + self.optimism * deviation

    def _select(self, actions: np.ndarray, count: int) -> list[np.ndarray]:
        """From each share of the draws the most promising plan that was not measured yet."""
        worth = self._worth(self._imagined.preview(actions, rounded=False))
        known = {plan.tobytes() for plan in self._plans}
        selected = []
        for share in np.array_split(np.arange(len(actions)), count):
            for index in share[np.argsort(-worth[share], kind="stable")]:
                plan = self._imagined.preview(actions[[index]], rounded=True).tobytes()
                if plan not in known:
                    known.add(plan)
                    selected.append(actions[index])
                    break
        # what is known already costs no evaluation
        return selected + list(actions[: count - len(selected)])

    def _draw(self, count: int) -> np.ndarray:
        mean, deviation = self._mean_and_deviation()
        drawn = mean + deviation * self._rng.standard_normal((count, len(mean)))
        return np.clip(drawn, -1.0, 1.0).astype(np.float32)

    def _mean_and_deviation(self) -> tuple[np.ndarray, np.ndarray]:
        observation, _ = self._policy.obs_to_tensor(self._imagined.observation)
        with torch.no_grad():
            distribution: Any = self._policy.get_distribution(observation).distribution
        return distribution.mean[0].numpy(), distribution.stddev[0].numpy()


class ImaginationAgent(EvolutionAgent):
    """PPO in imagination: real evaluations fit a reward model, and the policy trains on that.

    Args:
        env: an environment whose episodes are one step with a Box action of one entry per group,
            and whose plans can be previewed (`env=allocation`).
        policy: `agents.allocation_policy.AllocationPolicy` or a subclass.
        policy_kwargs: its arguments; `log_std_init` is the width of the search around the best
            plan in every round.
        model: what is learned of rewards; None for a Gaussian process.
        imagined_plans: plans per imagined rollout, at least 2.
        n_epochs: passes over an imagined rollout.
        learning_rate: of the policy.
        rank_power: see `agents.on_policy`; None for plain imagined rewards.
        clip_range: of the probability ratio.
        warm_up: see `ImaginationStrategy`.
        plans_per_round: see `ImaginationStrategy`.
        updates: see `ImaginationStrategy`.
        drawn_plans: see `ImaginationStrategy`.
        optimism: see `ImaginationStrategy`.
        prior_weight: how much of the trend in the plans' local errors (`pruning.local_error`) is
            believed, in [0, 1]; they are known before anything is measured, and choose half of the
            plans of the warm-up. None: not used.
        start: see `agents.evolution.EvolutionAgent`; the warm-up draws around it.
        seed: same seed, same episodes; None draws one.
        verbose: not used.
        device: of the policy.

    Attributes:
        prepare_policy: called with the policy before the search begins, to give it weights that
            were learned elsewhere.

    Raises:
        ValueError: a setting is out of range, or the environment has other episodes or actions.
    """

    def __init__(
        self,
        env: Any,
        *,
        policy: type[AllocationPolicy] = AllocationPolicy,
        policy_kwargs: Mapping[str, Any] | None = None,
        model: RewardModel | None = None,
        imagined_plans: int = 64,
        n_epochs: int = 5,
        learning_rate: float = 2e-2,
        rank_power: float | None = 4.0,
        clip_range: float = 0.3,
        warm_up: int = 20,
        plans_per_round: int = 5,
        updates: int = 2,
        drawn_plans: int = 800,
        optimism: float = 1.5,
        prior_weight: float | None = 0.5,
        start: str = "uniform",
        seed: int | None = None,
        verbose: int = 0,
        device: str = "cpu",
    ) -> None:
        least = {
            "imagined_plans": (imagined_plans, 2),
            "warm_up": (warm_up, 2),
            "plans_per_round": (plans_per_round, 1),
            "updates": (updates, 0),
            "drawn_plans": (drawn_plans, plans_per_round),
            "optimism": (optimism, 0),
        }
        for name, (value, lowest) in least.items():
            if not value >= lowest:
                raise ValueError(
                    f"{name}={value}: wanted is {lowest} or more. Change agent.{name}."
                )
        if prior_weight is not None and not 0.0 <= prior_weight <= 1.0:
            raise ValueError(
                f"prior_weight={prior_weight}: wanted is a number in [0, 1], or null for no prior. "
                "Change agent.prior_weight."
            )
        if not issubclass(policy, AllocationPolicy):
            raise ValueError(
                f"Imagination trains an AllocationPolicy, and agent.policy is {policy.__name__}."
            )
        self._policy_class = policy
        self._policy_kwargs = dict(policy_kwargs or {})
        self._model = GaussianProcess() if model is None else model
        self._ppo_settings: dict[str, Any] = {
            "batch_size": imagined_plans,
            "n_epochs": n_epochs,
            "learning_rate": learning_rate,
            "rank_power": rank_power,
            "rank_window": imagined_plans,
            "clip_range": clip_range,
            "device": device,
        }
        self._strategy_settings: dict[str, Any] = {
            "warm_up": warm_up,
            "plans_per_round": plans_per_round,
            "updates": updates,
            "drawn_plans": drawn_plans,
            "optimism": optimism,
        }
        self.prior_weight = prior_weight
        self.prepare_policy: Callable[[AllocationPolicy], None] | None = None
        super().__init__(env, sigma=1.0, seed=seed, start=start)

    @classmethod
    def load(cls, path: str | Path, env: Any = None) -> ImaginationAgent:
        """Refused: a reward model and a policy are made by their classes, not read from a file.

        Raises:
            ValueError: always; it says how to go on with a search instead.
        """
        raise ValueError(
            f"{path}: {cls.__name__} is not loaded from a file. Start the search again with "
            "resume=auto, which replays its evaluations and costs seconds."
        )

    def _check_number(self, num_envs: int) -> None:
        """A round is drawn at once, so its plans can be measured side by side.

        Raises:
            ValueError: a round cannot be shared out equally.
        """
        settings = self._strategy_settings
        for name in ("warm_up", "plans_per_round"):
            if settings[name] % num_envs:
                raise ValueError(
                    f"{name}={settings[name]} plans cannot be shared out equally among "
                    f"vec_env.num_envs={num_envs} environments. Set agent.{name} to a multiple of "
                    "vec_env.num_envs."
                )

    def _actions(self, env: VecEnv) -> np.ndarray:
        strategy = self._searching(env)
        assert isinstance(strategy, ImaginationStrategy), "made below"
        return np.stack(strategy.ask_several(env.num_envs))

    def _make_strategy(self, start: np.ndarray, space: spaces.Box) -> ImaginationStrategy:
        env = self._attached_env()
        (observation,) = env.env_method("first_observation", indices=[0])
        model = self._model
        if self.prior_weight is not None:
            model = PriorModel(model, LocalErrorSum(env), self.prior_weight)
        model.bind(env.observation_space, observation)
        imagined = ImaginedVecEnv(
            observation,
            env.observation_space,
            space,
            num_envs=self._ppo_settings["batch_size"],
            preview=Preview(env),
        )
        ppo = PPO(
            self._policy_class,
            imagined,
            n_steps=1,
            ent_coef=0.0,
            vf_coef=0.0,  # one step, one observation: there is nothing a critic could know
            policy_kwargs=self._policy_kwargs,
            seed=self._strategy_seed,
            **self._ppo_settings,
        )
        ppo.set_logger(Logger(folder=None, output_formats=[]))
        if self.prepare_policy is not None:
            assert isinstance(ppo.policy, AllocationPolicy), "checked by the constructor"
            self.prepare_policy(ppo.policy)
        return ImaginationStrategy(
            start,
            ppo,
            imagined,
            model,
            knows_before=self.prior_weight is not None,
            seed=self._strategy_seed,
            **self._strategy_settings,
        )
