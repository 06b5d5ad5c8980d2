"""What a run in a bucket costs beside one in a local folder, and how the cost of a save grows with the run's length.

    python benchmarks/bucket.py [--rounds 15] [--steps 600] [--save-freq 100] [--saves 100 400 1600]

The first table: runs of a small network in a local folder and in a bucket take turns. The bucket is moto's server with
S3's protocol, in a process of its own on the loopback address. It prints the median seconds of the training loop, those
of the processor that the process used in it, and those that saves block; the median over the rounds of the ratio of the
loops; and what was sent. The upload at the end of a run is not part of the loop; its seconds are printed, too.

The second table: the mirror alone, with obstore's store in memory. Each save has a new checkpoint and 100 more rows of
a log. It prints what a save costs after so many saves, as means over the last fifty. Everything is deleted afterwards.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from obstore.store import MemoryStore

import jaxcb as jc
from jaxcb._src.checkpointing import bucket_run
from jaxcb._src.checkpointing.checkpointer import Checkpointer
from jaxcb._src.loop.host.driver import Driver
from jaxcb._src.storage.buckets.bucket import Bucket
from jaxcb._src.storage.buckets.lease import Lease
from jaxcb._src.storage.buckets.mirror import Mirror
from jaxcb._src.storage.buckets.snapshot import MARK, Limit
from jaxcb._src.utils.address import Address

WIDTH, ROWS, BATCH = 256, 8192, 512
AT_MOST = 1.03  # of the loop's time in a local folder
SERVER = """
import logging, sys, time
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


def loss_fn(params, batch):
    x, y = batch
    for w in params["layers"]:
        x = jnp.tanh(x @ w)
    return jnp.mean((x @ params["out"] - y) ** 2)


def params():
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "layers": [jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH**0.5 for key in keys],
        "out": jnp.zeros((WIDTH, 1)),
    }


