"""The machinery: how contenders are run, checked, compared and reported, and shmlog as one of them."""
