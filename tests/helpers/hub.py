"""A stand-in for the Hugging Face hub: the requests of an upload, answered by this process and kept in memory."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN, READ_ONLY, OWNER = "hf_right", "hf_read", "someone"


@dataclass
class Hub:
    """What the stand-in has: address, repositories with their files, whether they are private, and the requests."""

    address: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None: ...

    def _reply(self, content: Any, status: int = 200, error: str = "") -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if error:
            self.send_header("X-Error-Message", error)
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if length := self.headers.get("Content-Length"):
            return self.rfile.read(int(length))
        pieces = []  # a stream in chunks
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def do_GET(self) -> None:
        self.hub.requests.append(f"GET {self.path}")
        name = self.path.removeprefix("/api/models/").partition("?")[0]
        if name in self.hub.repos:
            self._reply({"id": name, "private": self.hub.private[name], "siblings": []})
        else:
            self._reply({}, 404, "Repository not found")

    def do_PUT(self) -> None:
        self.hub.requests.append(f"PUT {self.path}")
        self.hub.large[self.path.rpartition("/")[2]] = self._body()
        self._reply({})

    def do_POST(self) -> None:
        self.hub.requests.append(f"POST {self.path}")
        body = self._body()
        sent = self.headers.get("Authorization")
        if sent not in (f"Bearer {TOKEN}", f"Bearer {READ_ONLY}"):
            return self._reply({}, 401, "Invalid credentials in Authorization header")
        if self.path == "/api/validate-yaml":
            wrong = "license: [" in json.loads(body)["content"]
            errors = [{"message": '"license" must be a string'}] if wrong else []
            return self._reply({"errors": errors, "warnings": []}, 400 if wrong else 200)
        if sent == f"Bearer {READ_ONLY}":
            return self._reply({}, 403, "You don't have the rights to create a model under this namespace")
        repo = re.sub(r"^/(api/models/)?|(\.git/info|/preupload|/commit)/.*$", "", self.path)
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if "/preupload/" in self.path:
            files = [f["path"] for f in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".bin") else "regular" for path in files}
            return self._reply(
                {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            )
        if self.path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            found = [o | {"actions": {"upload": {"href": f"{self.hub.address}/large/{o['oid']}"}}} for o in wanted]
            return self._reply({"transfer": "basic", "objects": found})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.hub.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.repos[repo][value["path"]] = self.hub.large[value["oid"]]
        return self._reply(
            {"success": True, "commitOid": "c0ffee", "commitUrl": f"{self.hub.address}/{repo}/commit/c0ffee"}
        )

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if asked["name"] == "reserved":
            return self._reply({}, 400, "This name is reserved")
        known = name in self.hub.repos
        if not known:
            self.hub.repos[name] = {}
            self.hub.private[name] = asked.get("private", False) or asked.get("visibility") == "private"
        return self._reply({"url": f"{self.hub.address}/{name}", "name": name}, 409 if known else 200)


@contextmanager
def serving() -> Iterator[Hub]:
    """Context manager with a stand-in that listens on a port of this machine."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