class Watch:
    """Notes seconds of the loop and of saves, and the bucket of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.buckets: list[Bucket] = []

    def time(self, owner: type, method: str, name: str) -> None:
        inner = getattr(owner, method)

        def timed(*args: Any, **options: Any) -> Any:
            began, used = time.perf_counter(), time.process_time()
            try:
                return inner(*args, **options)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
                self.seconds[f"{name} cpu"] = self.seconds.get(f"{name} cpu", 0.0) + time.process_time() - used

        setattr(owner, method, timed)

    def watch(self) -> None:
        self.time(Driver, "_train_until_over", "loop")
        self.time(Checkpointer, "save", "blocked")
        self.time(bucket_run.BucketRun, "finish", "end")
        watch = self

        class Watched(Bucket):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **options)
                watch.buckets.append(self)

        setattr(bucket_run, "Bucket", Watched)  # noqa: B010


def one_run(run_dir: str, local_dir: Path | None, steps: int, save_freq: int, data: Any) -> None:
    jc.fit(
        params(),
        loss_fn,
        data,
        optimizer=optax.adam,
        learning_rate=1e-3,
        steps=steps,
        batch_size=BATCH,
        callbacks=[jc.CSVLogger("log.csv"), jc.BackupAndRestore(".", save_freq=save_freq)],
        run_dir=run_dir,
        verbose=0,
        checkpointing=jc.Checkpointing(local_dir=local_dir),
    )


def cost_of_a_run(rounds: int, steps: int, save_freq: int) -> bool:
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    url = f"http://127.0.0.1:{server.stdout.readline().strip()}"
    os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "x"}
    rng = np.random.default_rng(0)
    data = (rng.normal(size=(ROWS, WIDTH)).astype(np.float32), rng.normal(size=(ROWS, 1)).astype(np.float32))
    watch = Watch()
    watch.watch()
    found: dict[str, list[dict[str, float]]] = {"local": [], "bucket": []}
    sent: list[tuple[int, float]] = []
    try:
        urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")).close()
        for number in range(rounds + 1):  # the first round warms up
            for way in sorted(found, reverse=bool(number % 2)):
                folder = Path(tempfile.mkdtemp(prefix="jaxcb_bucket_"))
                watch.seconds, watch.buckets = {}, []
                try:
                    local = way == "local"
                    place = str(folder) if local else f"s3://bucket/run_{number}"
                    one_run(place, None if local else folder, steps, save_freq, data)
                finally:
                    shutil.rmtree(folder)
                if number:
                    found[way].append(watch.seconds)
                    sent += [(b.requests.total(), b.sent) for b in watch.buckets]
    finally:
        server.kill()
        server.wait()
    print(f"{steps} steps, saved every {save_freq}, {rounds} rounds")
    print(f"{'':8} {'loop, s':>8} {'its CPU, s':>11} {'blocked, s':>11} {'upload at the end, s':>21}")
    for way, runs in found.items():
        middle = [
            statistics.median(run.get(name, 0.0) for run in runs) for name in ("loop", "loop cpu", "blocked", "end")
        ]
        print(f"{way:8} {middle[0]:8.3f} {middle[1]:11.3f} {middle[2]:11.3f} {middle[3]:21.3f}")
    ratios = [b["loop"] / a["loop"] for a, b in zip(found["local"], found["bucket"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"ratio of the loops: {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), at most {AT_MOST}")
    requests, size = (statistics.median(run[i] for run in sent) for i in (0, 1))
    print(f"sent by a run: {requests:.0f} requests, {size / 1e6:.1f} MB")
    return ratio <= AT_MOST


def growth(lengths: list[int]) -> bool:
    address, last = Address("s3", "bucket", "run"), 50
    print("\nof a save, after so many")
    print(f"{'saves':>6} {'requests':>9} {'kB sent':>8} {'ms':>6} {'index parts':>12} {'objects':>8}")
    costs = []
    folder = Path(tempfile.mkdtemp(prefix="jaxcb_bucket_"))
    try:
        memory = MemoryStore()
        bucket = Bucket(address, store=memory)
        lease = Lease(bucket)
        lease.acquire()
        mirror = Mirror(bucket, lease, folder)
        mirror.open()
        (folder / MARK).parent.mkdir()
        (folder / MARK).touch()
        mirror.start()
        log, size, checksum, done = folder / "history.csv", 0, 0, []
        for number in range(max(lengths)):
            rows = b"".join(b"%d,%d,0.12345678,0.87654321\n" % (number, i) for i in range(100))
            with log.open("ab") as file:
                file.write(rows)
            size, checksum = size + len(rows), zlib.crc32(rows, checksum)
            checkpoint = folder / "checkpoints" / f"step_{number:09d}" / "arrays"
            checkpoint.mkdir(parents=True)
            for i in range(5):
                (checkpoint / f"{i}").write_bytes(bytes([number % 256]) * 10_000)
            if number > 1:
                shutil.rmtree(folder / "checkpoints" / f"step_{number - 2:09d}")
            before = bucket.requests.total(), bucket.sent, time.perf_counter()
            mirror.save({"history.csv": Limit(size, checksum)})
            mirror.wait()
            mirror.check()
            after = bucket.requests.total(), bucket.sent, time.perf_counter()
            done.append([b - a for a, b in zip(before, after, strict=True)])
            if number + 1 in lengths:
                requests, sent, seconds = (statistics.mean(run[i] for run in done[-last:]) for i in range(3))
                assert mirror.index.manifest is not None
                parts, objects = len(mirror.index.manifest.parts), len(bucket.list())
                costs.append((requests, sent))
                print(
                    f"{number + 1:6} {requests:9.1f} {sent / 1e3:8.1f} {seconds * 1e3:6.1f} {parts:12} {objects:8}",
                    flush=True,
                )
        mirror.stop()
        lease.release()
    finally:
        shutil.rmtree(folder)
    return all(costs[-1][i] <= 1.2 * costs[0][i] for i in (0, 1))


def main():
    parser = argparse.ArgumentParser(description="What a run in a bucket costs.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--save-freq", type=int, default=100)
    parser.add_argument("--saves", type=int, nargs="+", default=[100, 400, 1600])
    args = parser.parse_args()
    cheap = cost_of_a_run(args.rounds, args.steps, args.save_freq)
    flat = growth(sorted(args.saves))
    print(f"at most {AT_MOST}: {'yes' if cheap else 'NO'}; the cost of a save does not grow: {'yes' if flat else 'NO'}")
    return 0 if cheap and flat else 1


if __name__ == "__main__":
    sys.exit(main())
