"""The kinds of loaders need packages that only `make loaders` installs, so no doctests are looked for in them."""

collect_ignore_glob = ["_*.py"]
