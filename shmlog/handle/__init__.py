"""Handle: what users hold."""
