"""A server on the loopback address that answers uploads and downloads as the Hub does, large files too."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

LARGE = (".safetensors", ".onnx", ".jpg", ".png")
TASKS = {"image-to-image", "text-to-image"}
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "openrail++", "other"}


class FakeHub:
    """Repositories in memory.

    Attributes:
        repositories: By id: commits in order, each a name and the files by path.
        settings: What `create` was asked for, by id.
        requests: Method and path of each request.
        faults: Status by a part of the path; "cut" closes the connection in the middle of a download.
    """

    def __init__(self):
        self.repositories, self.settings, self.objects = {}, {}, {}
        self.requests, self.faults, self.messages = [], {}, []
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def put(self, name, files):
        """Add a commit with these files, and return its name."""
        commits = self.repositories.setdefault(name, [])
        merged = {**(commits[-1][1] if commits else {}), **files}
        commit = hashlib.sha1(repr(sorted((path, hash(data)) for path, data in merged.items())).encode())
        commits.append((commit.hexdigest(), merged))
        return commits[-1][0]

    def find(self, name, revision):
        """Return a commit and its files; None if there is no such repository or revision."""
        commits = self.repositories.get(name, [])
        if revision in ("main", None):
            return commits[-1] if commits else None
        return next((commit for commit in commits if commit[0] == revision), None)


def is_large(path):
    return path.endswith(LARGE)


def check_yaml(content):
    """Return what the Hub objects to in the front matter of a card."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if not match:
        return ["no front matter"]
    data = yaml.safe_load(match[1])
    errors = []
    if data.get("license") not in LICENSES:
        errors.append('"license" must be one of the known identifiers')
    if data.get("license") == "other" and not data.get("license_name"):
        errors.append('"license_name" is required')
    if data.get("pipeline_tag") not in TASKS:
        errors.append('"pipeline_tag" is not valid')
    for key in ("base_model", "datasets", "tags"):
        if not all(isinstance(value, str) for value in data.get(key, [])):
            errors.append(f'"{key}" must hold strings')
    if "model-index" in data:
        model_index_to_eval_results(data["model-index"])
    return errors


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: FakeHub

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def is_faulty(self):
        hub = self.server_hub
        hub.requests.append((self.command, self.path))
        for part, status in hub.faults.items():
            if part in self.path and status != "cut":
                length = int(self.headers.get("Content-Length") or 0)
                self.rfile.read(length)
                self.answer({"error": "refused"}, status)
                return True
        return False

    def do_PUT(self):
        if self.is_faulty():
            return
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server_hub.objects[self.path.rpartition("/")[2]] = data
        self.answer(b"")

    def do_POST(self):
        if self.is_faulty():
            return
        hub = self.server_hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            hub.repositories.setdefault(name, [])
            hub.settings[name] = asked
            self.answer({"url": f"{hub.address}/{name}"})
        elif path == "/api/validate-yaml":
            errors = check_yaml(json.loads(body)["content"])
            self.answer({"errors": [{"message": e} for e in errors], "warnings": []}, 400 if errors else 200)
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            modes = {f["path"]: "lfs" if is_large(f["path"]) else "regular" for f in files}
            self.answer(
                {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            )
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    **entry,
                    "actions": {
                        "upload": {"href": f"{hub.address}/lfs/{entry['oid']}"},
                        "verify": {"href": f"{hub.address}/lfs/verify"},
                    },
                }
                for entry in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif path == "/lfs/verify":
            entry = json.loads(body)
            data = hub.objects.get(entry["oid"], b"")
            right = hashlib.sha256(data).hexdigest() == entry["oid"] and len(data) == entry["size"]
            self.answer({}, 200 if right else 422)
        elif "/commit/" in path:
            self.commit(path, body)
        elif "/branch/" in path:
            self.answer({})
        else:
            self.answer({"error": f"unknown {path}"}, 404)

    def commit(self, path, body):
        hub, files = self.server_hub, {}
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "header":
                hub.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
        name = path.removeprefix("/api/models/").split("/commit/")[0]
        commit = hub.put(name, files)
        address = f"{hub.address}/{name}/commit/{commit}"
        pull_request = {"pullRequestUrl": f"{hub.address}/{name}/discussions/1"}
        asked = "create_pr" in parse_qs(urlsplit(self.path).query)
        self.answer({"commitUrl": address, "commitOid": commit, **(pull_request if asked else {})})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        if self.is_faulty():
            return
        path = urlsplit(self.path).path
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            self.with_files(match, self.tree)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self.with_files(match, self.info)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.with_files(match, self.file)
        else:
            self.answer({"error": f"unknown {path}"}, 404)

    def with_files(self, match, respond):
        found = self.server_hub.find(match[1], match[2])
        if found is None:
            missing = "RevisionNotFound" if match[1] in self.server_hub.repositories else "RepoNotFound"
            self.answer({"error": missing}, 404, X_Error_Code=missing)
        else:
            respond(match, *found)

    def info(self, match, commit, files):
        self.answer({"id": match[1], "sha": commit, "siblings": [{"rfilename": path} for path in files]})

    def tree(self, match, commit, files):
        entries = []
        for path, data in files.items():
            entry = {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            if is_large(path):
                entry["lfs"] = {
                    "oid": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 130,
                }
            entries.append(entry)
        self.answer(entries)

    def file(self, match, commit, files):
        hub, path = self.server_hub, match[3]
        if path not in files:
            self.answer({"error": "EntryNotFound"}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
            return
        data = files[path]
        tag = hashlib.sha256(data) if is_large(path) else hashlib.sha1(data)
        headers = {"ETag": f'"{tag.hexdigest()}"', "X_Repo_Commit": commit}
        if is_large(path):
            headers |= {"X_Linked_Etag": headers["ETag"], "X_Linked_Size": str(len(data))}
            data = hub.objects.get(f"instead of {path}", data)
        if hub.faults.get(path) == "cut" and self.command == "GET":
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self.answer(data, **headers)
