"""Removing everything that was ever written for one mission."""

from __future__ import annotations

from anomaly_times.conventions import LABEL_MISSION, OUR_METRICS, SELF_METRICS
from anomaly_times.errors import StoreError
from anomaly_times.settings import Source
from anomaly_times.stores.http import HttpClient, RefusedError

__all__ = ["purge_results"]


def purge_results(source: Source, mission: str, *, client: HttpClient | None = None) -> str:
    """Delete all that was written for `mission` in its source, and nothing else; gives the selector of what went.

    Args:
        source: a VictoriaMetrics, or a Prometheus with `--web.enable-admin-api`.
        mission: its name.
        client: in place of one for `source`.

    Raises:
        StoreError: a folder, a server that cannot do it, is away, or refuses.
    """
    if source.folder is not None:
        raise StoreError(f"{source} is a folder: results cannot be taken out of it", hint="remove its result files")
    selector = f'{{{LABEL_MISSION}="{mission}",__name__=~"{"|".join((*OUR_METRICS, *SELF_METRICS))}"}}'
    url = f"{source.readback_url}/api/v1/admin/tsdb/delete_series"
    owned = client or HttpClient(source)
    try:
        owned.request("POST", url, params={"match[]": selector})
    except RefusedError as exc:
        raise StoreError(
            f"{source} does not delete series: {exc.message}",
            hint="Prometheus needs --web.enable-admin-api; in a VictoriaMetrics cluster ask vmselect's /delete/",
        ) from exc
    finally:
        if client is None:
            owned.close()
    return selector
