# PROTO
import sys
from pathlib import Path


def main() -> None:
    from proxy.app import serve
    a = sys.argv[1:]
    path = None; over = {}
    while a:
        x = a.pop(0)
        if x == "-c": path = Path(a.pop(0))
        if x == "--set":
            k, _, v = a.pop(0).partition("="); over[k] = v
        if x == "version":
            print("0.1.0"); return
    sys.exit(serve(path, overrides=over))
main()
