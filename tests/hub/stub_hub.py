"""A small Hugging Face Hub on loopback, kept in memory: just what the real client asks for when it pushes and loads.

Written from what `huggingface_hub` sends and expects. It announces no Xet storage, so the client has to have Xet off.
"""

import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import huggingface_hub.hf_api
import pytest
from huggingface_hub import constants

USER = "me"
WRITE_TOKEN = "hf_write"
READ_TOKEN = "hf_read"
TOKENS = (WRITE_TOKEN, READ_TOKEN)
LFS_SUFFIXES = (".safetensors", ".png")
CLIENT_VARIABLES = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class StubCommit:
    oid: str
    message: str
    files: Mapping[str, bytes]


@dataclass
class StubRepo:
    private: bool
    gated: bool = False
    heads: dict[str, StubCommit] = field(default_factory=dict)
    """Newest commit of each branch and of each pull request (`refs/pr/N`)."""
    history: list[StubCommit] = field(default_factory=list)

    def commit(self, revision: str, message: str, files: Mapping[str, bytes]) -> StubCommit:
        oid = hashlib.sha1(f"{id(self)} {len(self.history)}".encode()).hexdigest()
        self.heads[revision] = StubCommit(oid, message, dict(files))
        self.history.append(self.heads[revision])
        return self.heads[revision]


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, Sequence[str]]
    token: str | None
    body: bytes

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")


@dataclass(frozen=True)
class Reply:
    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, **values: str) -> None:
        self.reply = as_json({"error": message, **values}, status)
        self.reply.headers["X-Error-Message"] = message
        if code:
            self.reply.headers["X-Error-Code"] = code


