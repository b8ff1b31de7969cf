"""A small Hugging Face hub on this machine: repositories of files in memory, served over HTTP as the hub serves them,
with a log of the requests and failures on demand; and processes that ask it for models."""

import hashlib
import http.server
import json
import subprocess
import sys
import threading
import urllib.parse

NAME = "hf:owner/repo/folder/demo.pth"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `repos`, a dict of "owner/repo" -> {path: bytes}, until it is closed."""

    def __init__(self, repos):
        self.repos = repos
        self.gated = set()
        self.requests = []  # (method, path, Range header or None)
        self.breaks_after = None  # bytes of a file's content before the connection breaks
        self.stalls_after = None  # bytes before it says nothing any more
        self.ignores_ranges = False
        self.hash = lambda data: hashlib.sha256(data).hexdigest()
        self.stalled, self.closed = threading.Event(), threading.Event()
        self.redirects = False  # to another host, as for large files
        self.authorizations = []  # (host, Authorization header or None)
        self.status = None  # what every request is answered with
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.closed.set()
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def downloads(self):
        return [entry for entry in self.requests if entry[0] == "GET" and "/resolve/" in entry[1]]

    def _handler(hub):
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.answer()

            def answer(self):
                path = urllib.parse.unquote(self.path.split("?")[0])
                hub.requests.append((self.command, path, self.headers.get("Range")))
                self.host = self.headers["Host"].split(":")[0]
                hub.authorizations.append((self.host, self.headers.get("Authorization")))
                if hub.status is not None:
                    return self.reply(hub.status)
                parts = path.strip("/").split("/")
                if parts[:2] == ["api", "models"]:
                    return self.describe("/".join(parts[2:4]), parts[4:])
                if len(parts) > 4 and parts[2] == "resolve":
                    return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
                return self.reply(404)

            def known(self, repo, revision):
                if repo not in hub.repos:
                    self.reply(401, {"X-Error-Code": "RepoNotFound"})
                elif revision not in ("main", "v1", COMMIT):
                    self.reply(404, {"X-Error-Code": "RevisionNotFound"})
                else:
                    return True

            def describe(self, repo, rest):
                if not self.known(repo, rest[1] if len(rest) > 1 else "main"):
                    return
                files = hub.repos[repo]
                siblings = [{"rfilename": name} for name in files]
                body = {
                    "id": repo,
                    "sha": COMMIT,
                    "siblings": siblings,
                    "tags": [],
                    "private": False,
                    "downloads": 0,  # early clients insist
                    "likes": 0,
                }
                self.reply(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

            def resolve(self, repo, revision, file):
                if not self.known(repo, revision):
                    return
                if repo in hub.gated:
                    return self.reply(401, {"X-Error-Code": "GatedRepo"})
                data = hub.repos[repo].get(file)
                if data is None:
                    return self.reply(
                        404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}
                    )
                headers = {
                    "X-Repo-Commit": COMMIT,
                    "ETag": f'"{hub.hash(data)}"',
                    "Accept-Ranges": "bytes",
                }
                if hub.redirects and self.host != "localhost":
                    headers["X-Linked-Etag"], headers["ETag"] = headers["ETag"], '"another"'
                    headers["X-Linked-Size"] = str(len(data))
                    port = hub.server.server_address[1]
                    headers["Location"] = f"http://localhost:{port}{self.path}"
                    return self.reply(302, headers)
                wanted, begin, status = self.headers.get("Range"), 0, 200
                if wanted and not hub.ignores_ranges:
                    begin, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
                    headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
                self.reply(status, headers, data[begin:])

            def reply(self, status, headers=None, body=b""):
                self.send_response(status)
                for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "HEAD":
                    return
                if hub.breaks_after is not None and len(body) > hub.breaks_after:
                    self.wfile.write(body[: hub.breaks_after])
                    self.wfile.flush()
                    hub.status = 503  # and it stays away
                    self.close_connection = True
                    return
                if hub.stalls_after is not None and len(body) > hub.stalls_after:
                    self.wfile.write(body[: hub.stalls_after])
                    self.wfile.flush()
                    hub.stalled.set()
                    hub.closed.wait(60)
                    self.close_connection = True
                    return
                self.wfile.write(body)

        return Handler


# What happens, as JSON on standard output, which has nothing else; small pieces, so that a broken download has some.
CODE = """
import json, os, sys
import huggingface_hub.constants, huggingface_hub.file_download
for module in (huggingface_hub.constants, huggingface_hub.file_download):
    module.DOWNLOAD_CHUNK_SIZE = 1 << 16
import rwkv_engine as rwkv
from rwkv_engine import hub
before = dict(os.environ)
found = {"progress": []}
def progress(done, total):
    found["progress"].append((done, total))
try:
    EXEC
except rwkv.Error as error:
    found["error"] = str(error)
import logging
assert dict(os.environ) == before
assert not any(handler.filters for handler in logging.getLogger("huggingface_hub").handlers)
print(json.dumps(found))
"""
PATH = "found['path'] = os.fspath(hub.download(sys.argv[1], progress))"


def ask(child, name=NAME, code=PATH, **variables):
    done = subprocess.run(
        [sys.executable, "-c", CODE.replace("EXEC", code.replace("\n", "\n    ")), name],
        env={**child, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def command(child, *arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", "rwkv_engine", *arguments],
        env={**child, **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )
