"""As much of Grafana's HTTP API as its documentation allows what we send to: everything else is refused, and noted.

https://grafana.com/docs/grafana/latest/developers/http_api/: folder, data_source, dashboard, and authentication.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

MAX_UID = 40
FOLDER_FIELDS = {"title", "uid", "description", "parentUid"}
DATASOURCE_FIELDS = {
    *("name", "type", "url", "access", "isDefault", "jsonData", "secureJsonData", "basicAuth", "basicAuthUser"),
    *("database", "user", "withCredentials", "uid", "orgId", "id", "version", "readOnly"),
}
SAVE_FIELDS = {"dashboard", "folderId", "folderUid", "message", "overwrite", "refresh"}


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StandIn:
    """What a Grafana holds.

    Attributes:
        changes: What has written to it: method and path.
        refused: Requests that the documentation does not allow.
    """

    def __init__(self, token: str = "glsa_secret", prefix: str = "") -> None:
        self.token, self.prefix = token, prefix
        self.folders: dict[str, dict[str, Any]] = {}
        self.datasources: dict[int, dict[str, Any]] = {}
        self.dashboards: dict[str, dict[str, Any]] = {}
        self.changes: list[tuple[str, str]] = []
        self.refused: list[str] = []
        self.fails_with: int | None = None
        self.url = ""

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> tuple[int, Any]:
        try:
            if headers.get("Authorization") != f"Bearer {self.token}":
                return 401, {"message": "Invalid API key"}
            if self.fails_with is not None:
                return self.fails_with, {"message": "no"}
            if not path.startswith(f"{self.prefix}/api/"):
                raise Refusal(404, "not found")
            content = self._read(method, headers, body)
            if method != "GET":
                self.changes.append((method, path))
            return 200, self._route(
                method, [unquote(part) for part in path.removeprefix(self.prefix).split("/")[2:]], content
            )
        except Refusal as refusal:
            if refusal.status in (400, 405, 415) or method != "GET":
                self.refused.append(f"{method} {path}: {refusal}")
            return refusal.status, {"message": str(refusal)}

    def _read(self, method: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        if method == "GET":
            return {}
        if not headers.get("Content-Type", "").startswith("application/json"):
            raise Refusal(415, "not JSON")
        content = json.loads(body)
        if not isinstance(content, dict):
            raise Refusal(400, "bad request data")
        return content

    def _route(self, method: str, parts: list[str], body: dict[str, Any]) -> Any:
        match method, parts:
            case "GET", ["folders", uid]:
                return _found(self.folders, uid, "folder not found")
            case "POST", ["folders"]:
                return self._create_folder(body)
            case "GET", ["datasources", "name", name]:
                by_name = {one["name"]: one for one in self.datasources.values()}
                return _found(by_name, name, "Data source not found")
            case "POST", ["datasources"]:
                return self._create_datasource(body)
            case "PUT", ["datasources", number]:
                return self._update_datasource(int(number), body)
            case "GET", ["dashboards", "uid", uid]:
                return _found(self.dashboards, uid, "Dashboard not found")
            case "POST", ["dashboards", "db"]:
                return self._save_dashboard(body)
        raise Refusal(405, "no such route")

    def _create_folder(self, body: dict[str, Any]) -> Any:
        _allow(body, FOLDER_FIELDS, required={"title"})
        uid = body.get("uid", "generated")
        if len(uid) > MAX_UID:
            raise Refusal(400, "uid too long, max 40 characters")
        if uid in self.folders:
            raise Refusal(412, "a folder with the same uid already exists")
        self.folders[uid] = {"id": len(self.folders) + 1, "uid": uid, "title": body["title"], "version": 1}
        return self.folders[uid]

    def _create_datasource(self, body: dict[str, Any]) -> Any:
        _check_datasource(body)
        if any(one["name"] == body["name"] for one in self.datasources.values()):
            raise Refusal(409, "data source with the same name already exists")
        number = len(self.datasources) + 1
        whole = {"id": number, "uid": f"ds{number}", "isDefault": False, "jsonData": {}, "basicAuth": False} | body
        self.datasources[number] = whole
        return {"id": number, "message": "Datasource added", "name": body["name"], "datasource": whole}

    def _update_datasource(self, number: int, body: dict[str, Any]) -> Any:
        _check_datasource(body)
        if number not in self.datasources:
            raise Refusal(404, "Data source not found")
        # It takes the place of what was there.
        self.datasources[number] = {"isDefault": False, "jsonData": {}, "basicAuth": False, **body, "id": number}
        return {"id": number, "message": "Datasource updated", "name": body["name"]}

    def _save_dashboard(self, body: dict[str, Any]) -> Any:
        _allow(body, SAVE_FIELDS, required={"dashboard"})
        dashboard = body["dashboard"]
        uid = dashboard.get("uid")
        if not dashboard.get("title"):
            raise Refusal(400, "Dashboard title cannot be empty")
        if not isinstance(uid, str) or len(uid) > MAX_UID:
            raise Refusal(400, "uid too long, max 40 characters")
        if dashboard.get("id") is not None:
            raise Refusal(404, "Dashboard not found")
        if "folderUid" in body and body["folderUid"] not in self.folders:
            raise Refusal(400, "folder not found")
        before = self.dashboards.get(uid)
        if before is not None and not body.get("overwrite"):
            raise Refusal(412, "The dashboard has been changed by someone else")
        version = before["dashboard"]["version"] + 1 if before else 1
        number = before["dashboard"]["id"] if before else len(self.dashboards) + 1
        kept = {**dashboard, "id": number, "version": version}
        self.dashboards[uid] = {"dashboard": kept, "meta": {"folderUid": body.get("folderUid", ""), "version": version}}
        return {"id": number, "uid": uid, "url": f"/d/{uid}/x", "status": "success", "version": version, "slug": "x"}


def _found(things: Mapping[str, Any], name: str, missing: str) -> Any:
    if name not in things:
        raise Refusal(404, missing)
    return things[name]


def _allow(body: Mapping[str, Any], known: set[str], required: set[str]) -> None:
    if strange := body.keys() - known:
        raise Refusal(400, f"not in the documentation: {sorted(strange)}")
    if missing := {name for name in required if not body.get(name)}:
        raise Refusal(400, f"missing: {sorted(missing)}")


def _check_datasource(body: Mapping[str, Any]) -> None:
    _allow(body, DATASOURCE_FIELDS, required={"name", "type", "access"})
    if body["access"] not in ("proxy", "direct"):
        raise Refusal(400, "access must be proxy or direct")


@contextmanager
def serving(standin: StandIn) -> Iterator[str]:
    """Serves it on a free port; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, content = standin.answer(self.command, self.path, self.headers, body)
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer  # noqa: N815 - as http.server calls them

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{standin.prefix}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
