# SPDX-License-Identifier: Apache-2.0
"""A rank that fails: everything ends soon, on every machine, and the console says which rank it was and why."""

import shutil
import socket
from pathlib import Path

import pytest
from launcher import Job, launch, paths

from hmsa import builder
from hmsa.config.reading import load_config

SECONDS = 60
HOST = socket.gethostname()
RAISED = "RuntimeError: rank {} has had enough"
# rank, machines (two ranks in all), moment, deed -> what is on a console
FAULTS = [
    # Before the ranks know of each other: what its own machine says, and what the other one does.
    (1, 2, "start", "kill", ["code -9", "error: rank 1 has not started within 40 s"]),
    (1, 2, "join", "exit", [f"error: rank 1 on {HOST}: ended with status 7"]),
    (1, 1, "train", "raise", [f"error: rank 1 on {HOST}: {RAISED.format(1)}"]),
    (1, 2, "train", "kill", [f"error: rank 1 on {HOST} ended without a word"]),
    (0, 2, "evaluate", "kill", ["code -9", "error: rank 0 ended without a word"]),
    (1, 2, "evaluate", "vanish", [f"error: rank 1 on {HOST} ended without a word"]),
    (1, 1, "save", "kill", [f"error: rank 1 on {HOST} ended without a word"]),
    (0, 2, "save", "raise", [f"error: rank 0: {RAISED.format(0)}"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "machines", "moment", "deed", "said"), FAULTS)
def test_one_rank_ends_all(tiny_recipe, tmp_path, rank, machines, moment, deed, said):
    command = ["train.py", "--config", tiny_recipe, "--save_dir", tmp_path / "out", "--iters", 4, "--batch_size", 1]
    command += ["--save_interval", 2, "--do_eval", "--engine", "eager"]
    plan = {"faults": {str(rank): [moment, deed]}}
    job = Job(tmp_path, *command, processes=2 // machines, machines=machines, plan=plan)
    statuses = job.wait(SECONDS)
    console = job.console()
    assert all(status for index, status in enumerate(statuses) if deed != "vanish" or index == 0), job.everything()
    for text in said:
        assert text in console, job.everything()
    iterations = console.count("[TRAIN]")
    assert iterations == 0 or moment in ("train", "evaluate", "save")


@pytest.mark.slow
def test_a_rank_that_is_late_is_waited_for(tiny_recipe, tmp_path):
    """Longer than gloo waits for it, which is 30 s."""
    command = ["train.py", "--config", tiny_recipe, "--save_dir", tmp_path / "out", "--iters", 4, "--log_iters", 1]
    console = launch(tmp_path, *command, processes=2, plan={"faults": {"1": ["train", "sleep"]}})
    assert console.count("[TRAIN]") == 4


@pytest.mark.slow
def test_a_picture_that_one_rank_cannot_read_ends_all(tiny_recipe, tmp_path):
    """The second image of the evaluation, which is the second machine's."""
    data, recipe = tmp_path / "data", tmp_path / "recipe.yml"
    shutil.copytree(tiny_recipe.parent, data)
    recipe.write_text(f"_base_: {tiny_recipe}\nval_dataset: {{dataset_root: {data}}}\n")
    label = Path(builder.build_dataset(load_config(recipe), "val").pairs[1][1])
    label.write_bytes(label.read_bytes()[:-60])
    command = ["train.py", "--config", recipe, "--iters", 1, "--batch_size", 1, "--do_eval", "--engine", "eager"]
    job = Job(tmp_path, *command, processes=1, machines=2)
    assert all(job.wait(SECONDS)), job.everything()
    main, other = ((machine / "console").read_text() for machine in job.machines)
    assert f"error: rank 1 on {HOST}: {label}" in main, job.everything()
    assert f"error: {label}" in other, job.everything()
    assert "Traceback" not in main + other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("train.py", ["--save_dir", "run"], "run: expected no earlier run where a new one starts, found iter_1"),
        (
            "train.py",
            ["--save_dir", "new", "--use_vdl"],
            "--use_vdl needs VisualDL, which cannot be imported (ImportErr",
        ),
        ("val.py", ["--model_path", "x", "--output", "run"], "run: expected a file to write, found a folder"),
    ],
)
def test_what_the_first_rank_refuses_ends_all_alike(tiny_recipe, tmp_path, script, arguments, said):
    """On each machine with the status of a wrong command line, though only the first looks."""
    (tmp_path / "broken/visualdl").mkdir(parents=True)
    (tmp_path / "broken/visualdl/__init__.py").write_text("raise ImportError")
    environment = {"PYTHONPATH": f"{tmp_path / 'broken'}:{paths()}"}
    arguments = [str(tmp_path / text) if text in ("run", "new") else text for text in arguments]
    (tmp_path / "run/iter_1").mkdir(parents=True)
    (tmp_path / "run/iter_1/state.json").touch()
    job = Job(
        tmp_path / "job", script, "--config", tiny_recipe, *arguments, machines=2, processes=1, environment=environment
    )
    assert job.wait(SECONDS) == [2, 2], job.everything()
    for machine in job.machines:
        assert said in (machine / "console").read_text(), job.everything()
    assert "Traceback" not in job.console()
    assert not (tmp_path / "new").exists()
