"""Pruning in stages: python -m experiments.iterative 'iterative.relative_macs=[0.7,0.5,0.3]'.

Every stage is an ordinary run in a folder of its own: the agent searches, the best plan is carried
out, what is left is fine-tuned. The next stage prunes that network: importance is computed on its
fine-tuned weights, and its budget is still a fraction of the unpruned network's MACs. At the end
all stages are composed to one plan of the unpruned network, and to one file that
`pruning.artefact.load_pruned` reloads. The same command again does only what is missing.

One value in `iterative.relative_macs` is one-shot pruning. With `fine_tune.rewind_to` every stage
trains what is left from early weights instead of the pruned ones: iterative magnitude pruning with
rewinding, the lottery-ticket procedure.

Only plans that remove whole channels can be composed; other pattern libraries are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from experiments.command_line import guard_job, run_hydra_command


@hydra.main(version_base="1.3", config_path="../conf", config_name="iterative")
@guard_job
def main(config: DictConfig) -> float:
    """Run the stages that are missing, compose them, and print the table of stages."""
    # Imported here: --help, --cfg and tab completion stay instant without torch.
    from hydra.core.hydra_config import HydraConfig

    from experiments.identity import RunIdentity
    from experiments.iterative_stages import Schedule, print_stages, run_stages

    folder = Path(HydraConfig.get().runtime.output_dir)
    schedule = Schedule.from_config(OmegaConf.to_container(config.iterative, resolve=True))
    stage_config: Any = OmegaConf.masked_copy(
        config, [str(key) for key in config if key != "iterative"]
    )
    result = run_stages(stage_config, schedule, folder, RunIdentity.from_hydra(config))
    print_stages(result, folder)
    last = result["stages"][-1]
    return float(last["reward_accuracy"])


if __name__ == "__main__":
    run_hydra_command(main)
