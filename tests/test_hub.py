# SPDX-License-Identifier: Apache-2.0
"""The hub, with its real client, against a server on this machine that speaks its protocol."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = {"main": "a" * 40, "v1": "b" * 40}
FILES = {
    "config.json": b'{"model_type": "bert"}',
    "vocab.txt": b"[PAD]\n",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"the same weights",
    "flax_model.msgpack": b"the same weights again",
    "tf_model.h5": b"the same weights once more",
    "README.md": b"text",
}
REPOSITORIES = {
    "someone/all-formats": FILES,
    "someone/only-torch": {n: FILES[n] for n in ("config.json", "vocab.txt", "pytorch_model.bin")},
    "someone/no-weights": {"config.json": FILES["config.json"]},
}


class Hub(BaseHTTPRequestHandler):
    """The parts of the hub's HTTP API that a download uses."""

    def log_message(self, *args):
        pass

    def answer(self, body: bytes = b"", status: int = 200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/").split("/")
        api, path = path[:2] == ["api", "models"], path[2 * (path[0] == "api") :]
        repository, rest = "/".join(path[:2]), path[2:]
        if repository == "someone/gated":
            return self.answer(status=403, X_Error_Code="GatedRepo")
        if repository not in REPOSITORIES:
            return self.answer(status=404, X_Error_Code="RepoNotFound")
        files = REPOSITORIES[repository]
        revision = rest[1] if len(rest) > 1 else "main"
        commit = COMMIT.get(revision, revision)
        if commit not in COMMIT.values():
            return self.answer(status=404, X_Error_Code="RevisionNotFound")
        if api and rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                for n, b in files.items()
            ]
            return self.answer(json.dumps(entries).encode(), Content_Type="application/json")
        if api:
            info = {"id": repository, "sha": commit, "siblings": [{"rfilename": n} for n in files]}
            return self.answer(json.dumps(info).encode(), Content_Type="application/json")
        body = files[rest[2]] + (b" v1" if commit == COMMIT["v1"] else b"")
        return self.answer(body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=commit)

    do_HEAD = do_GET


@pytest.fixture
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.requests = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def download(hub, tmp_path):
    """download(repo_id, revision, **environment) in a process of its own, as the client reads its
    settings when it is imported -> (what it fetched by name, folder), or the error's text."""

    def run(repo_id, revision=None, **environment):
        program = (
            "import sys; from jaxdp.models.hub import download\n"
            "from jaxdp.models.checkpoints import WeightsError\n"
            "try: print(download(sys.argv[1], sys.argv[2] or None))\n"
            "except WeightsError as error: print('error:', error)"
        )
        result = subprocess.run(
            [sys.executable, "-c", program, repo_id, revision or ""],
            env={
                **{n: v for n, v in os.environ.items() if not n.startswith("HF_")},
                "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
                "HF_HOME": str(tmp_path),
                "NO_PROXY": "127.0.0.1",
                **environment,
            },
            capture_output=True,
            text=True,
            check=True,
        )
        return result.stdout.removesuffix("\n")

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_one_format_is_fetched_once_and_then_found_offline(hub, download):
    folder = download("someone/all-formats")
    wanted = ("config.json", "vocab.txt", "model.safetensors")
    assert contents(folder) == {name: FILES[name] for name in wanted}
    assert Path(folder).name == COMMIT["main"]
    hub.requests.clear()
    assert download("someone/all-formats") == folder
    assert not [r for r in hub.requests if "/resolve/" in r]
    hub.requests.clear()
    assert download("someone/all-formats", HF_HUB_OFFLINE="1") == folder
    assert not hub.requests


def test_a_revision_is_another_snapshot(download):
    folder = download("someone/all-formats", "v1")
    assert Path(folder).name == COMMIT["v1"]
    assert contents(folder)["model.safetensors"] == b"weights v1"
    assert download("someone/all-formats", COMMIT["v1"]) == folder


def test_the_next_format_is_taken_where_the_best_is_missing(download):
    assert "pytorch_model.bin" in contents(download("someone/only-torch"))


@pytest.mark.parametrize(
    ("repo_id", "revision", "environment", "message"),
    [
        ("someone/unknown", None, {}, "no such model, or a private one; set HF_TOKEN"),
        ("someone/all-formats", "v9", {}, "no revision 'v9'"),
        ("someone/gated", None, {}, "access is restricted; set HF_TOKEN"),
        ("someone/all-formats", None, {"HF_HUB_OFFLINE": "1"}, "not (completely) in the cache"),
        ("someone/no-weights", None, {}, "holds no weights; expected one of model.safetensors, "),
        ("not/a/name", None, {}, "hub model not/a/name: Repo id must be"),
    ],
)
def test_errors_are_one_line_that_says_what_to_do(
    download, repo_id, revision, environment, message
):
    output = download(repo_id, revision, **environment)
    assert output.startswith(f"error: hub model {repo_id}")
    assert message in output and "\n" not in output


def test_no_server_and_no_cache(hub, download):
    output = download("someone/all-formats", HF_ENDPOINT="http://127.0.0.1:9")
    assert "not (completely) in the cache, and the hub cannot be reached" in output
