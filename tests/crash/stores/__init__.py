"""What the recipes stores, latency, calls and points share: a tracer, a shim, flushers, planted bugs."""
