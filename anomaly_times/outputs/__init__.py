"""What other tools and people read: pages with charts."""

from __future__ import annotations

from anomaly_times.outputs.html import GENERATOR, Chart, Row, Table, Window, render_page

__all__ = ["GENERATOR", "Chart", "Row", "Table", "Window", "render_page"]
