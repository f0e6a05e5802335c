"""System: the doors to the operating system; knows no log."""
