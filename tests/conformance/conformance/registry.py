"""A registry of images that are pulled and never pushed (OCI distribution 1.1, the pull part).

registry.py FOLDER PORT  serves what write() put into FOLDER, on loopback.
"""

import functools
import http.server
import json
import pathlib
import re
import shutil
import sys

from stack import images

INDEX = "index.json"
_PATH = re.compile(r"/v2/(?P<repository>.+)/(?P<kind>manifests|blobs)/(?P<reference>[^/]+)$")


def write(folder, made):
    """The images' blobs as files by digest, and which digest each repository and tag is. The registry that a name
    begins with does not count: this one answers for all."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    blobs, manifests = images.built(made)
    for digest, data in blobs.items():
        (folder / digest).write_bytes(data)
    tags = {}
    for image, manifest in zip(made, manifests):
        repository, tag = image.name.split("/", 1)[1].rsplit(":", 1)
        tags[f"{repository}:{tag}"] = {"digest": manifest["digest"], "type": manifest["mediaType"]}
    (folder / INDEX).write_text(json.dumps(tags))


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, folder, tags, *args):
        self.folder, self.tags = folder, tags
        self.types = {entry["digest"]: entry["type"] for entry in tags.values()}
        super().__init__(*args)

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, with_body):
        path = self.path.split("?", 1)[0]
        if path == "/v2/":
            return self._send(200, "application/json", 2, lambda: self.wfile.write(b"{}"), with_body)
        match = _PATH.match(path)
        digest = self._digest(match) if match else None
        if not digest:
            error = json.dumps({"errors": [{"code": "MANIFEST_UNKNOWN", "message": path}]}).encode()
            return self._send(404, "application/json", len(error), lambda: self.wfile.write(error), with_body)
        blob = self.folder / digest
        media_type = self.types.get(digest, "application/octet-stream")

        def copy():
            with blob.open("rb") as source:
                shutil.copyfileobj(source, self.wfile)

        return self._send(200, media_type, blob.stat().st_size, copy, with_body, {"Docker-Content-Digest": digest})

    def _digest(self, match):
        """The digest of what is asked for, if this registry has it."""
        reference = match["reference"]
        if match["kind"] == "manifests" and not reference.startswith("sha256:"):
            reference = self.tags.get(f"{match['repository']}:{reference}", {}).get("digest", "")
        return reference if re.fullmatch("sha256:[0-9a-f]{64}", reference) and (self.folder / reference).exists() else None

    def _send(self, code, media_type, length, body, with_body, headers=None):
        self.send_response(code)
        for name, value in {"Content-Type": media_type, "Content-Length": str(length), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            body()


def main(folder, port):
    folder = pathlib.Path(folder)
    tags = json.loads((folder / INDEX).read_text())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), functools.partial(Handler, folder, tags))
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
