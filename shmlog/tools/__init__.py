"""Tools: what is done to a whole log by its path; returns plain reports."""
