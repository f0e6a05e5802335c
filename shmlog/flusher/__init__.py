"""Flusher: the loops of the process that commits, syncs, prepares, repairs; knows not who started it."""
