"""Puts the dashboards into a Grafana, by its HTTP API: a folder, a data source, the dashboards in the folder.

https://grafana.com/docs/grafana/latest/developers/http_api/: Folder, Data source, Dashboard. The second time it changes
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import requests
from grafana_api.grafana_api import GrafanaClientError, GrafanaException
from grafana_api.grafana_face import GrafanaFace

FOLDER_UID: Final = "conserve"
FOLDER_TITLE: Final = "ConServe"
DATASOURCE_NAME: Final = "ConServe Prometheus"
DASHBOARDS: Final = Path(__file__).parents[2] / "cluster" / "grafana"
TIMEOUT_S: Final = 10.0
_MESSAGE: Final = "written by `conserve grafana install`"


class GrafanaError(Exception):
    """Grafana is not there, or refuses. The message says what to do."""


@dataclass(frozen=True)
class InstalledPart:
    """What is in Grafana now, and what was done for it."""

    kind: Literal["folder", "data source", "dashboard"]
    name: str
    outcome: Literal["created", "changed", "unchanged"]


class GrafanaInstaller:
    """Installs into one Grafana.

    Args:
        url: Of Grafana, with the path below which it is served, if any.
        token: Of a service account that may write folders, data sources and dashboards: the role Admin.
        say: Hears of what was done.

    Raises:
        GrafanaError: the URL is none.
    """

    def __init__(self, url: str, token: str, say: Callable[[str], None]) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise GrafanaError(f"{url!r} is no URL of a Grafana, such as http://grafana:3000")
        prefix = parts.path.strip("/")
        self._url = url
        self._say = say
        self._parts: list[InstalledPart] = []
        self._grafana = GrafanaFace(
            token,
            host=parts.netloc,
            protocol=parts.scheme,
            url_path_prefix=f"{prefix}/" if prefix else "",
            timeout=TIMEOUT_S,
        )

    def install(self, dashboards: list[dict[str, Any]], prometheus_url: str | None) -> list[InstalledPart]:
        """Installs dashboards, and returns what is there in the end.

        Args:
            dashboards: As Grafana exports them.
            prometheus_url: Where Grafana reaches Prometheus; None: it has a data source for it.

        Raises:
            GrafanaError: it is not there, or refuses.
        """
        self._parts = []
        self._put_folder()
        if prometheus_url is not None:
            self._put_datasource(prometheus_url)
        for dashboard in dashboards:
            self._put_dashboard(dashboard)
        return self._parts

    def _note(self, part: InstalledPart, more: str = "") -> None:
        self._parts.append(part)
        outcome = "there already" if part.outcome == "unchanged" else part.outcome
        self._say(f"{part.kind} {part.name}: {outcome}{more}")

    def _put_folder(self) -> None:
        with self._explained("the folder"):
            folder = _find(self._grafana.folder.get_folder, FOLDER_UID)
            if folder is None:
                self._grafana.folder.create_folder(FOLDER_TITLE, FOLDER_UID)
                self._note(InstalledPart("folder", FOLDER_TITLE, "created"))
            else:  # Its title may be its owner's choice by now.
                self._note(InstalledPart("folder", folder["title"], "unchanged"))

    def _put_datasource(self, prometheus_url: str) -> None:
        wanted = {"name": DATASOURCE_NAME, "type": "prometheus", "url": prometheus_url, "access": "proxy"}
        with self._explained("the data source"):
            found = _find(self._grafana.datasource.get_datasource_by_name, DATASOURCE_NAME)
            if found is None:
                self._grafana.datasource.create_datasource(wanted)
                self._note(InstalledPart("data source", DATASOURCE_NAME, "created"))
            elif all(found.get(name) == value for name, value in wanted.items()):
                self._note(InstalledPart("data source", DATASOURCE_NAME, "unchanged"))
            else:
                kept = {name: found[name] for name in ("isDefault", "basicAuth", "jsonData", "uid") if name in found}
                self._grafana.datasource.update_datasource(found["id"], kept | wanted)
                self._note(InstalledPart("data source", DATASOURCE_NAME, "changed"), f" to {prometheus_url}")

    def _put_dashboard(self, dashboard: dict[str, Any]) -> None:
        title = dashboard["title"]
        with self._explained(f"the dashboard {title!r}"):
            found = _find(self._grafana.dashboard.get_dashboard, dashboard["uid"])
            if found is not None and _is_same(found, dashboard):
                self._note(InstalledPart("dashboard", title, "unchanged"))
                return
            body = {"dashboard": {**dashboard, "id": None}, "folderUid": FOLDER_UID, "message": _MESSAGE}
            self._grafana.dashboard.update_dashboard({**body, "overwrite": True})
            self._note(InstalledPart("dashboard", title, "created" if found is None else "changed"))

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except GrafanaException as error:
            raise GrafanaError(f"{self._url}: {what}: {_explain(error)}") from None
        except requests.exceptions.Timeout:
            raise GrafanaError(f"{self._url}: {what}: no answer within {TIMEOUT_S:g} s") from None
        except requests.exceptions.SSLError as error:
            raise GrafanaError(f"{self._url}: its certificate is not trusted here: {error}") from None
        except requests.exceptions.ConnectionError:
            raise GrafanaError(f"nothing answers at {self._url}. Is Grafana up?") from None
        except (requests.exceptions.RequestException, ValueError) as error:
            raise GrafanaError(f"{self._url}: {what}: this is no answer of Grafana: {error}") from None


def read_dashboards(folder: Path = DASHBOARDS) -> list[dict[str, Any]]:
    """The dashboards in a folder.

    Raises:
        GrafanaError: there are none.
    """
    try:
        found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    except (OSError, ValueError) as error:
        raise GrafanaError(f"{folder}: a dashboard cannot be read: {error}") from None
    if not found:
        raise GrafanaError(f"{folder}: there are no dashboards; the checkout has them in cluster/grafana")
    return found


def _find(get: Callable[[str], dict[str, Any]], name: str) -> dict[str, Any] | None:
    try:
        return get(name)
    except GrafanaClientError as error:
        if error.status_code == requests.codes.not_found:
            return None
        raise


def _is_same(found: dict[str, Any], dashboard: dict[str, Any]) -> bool:
    """Whether Grafana has this dashboard, in the folder; it numbers its versions."""
    own = {name: value for name, value in found["dashboard"].items() if name not in ("id", "version")}
    ours = {name: value for name, value in dashboard.items() if name not in ("id", "version")}
    return own == ours and found.get("meta", {}).get("folderUid") == FOLDER_UID


def _explain(error: GrafanaException) -> str:
    match error.status_code:
        case 401:
            return "Grafana does not know this token (HTTP 401); make one of a service account with the role Admin"
        case 403:
            return "this token may not do that (HTTP 403); its service account needs the role Admin"
        case 412:
            return f"somebody else has something of that name or number (HTTP 412): {error}"
        case _:
            return f"{error} (HTTP {error.status_code})"
