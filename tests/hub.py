"""A stand-in for the Hugging Face Hub: models in memory, a log of what was asked, faults on demand.

It answers what `huggingface_hub` asks to create a model or a Space, commit to it and download it, large files by git
LFS. The id of a Space here is spaces/owner/name.
`python tests/hub.py` runs one by itself.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".onnx", ".bin")
Files = dict[str, bytes]


class Refused(Exception):
    """An answer that is an error: its status, the Hub's code for it, and a message."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Repo:
    """A model: its commits, oldest first, and the branches that point at them."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})

    def commit(self, branch: str, files: Files, deleted: Sequence[str] = ()) -> str:
        sha = hashlib.sha1(repr((len(self.commits), branch, sorted(files.items()))).encode()).hexdigest()
        self.commits[sha] = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        for path in deleted:
            del self.commits[sha][path]
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha


@dataclass
class Answer:
    """A response, and the file that it is, if it is one."""

    body: object = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    name: tuple[str, str] | None = None


class Hub:
    """Runs in a thread, for the length of a `with` block.

    Attributes:
        url: For HF_ENDPOINT.
        repos: Models by their id.
        requests: What was asked, as "GET /me/mine/resolve/main/config.json".
        cuts: How many more times a download is broken off in its middle, by the model's id and the file.
        wrong: What is sent in place of a file, by the same; its hash is announced as before.
        failing: Status of every commit; 0: commits succeed.
        kept: Whether no model may be deleted.
        messages: Of the commits.
        query: Parameters of the last request.
    """

    def __init__(self, port: int = 0):
        self.repos: dict[str, Repo] = {}
        self.objects: Files = {}  # of git LFS, by SHA-256
        self.requests: list[str] = []
        self.cuts: Counter[tuple[str, str]] = Counter()
        self.wrong: dict[tuple[str, str], bytes] = {}
        self.failing = 0
        self.kept = False
        self.messages: list[str] = []
        self.query: dict[str, list[str]] = {}
        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo_id: str, files: Files, **options: bool) -> None:
        """Puts a model there as if it had been pushed."""
        self.repos[repo_id] = Repo(**options)
        self.repos[repo_id].commit("main", files)

    def asked(self, text: str) -> list[str]:
        return [request for request in self.requests if text in request]

    def repo(self, repo_id: str, token: str | None) -> Repo:
        repo = self.repos.get(repo_id)
        if repo is None or (repo.private and not token):  # the Hub does not tell one from the other
            raise Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        return repo

    def whoami(self, body: bytes, token: str | None) -> Answer:
        if not token:
            raise Refused(401, "", "Invalid username or password.")
        return Answer({"name": "me", "type": "user", "orgs": []})

    def create(self, body: bytes, token: str | None) -> Answer:
        if not token:
            raise Refused(401, "", "Invalid username or password.")
        wanted = json.loads(body)
        repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if wanted.get("type") == "space":
            repo_id = f"spaces/{repo_id}"
            if wanted.get("sdk") not in ("gradio", "docker", "static"):
                raise Refused(400, "", "a Space needs an sdk")
        page = {"url": f"{self.url}/{repo_id}"}
        if repo_id in self.repos:
            return Answer({"error": "You already created this model repo", **page}, 409)
        # The organization "closed" makes its repositories private by default.
        default = "private" if repo_id.startswith("closed/") else "public"
        self.repos[repo_id] = Repo(private=wanted.get("visibility", default) == "private")
        return Answer(page)

    def delete(self, body: bytes, token: str | None) -> Answer:
        wanted = json.loads(body)
        repo_id = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        self.repo(repo_id, token)
        if self.kept:
            raise Refused(403, "", "this token may not delete")
        del self.repos[repo_id]
        return Answer({})

    def validate(self, body: bytes, token: str | None) -> Answer:
        content = json.loads(body)["content"]
        found = content.startswith("---\n") and "\n---\n" in content[4:]
        return Answer(
            {"errors": [], "warnings": [] if found else [{"message": "empty or missing yaml metadata"}]}
        )

    def branch(self, body: bytes, token: str | None, repo_id: str, name: str) -> Answer:
        repo = self.repo(repo_id, token)
        if name in repo.branches:
            raise Refused(409, "", f"Reference already exists: refs/heads/{name}")
        repo.branches[name] = repo.branches["main"]
        return Answer({})

    def preupload(self, body: bytes, token: str | None, repo_id: str, revision: str) -> Answer:
        self.repo(repo_id, token).find(revision)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return Answer({"files": modes})

    def batch(self, body: bytes, token: str | None, repo_id: str) -> Answer:
        self.repo(repo_id, token)
        wanted = json.loads(body)["objects"]
        for each in wanted:
            if each["oid"] not in self.objects:
                each["actions"] = {"upload": {"href": f"{self.url}/lfs/{each['oid']}"}}
        return Answer({"transfer": "basic", "objects": wanted})

    def put(self, body: bytes, token: str | None, oid: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "", "the SHA-256 is another one")
        self.objects[oid] = body
        return Answer({})

    def commit(self, body: bytes, token: str | None, repo_id: str, revision: str) -> Answer:
        if self.failing:
            raise Refused(self.failing, "", "the disks are full")
        repo = self.repo(repo_id, token)
        head = repo.find(revision)
        files, deleted = {}, []
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit") not in (None, head):
                    raise Refused(412, "", "A commit has happened since. Please refresh and try again.")
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                deleted.append(value["path"])
        pull = f"refs/pr/{len(repo.commits)}"
        if self.query.get("create_pr"):
            repo.branches[pull] = head
            revision = pull
        sha = repo.commit(revision, files, deleted)
        answer = {"commitUrl": f"{self.url}/{repo_id}/commit/{sha}", "commitOid": sha}
        if revision == pull:
            answer["pullRequestUrl"] = f"{self.url}/{repo_id}/discussions/{pull.rpartition('/')[2]}"
        return Answer(answer)

    def about(self, body: bytes, token: str | None, repo_id: str, revision: str) -> Answer:
        repo = self.repo(repo_id, token)
        sha = repo.find(revision)
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        return Answer({"id": repo_id, "sha": sha, "private": repo.private, "siblings": siblings})

    def tree(self, body: bytes, token: str | None, repo_id: str, revision: str) -> Answer:
        repo = self.repo(repo_id, token)
        return Answer([_entry(path, content) for path, content in repo.commits[repo.find(revision)].items()])

    def resolve(self, body: bytes, token: str | None, repo_id: str, revision: str, path: str) -> Answer:
        repo = self.repo(repo_id, token)
        if repo.gated:
            raise Refused(403, "GatedRepo", f"Access to model {repo_id} is restricted")
        sha = repo.find(revision)
        if path not in repo.commits[sha]:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content = repo.commits[sha][path]
        headers = {"ETag": f'"{_digest(path, content)}"', "X-Repo-Commit": sha}
        return Answer(self.wrong.get((repo_id, path), content), headers=headers, name=(repo_id, path))


class Handler(BaseHTTPRequestHandler):
    """Finds the answer to a request, and sends it."""

    protocol_version = "HTTP/1.1"  # connections are kept, as by the real one

    def answer(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        hub.query = parse_qs(urlsplit(self.path).query)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            answer = self.find(path, body, self.headers.get("Authorization"))
        except Refused as refused:
            codes = {"X-Error-Code": refused.code, "X-Error-Message": str(refused)}
            answer = Answer({"error": str(refused)}, refused.status, codes)
        self.send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def find(self, path: str, body: bytes, token: str | None) -> Answer:
        hub = self.server.hub
        method = "GET" if self.command == "HEAD" else self.command
        for (verb, pattern), reply in ROUTES.items():
            if verb == method and (found := re.fullmatch(pattern, path)):
                return reply(hub, body, token, *found.groups())
        raise Refused(404, "", f"the stand-in knows no {self.command} {path}")

    def send(self, answer: Answer) -> None:
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(body))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "GET" and self.server.hub.cuts[answer.name] > 0:
            self.server.hub.cuts[answer.name] -= 1
            body, self.close_connection = body[: len(body) // 2], True
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr: the requests are in `Hub.requests`."""


