"""Forecasting and anomaly detection for Prometheus-compatible metrics."""
