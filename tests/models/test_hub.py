"""Hub ids against a server that plays the hub, each in a fresh process, since the environment is read once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hub_server import COMMIT, Hub, serve

from perilune.errors import ModelNotFoundError
from perilune.models.checkpoint import Checkpoint
from perilune.models.config import read_config
from perilune.models.hub import resolve, resolve_config_only

REPO = "moon/tiny-linear"

CALL = """
import json, sys
from perilune.errors import ModelNotFoundError
from perilune.models import hub
assert "huggingface_hub" not in sys.modules
function, arguments = json.loads(sys.argv[1])
try:
    print(json.dumps({"path": str(getattr(hub, function)(**arguments))}))
except ModelNotFoundError as error:
    print(json.dumps({"what": error.what, "why": error.why, "fix": error.fix}))
"""


@dataclass
class Client:
    """Calls `resolve` in a process of its own, with its own cache."""

    hub: Hub
    home: Path

    def __call__(self, function: str = "resolve", **arguments: object) -> dict[str, str]:
        return self.ask(function, {"model": REPO, **arguments}, HF_ENDPOINT=self.hub.url)

    def ask(self, function: str, arguments: dict[str, object], **environment: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
        env = {**kept, "HF_HOME": str(self.home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
        command = [sys.executable, "-c", CALL, json.dumps([function, arguments])]
        result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 0, result.stderr
        self.stderr = result.stderr
        answer: dict[str, str] = json.loads(result.stdout)
        return answer


@pytest.fixture
def client(golden_root: Path, tmp_path: Path) -> Iterator[Client]:
    extra = {
        "modeling_kimi.py": b"raise SystemExit('never run')",
        "tiktoken.model": b"IQ== 0\n",
        "chat_template.jinja": b"{{ messages }}",
        "README.md": b"# hi",
        "pytorch_model.bin": b"pickle",
    }
    with serve(REPO, golden_root / "kimi_linear_w4a16", **extra) as hub:
        yield Client(hub, tmp_path / "home")


def test_a_hub_id_becomes_a_folder_that_opens(client: Client) -> None:
    folder = Path(client()["path"])
    assert folder.name == COMMIT
    Checkpoint.open(folder).check()


def test_weights_json_vocabulary_and_template_are_fetched_and_nothing_else(client: Client) -> None:
    folder = Path(client()["path"])
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "tiktoken.model", "chat_template.jinja", "model-00001-of-00002.safetensors"} <= names
    assert not {"modeling_kimi.py", "README.md", "pytorch_model.bin"} & names
    assert client.hub.downloaded() == names


def test_a_second_start_downloads_nothing(client: Client) -> None:
    first = client()
    client.hub.requests.clear()
    assert client() == first
    assert client.hub.downloaded() == set()


def test_the_config_alone_is_enough_for_a_plan(client: Client) -> None:
    folder = Path(client("resolve_config_only")["path"])
    assert client.hub.downloaded() == {"config.json", "model.safetensors.index.json"}
    assert read_config(folder).spec.family == "kimi_linear"


def test_a_revision_is_passed_on_and_an_unknown_one_is_named(client: Client) -> None:
    assert Path(client(revision="v1")["path"]).name == COMMIT
    error = client(revision="v9")
    assert REPO in error["what"]
    assert "v9" in error["what"]
    assert "branch" in error["fix"]


def test_offline_uses_the_cache(client: Client) -> None:
    online = client()
    client.hub.requests.clear()
    assert client.ask("resolve", {"model": REPO}, HF_ENDPOINT=client.hub.url, HF_HUB_OFFLINE="1") == online
    assert client.hub.requests == []


def test_offline_without_the_weights_says_which_setting_forbids_it(client: Client) -> None:
    client("resolve_config_only")
    for model in (REPO, "moon/never-seen"):
        error = client.ask("resolve", {"model": model}, HF_ENDPOINT=client.hub.url, HF_HUB_OFFLINE="1")
        assert model in error["what"]
        assert "HF_HUB_OFFLINE" in error["why"]
        assert "HF_HUB_OFFLINE" in error["fix"]


def test_a_hub_that_is_down_uses_the_cache_or_names_the_endpoint(client: Client) -> None:
    online = client()
    # Nothing listens on port 9 of this machine.
    assert client.ask("resolve", {"model": REPO}, HF_ENDPOINT="http://127.0.0.1:9") == online
    error = client.ask("resolve", {"model": "moon/never-seen"}, HF_ENDPOINT="http://127.0.0.1:9")
    assert "could not be downloaded" in error["what"]
    assert "http://127.0.0.1:9" in error["why"]
    assert "HF_ENDPOINT" in error["fix"]


def test_an_unknown_id_is_named_with_the_hub_that_was_asked(client: Client) -> None:
    error = client(model="moon/absent")
    assert error["what"] == "There is no model moon/absent."
    assert client.hub.url in error["why"]
    assert "spelling" in error["fix"]


def test_a_gated_model_says_how_to_get_in(client: Client) -> None:
    error = client(model="some/gated")
    assert "gated" in error["what"]
    assert "HF_TOKEN" in error["fix"]


def test_a_failing_hub_is_an_error_with_its_answer(client: Client) -> None:
    error = client(model="some/broken")
    assert "could not be downloaded" in error["what"]
    assert "500" in error["why"]


def test_progress_bars_show_unless_they_are_not_wanted(client: Client) -> None:
    # TQDM_POSITION=-1 is huggingface_hub's way to have bars without a terminal.
    environment = {"HF_ENDPOINT": client.hub.url, "TQDM_POSITION": "-1"}
    client.ask("resolve_config_only", {"model": REPO}, **environment)
    assert client.stderr == ""
    client.ask("resolve", {"model": REPO, "progress": False}, **environment)
    assert client.stderr == ""
    client.ask("resolve", {"model": REPO, "progress": True}, **environment)
    assert "100%" in client.stderr


def test_a_local_folder_is_taken_as_it_is(golden: Path) -> None:
    assert resolve(str(golden)) == golden
    assert resolve_config_only(str(golden)) == golden


def test_a_local_config_is_enough_for_a_plan_but_not_for_weights(golden: Path) -> None:
    config = golden / "config.json"
    assert resolve_config_only(str(config)) == config
    with pytest.raises(ModelNotFoundError, match="is a file"):
        resolve(str(config))


@pytest.mark.parametrize(
    "model", ["", "./nowhere", "/nowhere/at/all", "~/nowhere-at-all", "a/b/c", "plain", "../no", "a b/c"]
)
def test_what_is_neither_a_path_nor_an_id_is_refused_without_asking_the_hub(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match="owner/name"):
        resolve(model)


def test_a_folder_named_like_an_id_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "moon" / "local").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("moon/local") == Path("moon/local")
