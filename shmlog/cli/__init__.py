"""CLI: arguments and printing."""
