"""Disk: the files; knows no control block."""
