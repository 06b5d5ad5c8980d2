"""A process that trains with data of another library, and may be killed.

    python tests/loaders/_run.py DIRECTORY STEP KIND...

Each kind has a run in a folder of its own, which is resumed if it is there. STEP is the step to save at, after which
the process is killed: 0 for none, -1 for the end of the last epoch but one. A line for each run has, as JSON, what it
has warned of, its error, its losses and its parameters. Workers import this module as their main one, so that it
imports nothing.
"""

if __name__ == "__main__":
    import json
    import multiprocessing
    import sys
    from pathlib import Path

    from loaders._kinds import KINDS
    from loaders._train import train

    directory, at, *kinds = sys.argv[1:]
    if kinds[0].startswith("torch"):
        multiprocessing.set_forkserver_preload(["loaders._torch_rows"])
    if kinds[0].startswith("grain"):
        from absl import flags

        flags.FLAGS(sys.argv[:1])  # grain's workers read flags, which a program has to parse
    for kind in kinds:
        found = train(Path(directory) / str(list(KINDS).index(kind)), kind, int(at))
        print("found:", json.dumps([kind, found]), flush=True)
