# SPDX-License-Identifier: Apache-2.0
"""Jobs as users start them: one launcher, or one for each of several machines that all are this one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
DRIVER = ROOT / "tests/distributed/driver.py"


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


class Job:
    """A running job of `processes` a machine. Every machine has a folder of its own, where its launcher runs.

    Args:
        folder: where the machines' folders are made; what the job's processes are known by.
        command: script and arguments. `plan` is for the driver, see there.
        flags: more of the launcher's own.
    """

    def __init__(self, folder, *command, processes, machines=1, plan=None, flags=(), environment=None):
        folder = Path(folder)
        self.mark = str(folder)
        self.machines = [folder / f"machine{index}" for index in range(machines)]
        script, *arguments = map(str, command)
        driver = [str(DRIVER), json.dumps({"mark": self.mark, **(plan or {})})]
        several = ["--nnodes", str(machines), "--master", f"127.0.0.1:{free_port()}"] if machines > 1 else []
        self.launchers = []
        for index, machine in enumerate(self.machines):
            machine.mkdir(parents=True)
            which = ["--rank", str(index)] if several else []
            launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes), *several, *which, *flags]
            with (machine / "console").open("w") as console:
                self.launchers.append(
                    subprocess.Popen(
                        [sys.executable, *launch, *driver, str(ROOT / script), *arguments],
                        cwd=machine,
                        env={**os.environ, "PYTHONPATH": paths(), **(environment or {})},
                        stdin=subprocess.DEVNULL,
                        stdout=console,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    def wait(self, seconds):
        """Statuses of the launchers, all of which must end within so many seconds and leave nothing behind."""
        deadline = time.monotonic() + seconds
        try:
            statuses = [launcher.wait(max(0.1, deadline - time.monotonic())) for launcher in self.launchers]
            while self.workers() and time.monotonic() < deadline:
                time.sleep(0.2)
            assert not self.workers(), f"still running: {self.workers()}\n{self.everything()}"
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s\n{self.everything()}") from None
        finally:
            self.kill()
        return statuses

    def workers(self):
        """Processes of this job other than the launchers: number -> command line."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal() and int(entry.name) not in {os.getpid(), *(own.pid for own in self.launchers)}:
                try:
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                except OSError:
                    continue
                if self.mark in command:
                    found[int(entry.name)] = command
        return found

    def kill(self):
        """End what is left of the job."""
        for process in [*(own.pid for own in self.launchers if own.poll() is None), *self.workers()]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for launcher in self.launchers:
            launcher.wait()

    def console(self):
        """What people saw, of all launchers."""
        return "\n".join((machine / "console").read_text() for machine in self.machines)

    def everything(self):
        """Consoles and logs, for the message of a failed test."""
        texts = [self.console()]
        texts += [
            f"{path}\n{path.read_text()}" for machine in self.machines for path in machine.glob("log/workerlog.*")
        ]
        return "\n".join(texts)


def paths():
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def launch(folder, *command, processes, **options):
    """Run a job that must succeed: its consoles."""
    job = Job(folder, *command, processes=processes, **options)
    statuses = job.wait(300)
    assert not any(statuses), job.everything()
    return job.console()


def run(folder, *command, plan=None):
    """Run without a launcher: its console."""
    folder.mkdir(parents=True)
    script, *arguments = map(str, command)
    line = [sys.executable, str(DRIVER), json.dumps(plan or {}), str(ROOT / script), *arguments]
    environment = {**os.environ, "PYTHONPATH": paths()}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
