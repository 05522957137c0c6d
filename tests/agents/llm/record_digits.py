"""Records digits_exchanges.jsonl: the digits network, a rule behind a real server and client.

Usage: python tests/agents/llm/record_digits.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
FIXTURE = Path(__file__).parent / "digits_exchanges.jsonl"


def main():
    sys.path.insert(0, str(ROOT))
    from experiments.rule_analyst import RuleAnalyst
    from tests.agents.llm.loopback import LoopbackServer, analyst_responder

    server = LoopbackServer()
    server.respond = analyst_responder(RuleAnalyst())
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, str(ROOT / "train_agent.py"), "agent=llm", "llm=openai",
            f"llm.base_url={server.url}/v1", "llm.name=rule-analyst", "search.evaluations=4",
            "agent.history_length=3", "fine_tune=none", "logger=csv",
            "evaluation.latency.min_run_time=0.01", f"hydra.run.dir={folder}",
        ]  # fmt: skip
        subprocess.run(command, check=True, env={**os.environ, "NO_PROXY": "127.0.0.1"})
        shutil.copy(Path(folder) / "llm_exchanges.jsonl", FIXTURE)
    server.close()


if __name__ == "__main__":
    main()
