"""Structured rows into a log, and out of it as a DataFrame, without a row by row loop.

It prints

    5000 trades, 3 symbols
    AAA 1667
    BBB 1667
    CCC 1666
"""

import numpy as np
import pandas as pd
import pyarrow

import shmlog

TRADE = np.dtype([("symbol", "S3"), ("price", "f8"), ("shares", "u4")])

with shmlog.open("trades-log", create=True) as log:
    begin = log.reserved_lsn
    trades = np.zeros(5000, TRADE)
    trades["symbol"] = np.resize([b"AAA", b"BBB", b"CCC"], 5000)
    trades["price"] = 100 + np.arange(5000) % 7
    log.append_array(trades)
    log.wait_committed()

    scan = log.scan(begin)  # fixed: what is appended meanwhile is not in it
    table = pyarrow.table(scan.arrow(TRADE, columns=["time_ns", "symbol", "price", "shares"]))
    frame: pd.DataFrame = table.to_pandas()
    frame["time"] = pd.to_datetime(frame.pop("time_ns"), utc=True)

    print(f"{len(frame)} trades, {frame['symbol'].nunique()} symbols")
    for symbol, count in frame.groupby("symbol").size().items():
        print(symbol.decode(), count)
