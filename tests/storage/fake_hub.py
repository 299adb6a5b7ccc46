"""A small Hugging Face Hub on this machine: repositories in memory, a token, errors by the names of repositories."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

TOKEN = "hf_secretOfTheTest"
COMMIT = "c0ffee" + 34 * "0"


class FakeHub(http.server.ThreadingHTTPServer):
  """Serves `repositories`, {owner/name: {path: bytes}}; `requests` keeps what was asked for."""

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.repositories: dict[str, dict[str, bytes]] = {}
    self.requests: list[str] = []
    self.private: dict[str, bool] = {}
    self.constants = None  # of the huggingface_hub that asks

  @property
  def address(self) -> str:
    return f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def running():
  """Yields a hub that answers in a thread."""
  with FakeHub() as hub:
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
      yield hub
    finally:
      hub.shutdown()
      thread.join()


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  server: FakeHub

  def log_message(self, *arguments):
    pass

  def answer(self, body: bytes | dict | list, status: int = 200, **headers: str) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    self.send_response(status)
    for key, value in ({"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT} | headers).items():
      self.send_header(key.replace("_", "-"), value)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(data)

  def refuse(self, status: int, code: str = "") -> None:
    # A real error may repeat what was sent: the message must not reach the user.
    self.answer({"error": f"{code} {self.headers['Authorization']}"}, status, X_Error_Code=code)

  def do_GET(self):
    path = urllib.parse.unquote(self.path.partition("?")[0])
    self.server.requests.append(f"{self.command} {path}")
    if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(revision|tree)/([^/]+)", path):
      name, kind, revision = match.groups()
      if "gated" in name:
        return self.refuse(403, "GatedRepo")
      if "refused" in name:
        return self.answer({}, 401, X_Error_Message="Invalid credentials in Authorization header")
      if "broken" in name:
        return self.refuse(501)
      if name not in self.server.repositories:
        return self.refuse(401, "RepoNotFound")
      if revision not in ("main", COMMIT):
        return self.refuse(404, "RevisionNotFound")
      files = self.server.repositories[name]
      if kind == "revision":
        return self.answer({"id": name, "sha": COMMIT, "siblings": [{"rfilename": key} for key in files]})
      return self.answer([
        {"type": "file", "path": key, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for key, data in files.items()
      ])  # fmt: skip
    match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
    data = self.server.repositories.get(match[1], {}).get(match[3]) if match else None
    if data is None:
      return self.refuse(404, "EntryNotFound")
    return self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"')

  do_HEAD = do_GET

  def do_POST(self):
    body = self.rfile.read(int(self.headers["Content-Length"]))
    self.server.requests.append(f"POST {self.path}")
    if self.headers["Authorization"] != f"Bearer {TOKEN}":
      return self.refuse(401)
    if self.path == "/api/repos/create":
      content = json.loads(body)
      name = f"{content['organization']}/{content['name']}"
      if name.startswith("others/"):
        return self.refuse(403)
      self.server.repositories.setdefault(name, {})
      self.server.private[name] = content.get("visibility") == "private" or content.get("private", False)
      return self.answer({"url": f"{self.server.address}/{name}", "id": name})
    name = re.match(r"/api/models/([\w.-]+/[\w.-]+)/", self.path)[1]
    if "/preupload/" in self.path:
      paths = [file["path"] for file in json.loads(body)["files"]]
      files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]
      return self.answer({"files": files})
    for line in map(json.loads, body.splitlines()):
      if line["key"] == "file":
        self.server.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
    url = f"{self.server.address}/{name}/commit/{COMMIT}"
    return self.answer({"commitOid": COMMIT, "commitUrl": url, "success": True})
