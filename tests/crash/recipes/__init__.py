"""One way to torture a log, a module."""
