"""Ray Serve's REST API, as the Ray dashboard offers it.

https://docs.ray.io/en/latest/serve/api/index.html#serve-rest-api
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from tenacity import (
    retry,
    retry_if_exception_type,
    retry_if_not_exception_type,
    stop_after_attempt,
    wait_exponential,
)

from conserve.launch.ray_head import read_auth_token

TIMEOUT_S = 30.0
SHUTDOWN_TIMEOUT_S = 45.0
"""Ray answers a DELETE when Serve has shut down, after 30 s at the latest."""


class ServeApiError(RuntimeError):
    """Ray refused a call, or does not answer. The message says what to do."""


class ServeUnreachableError(ServeApiError):
    """Nothing answers, or something that is not Ray does. Whether the call was carried out is not known."""


@dataclass(frozen=True)
class ApplicationStatus:
    """An application as Serve sees it.

    `message` ends with what the deployments that are not healthy say: the reason for a start that fails stands there.
    `deployments` has the status of each by name. `import_path` is None for one that no configuration declared, and for
    a moment after it was deployed.
    """

    status: str
    message: str
    deployments: Mapping[str, str]
    import_path: str | None = None


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

    @property
    def dashboard_url(self) -> str:
        """The cluster's address, as it was given."""
        return self._dashboard_url

    def deploy(self, content: Mapping[str, Any]) -> None:
        """Makes the cluster run this configuration; returns when it is accepted, not when it runs.

        Raises:
            ServeApiError: see there.
        """
        self._call("PUT", json=dict(content))

    def read_applications(self) -> dict[str, ApplicationStatus]:
        """All applications of the cluster by name; empty when Serve does not run.

        Raises:
            ServeApiError: see there.
        """
        try:
            found = self._call("GET").json()["applications"]
            return {str(name): _read_status(details) for name, details in found.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ServeUnreachableError(f"What answers at {self._dashboard_url} is not Ray's dashboard") from None

    def delete_all(self) -> None:
        """Shuts Serve down: replicas get their graceful shutdown.

        Raises:
            ServeApiError: see there.
        """
        self._call("DELETE", timeout_s=SHUTDOWN_TIMEOUT_S)

    @retry(
        # Who does not answer in this time hangs, and would again.
        retry=retry_if_exception_type(httpx.TransportError) & retry_if_not_exception_type(httpx.ReadTimeout),
        stop=stop_after_attempt(3),
        wait=wait_exponential(multiplier=0.5, max=3),
        reraise=True,
    )
    def _send(self, method: str, json: Any, timeout_s: float) -> httpx.Response:
        return httpx.request(method, self._url, headers=self._headers, json=json, timeout=timeout_s)

    def _call(self, method: str, json: Any = None, timeout_s: float = TIMEOUT_S) -> httpx.Response:
        try:
            response = self._send(method, json, timeout_s)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ServeUnreachableError(f"Ray's dashboard at {self._dashboard_url} does not answer: {error}") from error
        if response.status_code in (401, 403):
            raise ServeApiError(
                f"Ray's dashboard at {self._dashboard_url} wants its token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            )
        if response.is_error:
            raise ServeApiError(f"Ray Serve refused the call ({response.status_code}): {_last_line(response.text)}")
        return response


def _read_status(details: Mapping[str, Any]) -> ApplicationStatus:
    found = details.get("deployments") or {}
    deployments = {name: str(each.get("status")) for name, each in found.items()}
    unwell = [each for each in found.values() if each.get("status") != "HEALTHY"]
    messages = [str(each["message"]) for each in (details, *unwell) if each.get("message")]
    return ApplicationStatus(
        status=str(details.get("status")),
        message="\n".join(messages),
        deployments=deployments,
        import_path=(details.get("deployed_app_config") or {}).get("import_path"),
    )


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:500] if lines else "no reason given"
