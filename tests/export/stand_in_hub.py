"""A server that speaks as much of the Hugging Face hub's language as an upload needs, and keeps what it is given."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class StandInHub(ThreadingHTTPServer):
    """The hub of one test."""

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.token = token
        self.objects: dict[str, bytes] = {}  # large files by their sha256
        self.files: dict[str, bytes] = {}  # of the one repository
        self.created: list[str] = []
        self.message = ""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    server: StandInHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("authorization") != f"Bearer {self.server.token}":
            self._say({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.server.created.append(name)
            self._say({"url": f"{self.server.address}/{name}", "name": name, "id": name})
        elif self.path == "/api/validate-yaml":
            self._say({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = ("lfs" if file["path"].endswith(".safetensors") else "regular" for file in files)
            self._say(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                        for file, mode in zip(files, modes, strict=True)
                    ]
                }
            )
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            actions = {
                each["oid"]: {"upload": {"href": f"{self.server.address}/objects/{each['oid']}"}}
                for each in json.loads(body)["objects"]
            }
            objects = [{"oid": oid, "size": 1, "actions": action} for oid, action in actions.items()]
            self._say({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
            self._say(
                {"success": True, "commitOid": "c0ffee", "commitUrl": f"{self.server.address}/me/it/commit/c0ffee"}
            )
        else:
            self._say({"error": f"what is {self.path}"}, 404)

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self._body()
        self._say({})

    def do_GET(self) -> None:
        self._say({"error": f"what is {self.path}"}, 404)

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.server.message = value["summary"]
            elif line["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.server.files[value["path"]] = self.server.objects[value["oid"]]

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _say(self, answer: dict[str, Any], status: int = 200) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def stand_in_hub(token: str) -> Iterator[StandInHub]:
    """The hub while the block runs."""
    with StandInHub(token) as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
