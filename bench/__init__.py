"""Benchmarks of shmlog: one module per workload, `peers/` for other systems, `kit/` for what runs them.

Run one with `python -m bench append`, all with `python -m bench`.
"""

import os

# One thread per process: the workloads start processes by fork, and an idle
# BLAS thread pool in the parent would only make that unsafe.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
