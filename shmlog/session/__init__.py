"""Session: one life of a control block, to join, serve, look and leave; knows no records."""
