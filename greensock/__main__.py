"""``python -m greensock``: the command line."""

from greensock.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