class StubHub:
    """The Hub's state and its answers.

    Attributes:
        endpoint: Its address, for `HF_ENDPOINT`.
        repos: Repositories by id.
        requests: Method and path of every request so far.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.repos: dict[str, StubRepo] = {}
        self.requests: list[str] = []
        self._blobs: dict[str, bytes] = {}
        self._failures: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()

    def put(
        self, repo_id: str, files: Mapping[str, bytes], *, private: bool = False, gated: bool = False
    ) -> StubCommit:
        """Fill a repository, as somebody did before."""
        repo = self.repos.setdefault(repo_id, self._new_repo(private))
        repo.gated = gated
        return repo.commit("main", "put", {**repo.heads["main"].files, **files})

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Files of a repository, without the `.gitattributes` that the Hub makes."""
        return {k: v for k, v in self.repos[repo_id].heads[revision].files.items() if k != ".gitattributes"}

    def commits(self, repo_id: str) -> list[str]:
        """Messages of all commits to a repository, the oldest first, without the one that made it."""
        return [commit.message for commit in self.repos[repo_id].history[1:]]

    def fail(self, path_part: str, status: int, message: str) -> None:
        """Refuse every request from now on whose path has this part."""
        self._failures[path_part] = status, message

    def environment(self, home: Path, token: str | None = WRITE_TOKEN) -> dict[str, str]:
        """Environment in which a new process talks to this Hub, with its cache and login under `home`."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(CLIENT_VARIABLES)}
        login = {} if token is None else {"HF_TOKEN": token}
        return inherited | login | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }  # fmt: skip

    def run_tosa(
        self, *arguments: str, home: Path, cwd: Path | None = None, token: str | None = WRITE_TOKEN
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line in a process of its own against this Hub."""
        command = [sys.executable, "-c", "from tosa_cli.cli.app import main; main()", *arguments]
        environment = self.environment(home, token)
        return subprocess.run(command, cwd=cwd, env=environment, text=True, capture_output=True, timeout=300)

    def answer(self, request: Request) -> Reply:
        with self._lock:
            self.requests.append(f"{request.method} {request.path}")
            try:
                return self._route(request)
            except Refusal as refusal:
                return refusal.reply

    def _route(self, request: Request) -> Reply:
        for part, (status, message) in self._failures.items():
            if part in request.path:
                raise Refusal(status, message)
        if request.token is not None and request.token not in TOKENS:
            raise Refusal(401, "Invalid credentials in Authorization header")
        for methods, pattern, handle in self._routes():
            match = re.fullmatch(pattern, request.path)
            if match and request.method in methods.split():
                return handle(request, *(unquote(group) if group else "" for group in match.groups()))
        raise Refusal(404, f"The stub knows no {request.method} {request.path}")

    def _routes(self) -> tuple[tuple[str, str, Callable[..., Reply]], ...]:
        repo = "([^/]+/[^/]+)"
        return (
            ("GET", "/api/whoami-v2", self._whoami),
            ("POST", "/api/repos/create", self._create_repo),
            ("POST", "/api/validate-yaml", lambda request: as_json({"errors": [], "warnings": []})),
            ("GET", f"/api/models/{repo}(?:/revision/([^/]+))?", self._model_info),
            ("GET", f"/api/models/{repo}/tree/([^/]+)", self._tree),
            ("GET", f"/api/models/{repo}/refs", self._refs),
            ("POST", f"/api/models/{repo}/branch/([^/]+)", self._create_branch),
            ("POST", f"/api/models/{repo}/preupload/([^/]+)", self._preupload),
            ("POST", f"/{repo}[.]git/info/lfs/objects/batch", self._lfs_batch),
            ("PUT", "/storage/([0-9a-f]{64})", self._lfs_upload),
            ("POST", f"/api/models/{repo}/commit/([^/]+)", self._commit),
            ("GET HEAD", f"/{repo}/resolve/([^/]+)/(.+)", self._resolve),
        )

    def _whoami(self, request: Request) -> Reply:
        if request.token is None:
            raise Refusal(401, "Invalid username or password.")
        role = "write" if request.token == WRITE_TOKEN else "read"
        return as_json({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": role}}})

    def _create_repo(self, request: Request) -> Reply:
        wanted = request.json()
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        self._check_write(request, repo_id)
        if repo_id in self.repos:
            raise Refusal(409, "You already created this model repo", url=f"{self.endpoint}/{repo_id}")
        # `private` is what version 1 of the client sends, `visibility` what version 2 does.
        self.repos[repo_id] = self._new_repo(wanted.get("visibility") == "private" or bool(wanted.get("private")))
        return as_json({"url": f"{self.endpoint}/{repo_id}", "name": repo_id})

    def _model_info(self, request: Request, repo_id: str, revision: str) -> Reply:
        repo = self._find_repo(request, repo_id)
        head = self._find_commit(repo, revision or "main")
        siblings = [{"rfilename": name} for name in head.files]
        return as_json({"id": repo_id, "sha": head.oid, "private": repo.private, "siblings": siblings, "tags": []})

    def _tree(self, request: Request, repo_id: str, revision: str) -> Reply:
        head = self._find_commit(self._find_repo(request, repo_id), revision)
        entries = [
            {"type": "file", "path": name, "size": len(content), "oid": etag(name, content)}
            for name, content in head.files.items()
        ]
        return Reply(json.dumps(entries).encode())

    def _refs(self, request: Request, repo_id: str) -> Reply:
        heads = self._find_repo(request, repo_id).heads
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": head.oid}
            for name, head in heads.items()
            if not name.startswith("refs/")
        ]
        return as_json({"branches": branches, "converts": [], "tags": []})

    def _create_branch(self, request: Request, repo_id: str, branch: str) -> Reply:
        self._check_write(request, repo_id)
        repo = self._find_repo(request, repo_id)
        if branch in repo.heads:
            raise Refusal(409, f"Reference already exists: {branch}")
        if branch.startswith("refs/"):
            raise Refusal(400, f"Invalid reference for a branch: {branch}")
        repo.heads[branch] = self._find_commit(repo, request.json().get("startingPoint", "main"))
        return as_json({})

    def _preupload(self, request: Request, repo_id: str, revision: str) -> Reply:
        if not request.query.get("create_pr"):
            self._check_write(request, repo_id)
        head = self._find_commit(self._find_repo(request, repo_id), revision)
        files = []
        for file in request.json()["files"]:
            name = file["path"]
            oid = etag(name, head.files[name]) if name in head.files else None
            mode = "lfs" if name.endswith(LFS_SUFFIXES) else "regular"
            files.append({"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return as_json({"files": files})

    def _lfs_batch(self, request: Request, repo_id: str) -> Reply:
        self._find_repo(request, repo_id)
        objects = []
        for wanted in request.json()["objects"]:
            upload = {"upload": {"href": f"{self.endpoint}/storage/{wanted['oid']}"}}
            known = wanted["oid"] in self._blobs
            objects.append({"oid": wanted["oid"], "size": wanted["size"], **({} if known else {"actions": upload})})
        return as_json({"transfer": "basic", "objects": objects})

    def _lfs_upload(self, request: Request, oid: str) -> Reply:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise Refusal(400, "The content does not have the hash that was announced")
        self._blobs[oid] = request.body
        return Reply()

    def _commit(self, request: Request, repo_id: str, revision: str) -> Reply:
        is_pr = bool(request.query.get("create_pr"))
        if not is_pr:
            self._check_write(request, repo_id)
        repo = self._find_repo(request, repo_id)
        if revision not in repo.heads:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files, message = dict(repo.heads[revision].files), ""
        for line in request.body.splitlines():
            key, value = json.loads(line)["key"], json.loads(line)["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self._blobs[value["oid"]]
            else:
                raise Refusal(400, f"The stub knows no operation {key}")
        number = 1 + sum(name.startswith("refs/pr/") for name in repo.heads)
        commit = repo.commit(f"refs/pr/{number}" if is_pr else revision, message, files)
        page = f"{self.endpoint}/{repo_id}"
        pull_request = {"pullRequestUrl": f"{page}/discussions/{number}"} if is_pr else {}
        return as_json({"commitUrl": f"{page}/commit/{commit.oid}", "commitOid": commit.oid, **pull_request})

    def _resolve(self, request: Request, repo_id: str, revision: str, name: str) -> Reply:
        repo = self._find_repo(request, repo_id)
        if repo.gated:
            status = 401 if request.token is None else 403
            raise Refusal(status, f"Access to model {repo_id} is restricted.", "GatedRepo")
        head = self._find_commit(repo, revision)
        if name not in head.files:
            refusal = Refusal(404, "Entry not found", "EntryNotFound")
            refusal.reply.headers["X-Repo-Commit"] = head.oid
            raise refusal
        headers = {"ETag": f'"{etag(name, head.files[name])}"', "X-Repo-Commit": head.oid}
        return Reply(head.files[name], headers=headers)

    def _find_repo(self, request: Request, repo_id: str) -> StubRepo:
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and request.token is None):
            # As on the Hub: to a stranger, a private repository and none at all look the same.
            self._refuse_repo(request.token)
        return repo

    def _refuse_repo(self, token: str | None) -> NoReturn:
        if token is None:
            raise Refusal(401, "Invalid username or password.", "RepoNotFound")
        raise Refusal(404, "Repository not found", "RepoNotFound")

    def _find_commit(self, repo: StubRepo, revision: str) -> StubCommit:
        for commit in repo.history:
            if commit.oid == revision:
                return commit
        if revision not in repo.heads:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo.heads[revision]

    def _check_write(self, request: Request, repo_id: str) -> None:
        if request.token is None:
            raise Refusal(401, "Invalid username or password.")
        namespace = repo_id.partition("/")[0]
        if request.token != WRITE_TOKEN or namespace != USER:
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')

    def _new_repo(self, private: bool) -> StubRepo:
        repo = StubRepo(private)
        repo.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return repo


def as_json(values: Mapping[str, Any], status: int = 200) -> Reply:
    return Reply(json.dumps(values).encode(), status, {"Content-Type": "application/json"})


def etag(name: str, content: bytes) -> str:
    """The Hub's id of a file's content: git's hash, or the SHA-256 of what is stored with LFS."""
    if name.endswith(LFS_SUFFIXES):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


class _Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = StubHub(f"http://127.0.0.1:{self.server_address[1]}")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: without, every answer waits for an acknowledgement

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        reply = self.server.hub.answer(Request(self.command, url.path, parse_qs(url.query), token, self._read_body()))
        self.send_response(reply.status)
        for key, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = handle_any

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)


@pytest.fixture(name="stub_hub")
def start_stub_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StubHub]:
    """A running, empty Hub that the client in this process talks to, logged in with `WRITE_TOKEN`."""
    server = _Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    point_client_at(server.hub.endpoint, monkeypatch, tmp_path / "hf_home")
    yield server.hub
    huggingface_hub.close_session()
    server.shutdown()
    server.server_close()


def point_client_at(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, home: Path, token: str | None = WRITE_TOKEN
) -> None:
    """Make the client in this process, and timm through it, talk to `endpoint`, with cache and login under `home`.

    The client reads its environment once, at import, so what it made of it is patched.
    """
    for key in os.environ:
        if key.startswith(CLIENT_VARIABLES):
            monkeypatch.delenv(key)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    for key in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(key, "127.0.0.1")
    for name, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    # The functions of the module, such as `huggingface_hub.model_info`, are methods of this one object.
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
    huggingface_hub.close_session()  # connections know the proxies of their time


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


def hub_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder, as they are put into a repository."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
