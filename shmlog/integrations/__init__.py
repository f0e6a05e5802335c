"""Integrations: other people's interfaces over the public names, each behind an extra."""
