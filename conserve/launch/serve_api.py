"""Ray Serve's REST API, as the Ray dashboard offers it.

https://docs.ray.io/en/latest/serve/api/index.html#serve-rest-api
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from conserve.launch.ray_head import read_auth_token

TIMEOUT_S = 30.0


class ServeApiError(RuntimeError):
    """Ray refused a call, or does not answer. The message says what to do."""


@dataclass(frozen=True)
class ApplicationStatus:
    """An application as Serve sees it. `deployments` has the status of each by name."""

    status: str
    message: str
    deployments: Mapping[str, str]


class ServeApi:
    """Calls one Ray cluster.

    Args:
        dashboard_url: such as `http://127.0.0.1:8265`.
        environ: where Ray's token is looked up, see `read_auth_token`.
    """

    def __init__(self, dashboard_url: str, environ: Mapping[str, str] | None = None) -> None:
        self._url = dashboard_url.rstrip("/") + "/api/serve/applications/"
        self._dashboard_url = dashboard_url
        token = read_auth_token(os.environ if environ is None else environ)
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}

    def deploy(self, content: Mapping[str, Any]) -> None:
        """Makes the cluster run this configuration; returns when it is accepted, not when it runs.

        Raises:
            ServeApiError: see there.
        """
        self._call("PUT", json=dict(content))

    def read_application(self, name: str) -> ApplicationStatus | None:
        """The application's status, None when there is none of that name.

        Raises:
            ServeApiError: see there.
        """
        found = self._call("GET").json().get("applications", {}).get(name)
        if found is None:
            return None
        deployments = {
            deployment: str(details.get("status")) for deployment, details in (found.get("deployments") or {}).items()
        }
        return ApplicationStatus(str(found.get("status")), str(found.get("message") or ""), deployments)

    def delete_all(self) -> None:
        """Shuts Serve down: replicas get their graceful shutdown.

        Raises:
            ServeApiError: see there.
        """
        self._call("DELETE")

    @retry(
        retry=retry_if_exception_type(httpx.TransportError),
        stop=stop_after_attempt(3),
        wait=wait_exponential(multiplier=0.5, max=3),
        reraise=True,
    )
    def _send(self, method: str, json: Any) -> httpx.Response:
        return httpx.request(method, self._url, headers=self._headers, json=json, timeout=TIMEOUT_S)

    def _call(self, method: str, json: Any = None) -> httpx.Response:
        try:
            response = self._send(method, json)
        except httpx.HTTPError as error:
            raise ServeApiError(f"Ray's dashboard at {self._dashboard_url} does not answer: {error}") from error
        if response.status_code in (401, 403):
            raise ServeApiError(
                f"Ray's dashboard at {self._dashboard_url} wants its token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            )
        if response.is_error:
            raise ServeApiError(f"Ray Serve refused the call ({response.status_code}): {_last_line(response.text)}")
        return response


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no reason given"
