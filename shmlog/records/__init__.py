"""Records: records out of maps, between bounds that it is given; knows no control block."""
