"""The two base deployments on a test server, and its API for tests that look behind the scenes."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from anomaly_times.conventions import DETECTION_DEPLOYMENT, FORECASTING_DEPLOYMENT


def api(url: str, method: str, path: str, body: object = None) -> Any:
    """The answer of a Prefect server's API; `None` for 404 and for no content."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{url}/api/{path}", data=data, method=method, headers={"Content-Type": "application/json"}
    )
    for attempt in range(20):
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                raw = answer.read()
            return json.loads(raw) if raw else None
        except urllib.error.HTTPError as exc:
            if exc.code == 404:
                return None
            # SQLite: "database is locked".
            if exc.code != 503 or attempt == 19:
                raise
            time.sleep(0.2)
    return None


def base_deployments(url: str) -> dict[str, str]:
    """The ids of both base deployments by kind; they are made where they are missing, without a work pool."""
    ids = {}
    for kind, name in (("forecast", FORECASTING_DEPLOYMENT), ("detect", DETECTION_DEPLOYMENT)):
        found = api(url, "GET", f"deployments/name/{name}")
        if found is None:
            flow, deployment = name.split("/")
            flow_id = api(url, "POST", "flows/", {"name": flow})["id"]
            found = api(url, "POST", "deployments/", {"name": deployment, "flow_id": flow_id})
        ids[kind] = found["id"]
    return ids


def schedules(url: str) -> dict[str, dict[str, Any]]:
    """All schedules of both base deployments, by slug, or by id where they have none."""
    found = {}
    for deployment in base_deployments(url).values():
        for schedule in api(url, "GET", f"deployments/{deployment}/schedules"):
            found[schedule["slug"] or schedule["id"]] = {**schedule, "deployment": deployment}
    return found
