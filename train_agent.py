"""The main job: compose the config, build, search, prune, fine-tune, report."""

from __future__ import annotations

from pathlib import Path

import hydra
from omegaconf import DictConfig

from experiments.command_line import guard_job, run_hydra_command


@hydra.main(version_base="1.3", config_path="conf", config_name="train_agent")
@guard_job
def main(config: DictConfig) -> float:
    """Prune a network with an agent, leave a run folder, return the reward of the best plan."""
    # Imported here: --help, --cfg and tab completion stay instant without torch.
    from hydra.core.hydra_config import HydraConfig

    from experiments.identity import RunIdentity
    from experiments.pipeline import run_job
    from experiments.resume import hydra_search_root

    folder = Path(HydraConfig.get().runtime.output_dir)
    identity = RunIdentity.from_hydra(config)
    return run_job(config, folder, identity, search_root=hydra_search_root())


if __name__ == "__main__":
    run_hydra_command(main)
