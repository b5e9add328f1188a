"""Runs on the hub and back, by the real client, against an endpoint on this machine that keeps files in memory."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fptt.experiments import load_run
from fptt.experiments.commands.cli import run
from fptt.experiments.training.folder import RunFolder
from tests.experiments.tasks.test_sequences import LENGTHS, NAMES, sequences

constants = pytest.importorskip("huggingface_hub.constants")
QUICK = ["--hidden-size", "3", "--epochs", "1", "--threads", "1", "--batch-size", "7"]
COMMIT = "c" * 40


class Endpoint(ThreadingHTTPServer):
    """As much of the hub's protocol as pushing and pulling a model needs."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.models: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.created: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        self.server.requests.append(format % args)

    def answer(self, value: Any, status: int = 200, **headers: str) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self) -> None:
        self.answer({"error": "no such model"}, 404, X_Error_Code="RepoNotFound", X_Error_Message="no such model")

    def do_POST(self) -> None:
        length = self.headers["Content-Length"]
        body = self.rfile.read(int(length)) if length is not None else b"".join(iter(self.chunk, b""))
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            if self.server.created.get("organization") == "gone":
                self.answer({"error": "no such organization"}, 403)
                return
            name = f"{self.server.created.get('organization', 'me')}/{self.server.created['name']}"
            self.server.models.setdefault(name, {})
            self.answer({"url": f"{self.server.address}/{name}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            name = "/".join(self.path.split("/")[3:5])
            for line in body.splitlines():
                entry = json.loads(line)
                own = entry["value"]
                if entry["key"] == "deletedFile":
                    del self.server.models[name][own["path"]]
                if entry["key"] == "file":
                    self.server.models[name][own["path"]] = base64.b64decode(own["content"])
            url = f"{self.server.address}/{name}/commit/{COMMIT}"
            self.answer({"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self.refuse()

    def chunk(self) -> bytes:
        """Return the next chunk of a body that is sent in chunks."""
        content = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return content

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_api = parts[0] == "api"
        name = "/".join(parts[2:4] if is_api else parts[:2])
        files = self.server.models.get(name)
        if files is None:
            self.refuse()
        elif is_api and "tree" in parts:
            self.answer([{"type": "file", "path": path, "size": len(own), "oid": "0"} for path, own in files.items()])
        elif is_api:
            siblings = [{"rfilename": path} for path in files]
            self.answer({"_id": "0", "id": name, "sha": COMMIT, "siblings": siblings, "tags": []})
        else:
            content = files["/".join(parts[4:])]
            self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Endpoint]:
    server = Endpoint()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield server
    server.shutdown()
    server.server_close()


def trained(tmp_path: Path) -> Path:
    np.savez(tmp_path / "x.npz", inputs=np.concatenate(sequences()), lengths=LENGTHS, targets=NAMES)
    command = ["train", "--task", "sequences", "--data", str(tmp_path / "x.npz"), "--out", str(tmp_path / "run")]
    assert run([*command, *QUICK]) == 0
    return tmp_path / "run"


def test_a_run_goes_to_the_hub_and_comes_back(
    endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = trained(tmp_path)
    (out / "checkpoint-000009.pt").write_bytes(b"not for others")
    (out / "notes.txt").write_text("nor this")
    assert run(["push", str(out), "me/gait", "--private"]) == 0
    assert f"pushed: {endpoint.address}/me/gait" in capsys.readouterr().out
    assert "private" in str(endpoint.created)  # as `visibility`, or of an earlier client, as `private`
    files = endpoint.models["me/gait"]
    assert set(files) == {file.name for file in out.iterdir()} - {"checkpoint-000009.pt", "notes.txt"}
    assert str(tmp_path).encode() not in b"".join(files.values())
    assert b"data: x.npz" in files["config.yaml"]
    back = tmp_path / "back"
    assert run(["pull", "me/gait", "--out", str(back)]) == 0
    assert "pulled: " in capsys.readouterr().out
    assert (load_run(back).predict(sequences()) == load_run(out).predict(sequences())).all()
    assert load_run(back).summary == load_run(out).summary
    assert run(["evaluate", str(back), "--data", str(tmp_path / "x.npz")]) == 0


def test_nothing_of_an_earlier_run_stays_beside_another(endpoint: Endpoint, tmp_path: Path) -> None:
    """Averages would be taken for those of the other weights; what no run leaves is kept."""
    out = trained(tmp_path)
    assert (out / "averages.safetensors").exists()
    assert run(["push", str(out), "me/gait"]) == 0
    endpoint.models["me/gait"]["LICENSE"] = b"MIT"
    again = ["train", "--config", str(out / "config.yaml"), "--method", "tbptt", "--out", str(tmp_path / "other")]
    assert run(again) == 0
    assert run(["push", str(tmp_path / "other"), "me/gait"]) == 0
    assert set(endpoint.models["me/gait"]) == {file.name for file in (tmp_path / "other").iterdir()} | {"LICENSE"}


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["pull", "me/nothing", "--out", "OUT"], "fptt: me/nothing on the hub cannot be read: "),
        (["pull", "me/not/a/name", "--out", "OUT"], "fptt: me/not/a/name on the hub cannot be read: "),
        (["push", "RUN", "me/not/a/name"], "fptt: me/not/a/name on the hub cannot be written: "),
        (["push", "RUN", "gone/gait"], "fptt: gone/gait on the hub cannot be written: "),
        (["push", "OUT", "me/gait"], "does not exist"),
        (["pull", "me/other", "--out", "OUT"], "is damaged"),
        (["pull", "me/other", "--out", "RUN"], "is not empty: give another folder."),
    ],
)
def test_what_the_hub_refuses_is_told_in_one_line(
    command: list[str], told: str, endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.models["me/other"] = {"config.yaml": b"task: [", "model.safetensors": b"x"}
    places = {"RUN": str(trained(tmp_path)), "OUT": str(tmp_path / "out")}
    capsys.readouterr()
    assert run([places.get(word, word) for word in command]) == 2
    error = capsys.readouterr().err
    assert told in error or ("is damaged" in told and "config.yaml" in error)
    assert len([line for line in error.splitlines() if line.startswith("fptt: ")]) == 1
    assert "Traceback" not in error


def test_an_unfinished_run_stays(endpoint: Endpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = trained(tmp_path)
    folder = RunFolder(out)
    folder.write_summary({**folder.read_summary(), "status": "interrupted"})
    capsys.readouterr()
    assert run(["push", str(out), "me/gait"]) == 2
    assert "must be of a finished run, got one that was interrupted" in capsys.readouterr().err
    assert not endpoint.models
