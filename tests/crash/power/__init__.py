"""Power cuts: what the recipes and tests of them share."""
