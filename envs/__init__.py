"""Registers the environments: `import envs`, then `gymnasium.make("AutoSculpt-v0")`."""

from envs.registration import register_envs

register_envs()