REPO = "((?:spaces/)?[^/]+/[^/]+)"
MODEL = "/api/(?:models/)?" + REPO
ROUTES: dict[tuple[str, str], Callable[..., Answer]] = {
    ("POST", "/api/repos/create"): Hub.create,
    ("DELETE", "/api/repos/delete"): Hub.delete,
    ("GET", "/api/whoami-v2"): Hub.whoami,
    ("POST", "/api/validate-yaml"): Hub.validate,
    ("POST", MODEL + "/branch/(.+)"): Hub.branch,
    ("POST", MODEL + "/preupload/(.+)"): Hub.preupload,
    ("POST", "/" + REPO + r"\.git/info/lfs/objects/batch"): Hub.batch,
    ("PUT", r"/lfs/(\w+)"): Hub.put,
    ("POST", MODEL + "/commit/(.+)"): Hub.commit,
    ("GET", MODEL): lambda hub, body, token, repo_id: hub.about(body, token, repo_id, "main"),
    ("GET", MODEL + "/revision/(.+)"): Hub.about,
    ("GET", MODEL + "/tree/(.+)"): Hub.tree,
    ("GET", "/" + REPO + r"/resolve/([^/]+)/(.+)"): Hub.resolve,
}


def _digest(path: str, content: bytes) -> str:
    """The SHA-256 of a large file, the git blob's id of another."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict:
    digest = _digest(path, content)
    entry = {"type": "file", "path": path, "size": len(content), "oid": digest[:40]}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
    return entry


if __name__ == "__main__":
    with Hub(port=8800) as running:
        print(f"HF_ENDPOINT={running.url} HF_TOKEN=any HF_HUB_DISABLE_XET=1; Ctrl-C ends it")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
