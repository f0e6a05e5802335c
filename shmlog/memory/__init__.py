"""Memory: the control block; knows no files."""
