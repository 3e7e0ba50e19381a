"""Loki on port 3100 until its input ends; for each line it prints the addresses that it was told of."""

import json
import re
import sys

from tests.sinks.loki_server import Store, run_server

if __name__ == "__main__":
    store = Store()
    with run_server(store, port=3100):
        print("ready", flush=True)
        for _ in sys.stdin:
            found = [re.findall(r"127\.[1-9]\d*\.\d+\.\d+", entry.line)[:1] for entry in store.query()]
            print(json.dumps([address for entry in found for address in entry]), flush=True)
