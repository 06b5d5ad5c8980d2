"""What is written down of a process contains no secret, and all that is harmless."""

import json
import subprocess
import sys

import optax
import pytest
from loop._runs import fit, make_data, make_params

import jaxcb as jc
from jaxcb._src.checkpointing.request import _words
from jaxcb._src.inspection import what_ran as module
from jaxcb._src.inspection.what_ran import what_ran
from jaxcb._src.utils.secrets import mask_command, mask_text

SECRET = "abcd1234secretvalue"
SECRETS = [
    ["--api-key", SECRET],
    [f"--api_key={SECRET}"],
    [f"--apiKey={SECRET}"],
    ["--wandb.token", SECRET],
    [f"HF_TOKEN={SECRET}"],
    [f"data.password={SECRET}"],
    ["-password", SECRET],
    [f"--tracking-uri=http://me:{SECRET}@host/x"],
    ["--url", f"https://host/in?token={SECRET}&a=3"],
    [f"hf_{SECRET}"],
    [f"sk-proj-{SECRET}"],
    [f"ghp_{SECRET}{SECRET}"],
    ["AKIA" + "ABCDEFGH12345678"],
    ["0123456789abcdef0123456789abcdef01234567"],
]
HARMLESS = [
    "train.py", "--epochs", "3", "--num-tokens=100", "--key-size", "64", "--token", "12", "monkey=abc", "-v", "--",
    "--optimizer=adam", "/data/with/a/long/path/of-many-words/and/numbers-1234567890/file.csv", "http://host:80/a?b=c",
    "2026-11-29-resnet50-imagenet-lr0.1-batch256-baseline", "--tokenizer", "bert-base-uncased", "-1e-3", "keyboard=us",
]  # fmt: skip


@pytest.mark.parametrize("arguments", SECRETS, ids=lambda a: a[0][:12])
def test_secrets_are_masked(arguments):
    masked = mask_command(["train.py", *arguments, "--steps", "3"])
    assert arguments[-1] not in masked
    assert SECRET not in " ".join(masked)
    assert "***" in " ".join(masked)
    assert masked[0] == "train.py"
    assert masked[-2:] == ["--steps", "3"]
    assert len(masked) == len(arguments) + 3


def test_what_is_harmless_stays():
    assert mask_command(HARMLESS) == HARMLESS
    assert mask_text("the loss of step 3 is 0.5") == "the loss of step 3 is 0.5"


def test_the_description_of_callbacks_has_no_secret():
    class Service(jc.writers.Tracker):
        def __repr__(self):
            return f"Service(key='hf_{SECRET}')"

    callbacks = [
        jc.RemoteMonitor("http://me:" + SECRET + "@host", headers={"Authorization": f"Bearer {SECRET}", "X-Run": "7"}),
        jc.callbacks.MLflowLogger("a", f"https://me:{SECRET}@host"),
        jc.callbacks.WandbLogger("a", config={"api_key": SECRET, "rate": 0.1}, entity="me"),
        jc.callbacks.TrackerLogger(Service()),
    ]
    words = "\n".join(map(_words, callbacks))
    assert SECRET not in words
    assert "X-Run" in words
    assert "rate" in words
    assert "entity" in words


def git(directory, *arguments):
    given = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(directory), *arguments]
    return subprocess.run(given, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_and_whether_it_was_changed(tmp_path, monkeypatch):
    program = tmp_path / "sub" / "train.py"
    program.parent.mkdir()
    program.write_text("print(1)\n")
    assert module._commit_in(program.parent) == (None, None)
    module._commit_in.cache_clear()
    git(tmp_path, "init", "-q")
    assert module._commit_in(program.parent) == (None, None), "no commit yet"
    module._commit_in.cache_clear()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    head = git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(program), raising=False)
    assert (what_ran()["commit"], what_ran()["dirty"]) == (head, False)
    program.write_text("print(2)\n")
    module._commit_in.cache_clear()
    assert (what_ran()["commit"], what_ran()["dirty"]) == (head, True)
    module._commit_in.cache_clear()


def test_no_environment_variable_is_written(monkeypatch):
    monkeypatch.setenv("MY_SECRET_OF_THIS_TEST", SECRET)
    monkeypatch.setattr(sys, "argv", ["train.py", "--token", SECRET])
    found = what_ran({"rows": 3})
    assert SECRET not in json.dumps(found)
    assert found["command"] == ["train.py", "--token", "***"]
    assert found["data"] == {"rows": 3}
    assert found["versions"]["optax"] == optax.__version__


def test_each_process_of_a_run_is_in_its_records(tmp_path):
    class Shelf(jc.writers.Tracker):
        seen: tuple = ()

        def open(self, run):
            self.seen = (*self.seen, run.what_ran)

        def send(self, records):
            pass

    shelf = Shelf()
    given = {"data": make_data(), "model": make_params(), "callbacks": [jc.callbacks.TrackerLogger(shelf)]}
    first = fit(epochs=1, run_dir=tmp_path, **given)
    second = fit(epochs=2, run_dir=tmp_path, resume=True, **given)
    again = fit(epochs=2, run_dir=tmp_path, resume=True, **given)
    assert len(first.what_ran) == 1
    assert len(second.what_ran) == len(again.what_ran) == 2
    assert first.what_ran[0]["data"]["rows"] == 70
    assert first.what_ran[0]["data"]["hash"]
    assert second.what_ran[0] == first.what_ran[0]
    assert shelf.seen == second.what_ran
    lines = [json.loads(line) for line in (tmp_path / ".jaxcb" / "run.jsonl").read_text().splitlines()]
    assert [line["ran"] for line in lines if "ran" in line] == list(second.what_ran)
    alone = fit(epochs=1, **given)
    assert alone.what_ran == ()
    assert shelf.seen[-1]["data"] == first.what_ran[0]["data"], "a tracker knows the data without a directory, too"
