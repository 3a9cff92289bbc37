"""``sidewall``: the command line. ``python -m proxy`` is the same.

Only click is imported here: every command's module is loaded when that command is asked for, so that help and
completion stay fast."""

from __future__ import annotations

from proxy.cli.group import main

if __name__ == "__main__":
    main()
