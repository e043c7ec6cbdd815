# SPDX-License-Identifier: Apache-2.0
"""The hub, with its real client, against a server on this machine that speaks its protocol."""

import base64
import hashlib
import json
import os
import shutil
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers_training import AFRESH, LABELS, run_script, smoke_config, write_workspace

from jaxdp.released import load
from jaxdp.run.interrupt import Interrupt
from jaxdp.run.monitor import SilentMonitor
from jaxdp.run.train import train

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
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/").split("/")
        api, path = path[:2] == ["api", "models"], path[2 * (path[0] == "api") :]
        repository, rest = "/".join(path[:2]), path[2:]
        if repository == "someone/gated":
            return self.answer(status=403, X_Error_Code="GatedRepo")
        if repository not in self.server.repositories:
            return self.answer(status=404, X_Error_Code="RepoNotFound")
        files = self.server.repositories[repository]
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
        body = files["/".join(rest[2:])] + (b" v1" if commit == COMMIT["v1"] else b"")
        return self.answer(body, ETag=f'"{hashlib.sha1(body).hexdigest()}"', X_Repo_Commit=commit)

    do_HEAD = do_GET

    def body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        content = b""  # in chunks, each with its length, until an empty one
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def do_POST(self):
        """The parts that an upload uses: files of weights go as LFS objects, the rest inline."""
        self.server.requests.append(f"{self.command} {self.path}")
        path = urllib.parse.urlsplit(self.path).path.strip("/").split("/")
        content = self.body()
        where = f"http://127.0.0.1:{self.server.server_port}"
        if path[-1] == "commit" or path[-2] == "commit":
            files = self.server.repositories["/".join(path[2:4])]
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            found = {
                "commitUrl": f"{where}/{'/'.join(path[2:4])}/commit/{COMMIT['main']}",
                "commitOid": COMMIT["main"],
            }
            return self.answer(json.dumps(found).encode())
        given = json.loads(content)
        if path[-1] == "create":
            repository = f"{given['organization']}/{given['name']}"
            if repository.startswith("other/"):
                return self.answer(b'{"error": "You have no rights here"}', 403)
            self.server.repositories.setdefault(repository, {})
            self.server.private = given["visibility"] == "private"
            found = {"url": f"{where}/{repository}"}
        elif path[-2] == "preupload":
            files = [(f["path"], f["path"].endswith(".safetensors")) for f in given["files"]]
            found = {"files": [
                {"path": p, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
                for p, lfs in files
            ]}  # fmt: skip
        elif path[-1] == "batch":
            found = {"transfer": "basic", "objects": [
                o | {"actions": {"upload": {"href": f"{where}/objects/{o['oid']}"}}}
                for o in given["objects"]
            ]}  # fmt: skip
        else:
            found = {"errors": [], "warnings": []}  # of the card's fields
        self.answer(json.dumps(found).encode(), Content_Type="application/json")

    def do_PUT(self):
        content = self.body()
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self.answer()


@pytest.fixture
def hub():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.requests, server.objects = [], {}
        server.repositories = {name: dict(files) for name, files in REPOSITORIES.items()}
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def client(hub, tmp_path, monkeypatch):
    """client(program, *arguments, **environment) -> what it prints, in a process of its own: the
    hub's client reads its settings when it is imported."""
    file = tmp_path / "program.py"
    for name in [name for name in os.environ if name.startswith("HF_")]:  # a developer's own
        monkeypatch.delenv(name)

    def run(program, *arguments, **environment):
        file.write_text(AFRESH + program)
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(tmp_path / "hub"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_test",
            "NO_PROXY": "127.0.0.1",
        }
        result = run_script(file, *arguments, **settings | environment)
        assert result.returncode == 0, result.stderr
        return result.stdout.removesuffix("\n")

    return run


@pytest.fixture
def download(client):
    """download(*repo_id or repo_id@revision, **environment) -> for each the folder that it is in,
    or the error's text."""

    def run(*models, **environment):
        program = (
            "import sys; from jaxdp.models.hub import download\n"
            "from jaxdp.models.checkpoints import WeightsError\n"
            "for model in sys.argv[1:]:\n"
            "    repo_id, _, revision = model.partition('@')\n"
            "    try: print(download(repo_id, revision or None))\n"
            "    except WeightsError as error: print('error:', error)"
        )
        return client(program, *models, **environment).split("\n")

    return run


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_one_format_is_fetched_once_and_then_found_offline(hub, download):
    (folder,) = download("someone/all-formats")
    wanted = ("config.json", "vocab.txt", "model.safetensors")
    assert contents(folder) == {name: FILES[name] for name in wanted}
    assert Path(folder).name == COMMIT["main"]
    hub.requests.clear()
    assert download("someone/all-formats") == [folder]
    assert not [r for r in hub.requests if "/resolve/" in r]
    hub.requests.clear()
    assert download("someone/all-formats", HF_HUB_OFFLINE="1") == [folder]
    assert not hub.requests


def test_a_revision_is_another_snapshot(download):
    folder, again = download("someone/all-formats@v1", f"someone/all-formats@{COMMIT['v1']}")
    assert Path(folder).name == COMMIT["v1"]
    assert contents(folder)["model.safetensors"] == b"weights v1"
    assert again == folder


def test_the_next_format_is_taken_where_the_best_is_missing(download):
    assert "pytorch_model.bin" in contents(*download("someone/only-torch"))


def test_errors_are_one_line_that_says_what_to_do(download):
    online = {
        "someone/unknown": "no such model, or a private one; set HF_TOKEN",
        "someone/all-formats@v9": "no revision 'v9'",
        "someone/gated": "access is restricted; set HF_TOKEN",
        "someone/no-weights": "holds no weights; expected one of model.safetensors, ",
        "not/a/name": "hub model not/a/name: Repo id must be",
    }
    for model, output in zip(online, download(*online), strict=True):
        assert output.startswith(f"error: hub model {model.partition('@')[0]}")
        assert online[model] in output
    (output,) = download("someone/all-formats", HF_HUB_OFFLINE="1")
    assert output.startswith("error: hub model someone/all-formats")
    assert "not (completely) in the cache" in output


def test_no_server_and_no_cache(hub, download):
    (output,) = download("someone/all-formats", HF_ENDPOINT="http://127.0.0.1:9")
    assert "not (completely) in the cache, and the hub cannot be reached" in output


PUSH = """
import sys, warnings
from jaxdp import load, push_to_hub
from jaxdp.cli import USER_ERRORS
repository, *options = sys.argv[1].split("+")
for release in sys.argv[2:]:
    try:
        print(push_to_hub(release, repository, **dict.fromkeys(options, True)))
    except USER_ERRORS as error:
        print("error:", error)
"""
LOAD = """
import sys, numpy
from jaxdp import load
classifier = load(sys.argv[1], base_model=sys.argv[2])
numpy.save(sys.argv[3], classifier.predict_proba(["heart normal.", "small opacity left."]))
print(classifier.labels, classifier.privacy["epsilon"])
"""


def trained(folder, **changes):
    """The directory of a finished run of a head."""
    write_workspace(folder)
    head = dict(train__mode="head", head_stage__steps=0, centering__l2_clip_norm=None)
    config = smoke_config(folder, **head, **changes)
    train(config, resume=False, interrupt=Interrupt(), monitor=SilentMonitor())
    return folder / "runs" / "smoke"


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once")
    trained(folder, run__research_seed=None)
    return folder


@pytest.fixture
def run(once, tmp_path):
    """A copy to spoil, beside its backbone."""
    shutil.copytree(once, tmp_path, dirs_exist_ok=True)
    return tmp_path / "runs" / "smoke"


def test_a_release_goes_to_the_hub_whole_and_alone_and_comes_back(hub, client, run, tmp_path):
    repository, release = "someone/new", run / "release"
    hub.repositories[repository] = {"adapter/old.txt": b"of an earlier push", ".gitattributes": b""}
    assert client(PUSH, repository, run).endswith(f"/commit/{COMMIT['main']}")
    held = dict(hub.repositories[repository])
    assert held.pop(".gitattributes") == b""
    card = held.pop("README.md").decode()
    files = {str(p.relative_to(release)): p.read_bytes() for p in release.rglob("*.*")}
    assert held == files
    assert hub.private is True
    statement = json.loads(files["privacy.json"])
    fields = yaml.safe_load(card.split("---\n")[1])["differential_privacy"]
    assert fields == {name: statement[name] for name in fields} and fields["epsilon"] > 0
    assert files["PRIVACY.md"].decode() in card and ", ".join(LABELS) in card

    said = client(LOAD, repository, tmp_path / "backbone", tmp_path / "there.npy")
    assert said == f"{LABELS} {statement['epsilon']}"
    here = load(run).predict_proba(["heart normal.", "small opacity left."])
    np.testing.assert_array_equal(np.load(tmp_path / "there.npy"), here)


def test_a_release_that_is_not_sound_is_not_pushed(hub, client, run, tmp_path):
    unsound = {
        "not belong in a release: adap": lambda r: (r / "adapter" / "notes.txt").write_text("x"),
        "in a release: secret": lambda r: (r / "secret").symlink_to(r.parent / "private"),
        "does not say what privacy": lambda r: (r / "PRIVACY.md").write_text("perfect privacy"),
        "missing: privacy.json": lambda r: (r / "privacy.json").unlink(),
    }
    copies = [shutil.copytree(run, tmp_path / str(i)) / "release" for i in range(len(unsound))]
    for change, copy in zip(unsound.values(), copies, strict=True):
        change(copy)
    said = client(PUSH, "someone/new", *copies).split("\n")
    for words, line in zip(unsound, said, strict=True):
        assert line.startswith("error: not pushed, ") and words in line
    assert not [r for r in hub.requests if not r.startswith("GET")]
    assert "someone/new" not in hub.repositories


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{}, {"privacy__epsilon": None, "run__research_seed": None}], ids=["seed", "none"]
)
def test_what_protects_nobody_is_pushed_only_on_purpose(hub, client, tmp_path, changes):
    release = trained(tmp_path, **changes) / "release"
    assert "may reveal reports; push_to_hub(" in client(PUSH, "someone/new", release)
    assert not hub.requests
    assert "/commit/" in client(PUSH, "someone/new+unprotected", release)


def test_no_rights_to_push_are_said_in_one_line(client, run):
    said = client(PUSH, "other/repository", run)
    assert said.startswith("error: hub model other/repository: ") and "\n" not in said


def test_no_server_to_push_to_is_said_in_one_line(client, run):
    said = client(PUSH, "someone/new", run, HF_ENDPOINT="http://127.0.0.1:9")
    assert said.startswith("error: hub model someone/new: ") and "\n" not in said
