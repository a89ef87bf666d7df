"""Small sets of missions for what many people run: which metrics they need, and what is asked of them.

A template is taken where its metrics are there. `$by` stands for the label that tells services apart there, `$code` for
the one that holds the status of an answer, `$window` for a range that holds a few scrapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["PRESETS", "Preset", "Template"]


@dataclass(frozen=True)
class Template:
    """One mission of a preset: `needs` are its metrics, `detect` what is watched for, `why` the reason."""

    name: str
    promql: str
    needs: tuple[str, ...]
    description: str
    detect: Mapping[str, str] = field(default_factory=dict)
    why: str = ""


@dataclass(frozen=True)
class Preset:
    """A set of missions; of the labels `by` (to group by) and `codes` (status) the first that is there is taken."""

    title: str
    templates: tuple[Template, ...]
    by: tuple[str, ...] = ("instance",)
    codes: tuple[str, ...] = ("code", "status", "status_code", "response_code", "http_response_status_code")


_RATIO = {"direction": "above", "min_deviation": "0.02", "valid_range": "[0, 1]"}
_TRAFFIC = {"min_relative_deviation": "30%", "valid_range": "[0, .inf]"}
_GROWTH = {"direction": "above", "min_relative_deviation": "20%", "valid_range": "[0, .inf]"}

# Names of the same thing: client libraries, OpenTelemetry, Micrometer, Istio.
_REQUESTS = ("http_requests_total", "http_server_requests_total", "istio_requests_total", "grpc_server_handled_total")
_DURATIONS = (
    "http_request_duration_seconds",
    "http_server_request_duration_seconds",
    "http_server_requests_seconds",
    "grpc_server_handling_seconds",
)


def _red() -> tuple[Template, ...]:
    out = []
    for metric in _REQUESTS:
        short = metric.removesuffix("_total").replace("_", "-")
        failed = 'grpc_code!="OK"' if metric.startswith("grpc") else '$code=~"5.."'
        out += [
            Template(
                f"{short}-rate",
                f"sum by ($by) (rate({metric}[$window]))",
                (metric,),
                "Requests a second; a fall is as telling as a rise.",
                _TRAFFIC,
                "a service that gets no more requests is as wrong as one that drowns",
            ),
            Template(
                f"{short}-errors",
                f"sum by ($by) (rate({metric}{{{failed}}}[$window]))",
                (f"{metric}{{{failed}}}",),
                "Failed requests a second.",
                _GROWTH,
                "fewer errors are no problem",
            ),
        ]
    for metric in _DURATIONS:
        short = metric.removesuffix("_seconds").replace("_", "-")
        out.append(
            Template(
                f"{short}-p99",
                f"histogram_quantile(0.99, sum by (le, $by) (rate({metric}_bucket[$window])))",
                (f"{metric}_bucket",),
                "What the slowest requests take.",
                _GROWTH,
                "faster is no problem",
            )
        )
    return tuple(out)


PRESETS: Mapping[str, Preset] = {
    "node-exporter": Preset(
        "Machines, by node_exporter",
        (
            Template(
                "node-cpu",
                '1 - avg by ($by) (rate(node_cpu_seconds_total{mode="idle"}[$window]))',
                ("node_cpu_seconds_total",),
                "How busy the processors are.",
                _RATIO,
                "an idle machine is no problem; below two points of a hundred nobody cares",
            ),
            Template(
                "node-memory",
                "1 - node_memory_MemAvailable_bytes / node_memory_MemTotal_bytes",
                ("node_memory_MemAvailable_bytes", "node_memory_MemTotal_bytes"),
                "How full memory is.",
                _RATIO,
                "free memory is no problem",
            ),
            Template(
                "node-disk-space",
                '1 - node_filesystem_avail_bytes{fstype!~"tmpfs|overlay|squashfs|ramfs"} / node_filesystem_size_bytes',
                ("node_filesystem_avail_bytes", "node_filesystem_size_bytes"),
                "How full each disk is.",
                _RATIO,
                "disks that empty are no problem",
            ),
            Template(
                "node-disk-io",
                "sum by ($by) (rate(node_disk_io_time_seconds_total[$window]))",
                ("node_disk_io_time_seconds_total",),
                "How busy the disks are: seconds of work in a second.",
                {"direction": "above", "min_deviation": "0.05", "valid_range": "[0, .inf]"},
                "idle disks are no problem",
            ),
            Template(
                "node-network-receive",
                'sum by ($by) (rate(node_network_receive_bytes_total{device!~"lo|veth.*|docker.*|br-.*"}[$window]))',
                ("node_network_receive_bytes_total",),
                "Bytes received a second.",
                _TRAFFIC,
                "a machine that hears nothing any more is as wrong as a flooded one",
            ),
            Template(
                "node-network-transmit",
                'sum by ($by) (rate(node_network_transmit_bytes_total{device!~"lo|veth.*|docker.*|br-.*"}[$window]))',
                ("node_network_transmit_bytes_total",),
                "Bytes sent a second.",
                _TRAFFIC,
                "silence is as telling as noise",
            ),
            Template(
                "node-load",
                "node_load5",
                ("node_load5",),
                "Processes that run or wait to run.",
                {"direction": "above", "min_deviation": "0.5", "valid_range": "[0, .inf]"},
                "half a process more is no problem",
            ),
        ),
    ),
    "red": Preset(
        "Services: rate, errors, duration",
        _red(),
        ("service", "service_name", "job", "destination_service"),
    ),
    "kubernetes": Preset(
        "Kubernetes: containers and what they are asked for",
        (
            Template(
                "kube-cpu",
                'sum by ($by) (rate(container_cpu_usage_seconds_total{container!=""}[$window]))',
                ("container_cpu_usage_seconds_total",),
                "Processor time that containers take.",
                _GROWTH,
                "less load is no problem; single pods come and go, so they are not told apart",
            ),
            Template(
                "kube-memory",
                'sum by ($by) (container_memory_working_set_bytes{container!=""})',
                ("container_memory_working_set_bytes",),
                "Memory that containers hold.",
                _GROWTH,
                "less is no problem",
            ),
            Template(
                "kube-restarts",
                "sum by ($by) (increase(kube_pod_container_status_restarts_total[15m]))",
                ("kube_pod_container_status_restarts_total",),
                "Containers that were started anew in a quarter of an hour.",
                {"direction": "above", "min_deviation": "1", "valid_range": "[0, .inf]"},
                "one restart is no story",
            ),
            Template(
                "kube-unavailable",
                "sum by ($by) (kube_deployment_status_replicas_unavailable)",
                ("kube_deployment_status_replicas_unavailable",),
                "Replicas that should be there and are not.",
                {"direction": "above", "min_deviation": "1", "valid_range": "[0, .inf]"},
                "rollouts miss one at a time",
            ),
            Template(
                "kube-network-receive",
                "sum by ($by) (rate(container_network_receive_bytes_total[$window]))",
                ("container_network_receive_bytes_total",),
                "Bytes that pods receive a second.",
                _TRAFFIC,
                "silence is as telling as noise",
            ),
            Template(
                "kube-apiserver-requests",
                "sum(rate(apiserver_request_total[$window]))",
                ("apiserver_request_total",),
                "Requests to the API server a second.",
                _GROWTH,
                "a controller that runs wild shows here first",
            ),
        ),
        ("namespace",),
    ),
    "victoriametrics": Preset(
        "VictoriaMetrics itself",
        (
            Template(
                "vm-ingestion",
                "sum by ($by) (rate(vm_rows_inserted_total[$window]))",
                ("vm_rows_inserted_total",),
                "Samples taken in a second.",
                _TRAFFIC,
                "a fall means that somebody's metrics are missing",
            ),
            Template(
                "vm-requests",
                "sum by ($by) (rate(vm_http_requests_total[$window]))",
                ("vm_http_requests_total",),
                "Requests a second.",
                _TRAFFIC,
                "a dashboard or rule that runs wild shows here",
            ),
            Template(
                "vm-errors",
                "sum by ($by) (rate(vm_http_request_errors_total[$window]))",
                ("vm_http_request_errors_total",),
                "Failed requests a second.",
                {"direction": "above", "min_deviation": "0.1", "valid_range": "[0, .inf]"},
                "one in ten seconds is no story",
            ),
            Template(
                "vm-slow-inserts",
                "sum by ($by) (rate(vm_slow_row_inserts_total[$window]))",
                ("vm_slow_row_inserts_total",),
                "Samples of series that are new, or fell out of the cache.",
                _GROWTH,
                "many new series at once are how a server drowns",
            ),
            Template(
                "vm-memory",
                'sum by ($by) (process_resident_memory_bytes{job=~".*(victoria|vm).*"})',
                ('process_resident_memory_bytes{job=~".*(victoria|vm).*"}',),
                "Memory that the servers hold.",
                _GROWTH,
                "less is no problem",
            ),
        ),
        ("job", "instance"),
    ),
}
