"""agent=llm through the main job: replay of a recording, a real client, a failure, going on."""

from __future__ import annotations

import html
import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir

import experiments.final_report
from agents.llm.exchanges import read_exchanges
from agents.llm.provider import ProviderError
from experiments.command_line import CONFIG_FOLDER, explain
from experiments.identity import RunIdentity
from experiments.pipeline import run_job
from experiments.rule_analyst import RuleAnalyst
from pruning.fine_tuning import fine_tune
from tests.agents.llm.loopback import LoopbackServer, analyst_responder

ROOT = CONFIG_FOLDER.parent
FIXTURE = ROOT / "tests" / "agents" / "llm" / "digits_exchanges.jsonl"
SMALL = (
    "agent=llm",
    "pretrain.epochs=1",
    "search.evaluations=4",
    "agent.history_length=3",
    "fine_tune=none",
    "evaluation.latency.min_run_time=0.01",
    "evaluation.latency.onnxruntime=false",
    "logger=csv",
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(cache):
    def run(folder, *overrides):
        folder.mkdir(exist_ok=True)
        with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            config = compose("train_agent", overrides=[*SMALL, f"cache_dir={cache}", *overrides])
        run_job(config, folder, RunIdentity("digits_resnet", "digits", "llm", "ratios", overrides))
        return folder

    return run


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_recording_of_the_tests_is_replayed_without_network_or_key(train, tmp_path):
    folder = train(tmp_path / "run", "llm=replay", f"llm.path={FIXTURE}")
    recorded = [e for e in read_exchanges(FIXTURE) if e.role == "analysis"]
    proposals = lines(folder / "llm_proposals.jsonl")
    assert [p["asked"]["ratios"] for p in proposals] == [
        json.loads(exchange.reply)["ratios"] for exchange in recorded
    ]
    assert [p["reasoning"] for p in proposals] == [
        json.loads(exchange.reply)["reasoning"] for exchange in recorded
    ]
    assert sum(p["status"] == "measured" for p in proposals) == 4
    best = max((p for p in proposals if p["status"] == "measured"), key=lambda p: p["score"])
    plan = json.loads((folder / "plan.json").read_text())
    executed = {decision["site"]: decision["ratio"] for decision in plan["decisions"]}
    assert executed == pytest.approx(best["plan"])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["evaluations"] == 4
    page = html.unescape((folder / "report.html").read_text())
    for proposal in proposals:  # its reasoning stands beside what it led to
        after = page[page.index(f"<summary>{proposal['number'] + 1}: ") :]
        assert proposal["reasoning"] in after[: after.index("</details>")]
        outcome = after[: after.index("</summary>")]
        is_measured = proposal["status"] == "measured"
        assert is_measured == ("on the reward split" in outcome)
        if is_measured:
            assert f"accuracy {100 * proposal['accuracy']:.2f} %" in outcome
    assert 0.475 <= summary["pruned"]["macs"] / summary["base"]["macs"] <= 0.505


def test_a_run_whose_server_fails_goes_on_and_its_replay_is_identical(train, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = LoopbackServer()
    well = analyst_responder(RuleAnalyst())
    server.respond = lambda path, sent: (
        well(path, sent) if len(server.received) <= 2 else (500, {"error": {"message": "ill"}})
    )
    folder = tmp_path / "run"
    client = ("llm=openai", f"llm.base_url={server.url}/v1", "llm.name=m", "llm.max_retries=0")
    with pytest.raises(ProviderError) as caught:
        train(folder, *client)
    line = explain(caught.value)
    assert line.startswith(
        f"{server.url}/v1 answered 500 in 1 try: ill. Check the server, or raise"
    )
    assert line.endswith(f"the same command with hydra.run.dir={folder} goes on from there.")
    assert "\n" not in line
    assert len(lines(folder / "llm_proposals.jsonl")) == 1
    server.received.clear()
    server.respond = well
    train(folder, *client)
    server.close()
    exchanges = read_exchanges(folder / "llm_exchanges.jsonl")
    assert [e.error is None for e in exchanges[:4]] == [True, True, False, True]
    assert len(server.received) == len(exchanges) - 3  # two were kept, one had failed
    replayed = train(tmp_path / "replay", "llm=replay", f"llm.path={folder}", "llm.strict=true")
    for name in ("plan.json", "llm_proposals.jsonl"):
        assert (replayed / name).read_text() == (folder / name).read_text()


class ChoosingAnalyst(RuleAnalyst):
    """The rule, which ranks every other plan by l2 and asks for another fine-tuning each time."""

    def complete(self, request):
        reply = super().complete(request)
        if request.role != "analysis":
            return reply
        number = json.loads(request.messages[1].content)["next_number"]
        further = {
            "importance": ("l2", "l1")[number % 2],
            "fine_tune": {"epochs": 1, "learning_rate": 0.01 + 0.001 * number},
        }
        return replace(reply, text=json.dumps({**json.loads(reply.text), **further}))


def test_an_importance_and_a_fine_tuning_that_were_proposed_reach_the_report(
    train, tmp_path, monkeypatch
):
    recipes = []
    monkeypatch.setattr(
        experiments.final_report,
        "fine_tune",
        lambda *args, **options: recipes.append(options) or fine_tune(*args, **options),
    )
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = LoopbackServer()
    well = analyst_responder(ChoosingAnalyst())
    server.respond = lambda path, sent: (
        well(path, sent) if len(server.received) <= 4 else (500, {"error": {"message": "ill"}})
    )
    folder = tmp_path / "run"
    choosing = (
        "agent.importances=[l2]", "agent.proposes_fine_tune=true", "fine_tune=short",
        "fine_tune.epochs=1",
    )  # fmt: skip
    client = ("llm=openai", f"llm.base_url={server.url}/v1", "llm.name=m", "llm.max_retries=0")
    with pytest.raises(ProviderError, match="answered 500"):
        train(folder, *client, *choosing)
    before = len(lines(folder / "evaluations.jsonl")) - 1
    assert before >= 1
    server.respond = well
    train(folder, *client, *choosing, f"resume={folder}")
    server.close()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["replayed_evaluations"], summary["evaluations"]) == (before, 4)
    proposals = lines(folder / "llm_proposals.jsonl")
    best = max((p for p in proposals if p["status"] == "measured"), key=lambda p: p["score"])
    plan = json.loads((folder / "plan.json").read_text())
    assert {d["importance"] for d in plan["decisions"]} == {best["importance"]}
    assert json.loads((folder / "fine_tune.json").read_text()) == best["fine_tune"]
    rate = best["fine_tune"]["learning_rate"]
    assert [(r["epochs"], r["learning_rate"]) for r in recipes] == [(1, rate)] * 2  # uniform too
    page = html.unescape((folder / "report.html").read_text())
    assert f"importance: {best['importance']}\nfine-tuning: epochs 1, learning_rate {rate}" in page
    choosing = (*choosing, "llm=replay", f"llm.path={folder}", "llm.strict=true")
    replayed = train(tmp_path / "replay", *choosing)
    for name in ("plan.json", "llm_proposals.jsonl", "fine_tune.json"):
        assert (replayed / name).read_text() == (folder / name).read_text()


def test_nothing_of_it_is_imported_for_other_agents():
    code = (
        "import sys\n"
        "from hydra import compose, initialize_config_dir\n"
        "from hydra.utils import instantiate\n"
        "import experiments.pipeline, agents.search\n"
        f"with initialize_config_dir({str(CONFIG_FOLDER)!r}, version_base='1.3'):\n"
        "    config = compose('train_agent', ['agent=bisection'])\n"
        "instantiate(config.agent, _partial_=True, _convert_='all')\n"
        "print([name for name in sys.modules if name.split('.')[0] in\n"
        "       ('openai', 'anthropic', 'pydantic') or name.startswith('agents.llm')])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
