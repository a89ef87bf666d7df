"""Forecasting and anomaly detection for Prometheus-compatible metrics."""

import os

# Matrices here are small: threads of BLAS cost more than they save, and several processes would fight for processors.
# It reads this when numpy is first imported, so that is before anything else here; what a user has set stays.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
