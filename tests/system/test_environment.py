# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from hmsa.system import environment
from hmsa.system.version import PADDLE

ROOT = Path(__file__).parents[2]
WITHOUT_PADDLE = f'expected PaddlePaddle to be installed, found none: run pip install "{PADDLE}", or '


@pytest.mark.parametrize(
    ("processor", "path"),
    [
        ("vendor_id : GenuineIntel\nflags : avx2 avx512f avx512dq avx512bw avx512vl", None),
        ("vendor_id : AuthenticAMD\nflags : fpu avx2 sha_ni", "5"),
        ("vendor_id : AuthenticAMD\nflags : avx2 avx512f avx512dq avx512bw avx512vl avx512_bf16", "7"),
    ],
)
def test_the_matrix_path_is_chosen_on_amd_only(monkeypatch, processor, path):
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
    monkeypatch.setattr(environment.Path, "read_text", lambda *arguments, **options: processor)
    environment.prepare()
    assert os.environ.pop("MKL_DEBUG_CPU_TYPE", None) == path


def test_the_users_setting_wins(monkeypatch):
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "4")
    monkeypatch.setattr(environment, "amd_matrix_path", lambda: "5")
    environment.prepare()
    assert os.environ["MKL_DEBUG_CPU_TYPE"] == "4"


@pytest.fixture
def no_threads_set(monkeypatch):
    """Eight cores, and nothing set by the user or a launcher; what `prepare` sets is undone."""
    for name in ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "PADDLE_LOCAL_SIZE", "PADDLE_TRAINERS_NUM"):
        monkeypatch.setenv(name, "")  # noted, so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment, "cores", lambda: 8)


@pytest.mark.usefixtures("no_threads_set")
@pytest.mark.parametrize(("processes", "share"), [(None, 8), ("1", 8), ("2", 4), ("3", 2), ("16", 1)])
def test_every_process_of_a_machine_gets_its_share_of_the_cores(monkeypatch, processes, share):
    if processes:
        monkeypatch.setenv("PADDLE_LOCAL_SIZE", processes)
        monkeypatch.setenv("PADDLE_TRAINERS_NUM", "64")  # of all machines
    environment.prepare()
    assert os.environ["MKL_NUM_THREADS"] == str(share)
    assert "OMP_NUM_THREADS" not in os.environ
    assert environment.threads() == share


@pytest.mark.usefixtures("no_threads_set")
def test_without_the_local_number_all_processes_count(monkeypatch):
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "4")
    environment.prepare()
    assert environment.threads() == 2


@pytest.mark.usefixtures("no_threads_set")
@pytest.mark.parametrize(
    ("name", "untouched"), [("MKL_NUM_THREADS", "OMP_NUM_THREADS"), ("OMP_NUM_THREADS", "MKL_NUM_THREADS")]
)
def test_the_users_number_of_threads_wins(monkeypatch, name, untouched):
    monkeypatch.setenv(name, "3")
    environment.prepare()
    assert os.environ[name] == "3"
    assert untouched not in os.environ
    assert environment.threads() == 3


@pytest.mark.usefixtures("no_threads_set")
def test_one_thread_unless_prepared():
    assert environment.threads() == 1


def test_the_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5}, raising=False)
    assert environment.cores() == 3


@pytest.fixture
def installed(monkeypatch):
    """A function that says which packages are installed: versions by name."""
    monkeypatch.delenv("PADDLE_TRAINER_ID", raising=False)

    def install(**versions):
        def version(package):
            if package.replace("-", "_") not in versions:
                raise PackageNotFoundError(package)
            return versions[package.replace("-", "_")]

        monkeypatch.setattr(environment, "version", version)

    environment._warn.cache_clear()
    return install


@pytest.mark.parametrize("package", ["paddlepaddle", "paddlepaddle_gpu"])
@pytest.mark.parametrize("version", ["2.6.1", "3.3.2", "3.4.0", "0.0.0", "4.0.0.dev20260101", "unheard of"])
def test_a_paddle_that_was_not_tested_gets_one_warning_that_names_it(installed, capsys, package, version):
    installed(**{package: version})
    environment.prepare()
    environment.prepare()
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("warning: expected Paddle 2.6.2 to 3.3.1 (tested with 2.6.2, 3.2.2, 3.3.1), found ")
    assert f"found {version}: " in line


@pytest.mark.parametrize("version", [*environment.TESTED_PADDLES, "2.6.2.post120", "3.0.0", "3.3.0rc1", "3.3.1.post1"])
def test_a_paddle_in_the_tested_range_gets_none(installed, capsys, version):
    installed(paddlepaddle_gpu=version)
    environment.prepare()
    assert capsys.readouterr().err == ""


def test_only_the_first_rank_warns(installed, capsys, monkeypatch):
    installed(paddlepaddle="1.0")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    environment.prepare()
    assert capsys.readouterr().err == ""


def test_a_paddle_that_was_built_from_source_has_an_unknown_version(installed, capsys, monkeypatch):
    installed()
    monkeypatch.setattr(environment, "find_spec", lambda name: object())
    environment.prepare()
    assert "found one of unknown version: " in capsys.readouterr().err


def run_python(code, *, ways=(), **variables):
    """Run a program with nothing set but `variables` -> what it printed on each stream."""
    names = ("MKL_NUM_THREADS", "OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "GLOG_minloglevel", "PYTHONWARNINGS")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    path = os.pathsep.join((*ways, str(ROOT), os.environ.get("PYTHONPATH", "")))
    variables = {**inherited, "PYTHONPATH": path, **variables}
    command = [sys.executable, "-c", f"RECIPE = {str(ROOT / 'configs/mscale_ocr_toy.yml')!r}\n{code}"]
    run = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines(), run.stderr


SHOW = """
import os, cv2, numpy as np
from hmsa.system.environment import amd_matrix_path
from hmsa.system.environment import threads
print(threads(), os.environ["MKL_NUM_THREADS"], cv2.getNumThreads())
print(os.environ.get("MKL_DEBUG_CPU_TYPE") == amd_matrix_path(), os.environ["GLOG_minloglevel"])
# Random numbers are what zlib has to work on.
pattern = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
print((cv2.imdecode(cv2.imencode(".png", pattern)[1], cv2.IMREAD_COLOR) == pattern).all())
"""


def test_the_library_prepares_as_the_scripts_do():
    """Threads, matrix path, a PNG decoder that works with Paddle 2.6, and nothing said."""
    code = f"import hmsa; hmsa.build_model(hmsa.load_config(RECIPE))\n{SHOW}"
    cores = str(environment.cores())
    assert run_python(code) == ([f"{cores} {cores} 1", "True 2", "True"], "")


def test_importing_hmsa_changes_nothing_and_its_first_use_prepares():
    code = """
import os, sys, warnings
before = dict(os.environ), warnings.filters[:], set(sys.modules)
import hmsa
print(before[:2] == (dict(os.environ), warnings.filters), "numpy" in sys.modules)
hmsa.load_config(RECIPE)
hmsa.load_weights
print("paddle" in sys.modules, "cv2" in sys.modules, os.environ["MKL_NUM_THREADS"], os.environ["GLOG_minloglevel"])
"""
    assert run_python(code, MKL_NUM_THREADS="3") == (["True False", "False True 3 2"], "")


def test_a_recipe_is_read_without_paddle(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDE_PADDLE)
    code = """
import hmsa
print(hmsa.load_config(RECIPE).model.num_classes)
try: hmsa.build_model
except Exception as error: print(error)
"""
    (classes, message), said = run_python(code, ways=[str(tmp_path)])
    assert (classes, said) == ("19", "")
    assert message.startswith(WITHOUT_PADDLE)


def test_settings_of_the_users_own_win_over_the_library():
    code = f"""
import warnings
warnings.filterwarnings("error", message="No ccache found")
import cv2; cv2.setNumThreads(2 if cv2.getNumberOfCPUs() != 2 else 3)
try: import hmsa; hmsa.build_model
except UserWarning as error: print(str(error)[:15])
print(cv2.getNumThreads() in (2, 3))
{SHOW.partition("# Random")[0]}"""
    given = {"MKL_NUM_THREADS": "7", "MKL_DEBUG_CPU_TYPE": "4", "GLOG_minloglevel": "1"}
    lines, said = run_python(code, **given)
    assert lines[-3:] == ["True", f"7 7 {lines[-2][-1]}", "False 1"]
    assert said == ""
    assert lines[:-3] in (["No ccache found"], [])  # a Paddle or a machine with it says nothing


@pytest.mark.parametrize("given", [{}, {"OMP_NUM_THREADS": "1"}])
def test_after_paddle_what_can_still_be_done_is_done(given):
    """Paddle sets OMP_NUM_THREADS to 1, which is no setting of the user's, and reads the others when it computes."""
    code = """
import os, warnings
warnings.simplefilter("ignore")
import paddle, hmsa
hmsa.build_model
from hmsa.system.environment import amd_matrix_path
from hmsa.system.environment import threads
print(threads(), os.environ.get("MKL_DEBUG_CPU_TYPE") == amd_matrix_path())
"""
    (line,), said = run_python(code, **given)
    assert line == f"{1 if given else environment.cores()} True"
    late = "warning: expected hmsa or cv2 to be imported before Paddle 2, found Paddle loaded: reading PNG files can "
    assert said == (f"{late}crash\n" if environment.paddle_version().startswith("2.") else "")


@pytest.mark.parametrize("given", [{}, {"OMP_NUM_THREADS": "1"}])
def test_what_the_launcher_sets_is_no_setting_of_the_users(given):
    """It loads Paddle, which sets OMP_NUM_THREADS to 1, before it starts the processes."""
    rank = "from hmsa.system import environment as e; e.cores = lambda: 8; e.prepare(); print(e.threads())"
    code = f"""
import os, subprocess, sys
os.environ.setdefault("OMP_NUM_THREADS", "1")
subprocess.run([sys.executable, "-c", {rank!r}], env={{**os.environ, "PADDLE_LOCAL_SIZE": "2"}})
"""
    assert run_python(code, **given) == (["1" if given else "4"], "")


def test_no_module_loads_paddle_unprepared():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.glob("hmsa/**/*.py")]
    code = f"""
import importlib, importlib.abc, os, sys

class NoPaddle(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "paddle":
            loads.append("cv2" in sys.modules and "GLOG_minloglevel" in os.environ)
            raise ImportError("not now")

sys.meta_path.insert(0, NoPaddle())
for module in {modules}:
    loads = []
    for name in [name for name in sys.modules if name.startswith(("hmsa", "cv2"))]:
        del sys.modules[name]
    os.environ.pop("GLOG_minloglevel", None)
    try: importlib.import_module(module)
    except ImportError: pass
    print(module, *loads)
"""
    lines, _ = run_python(code)
    assert len(lines) == len(modules)
    # The network imports nothing of this project but errors; whoever builds one has come in through another module.
    loading = [line for line in lines if " " in line and not line.startswith("hmsa.models")]
    assert len(loading) > 20
    assert [line for line in loading if not line.endswith(" True")] == []


HIDE_PADDLE = """
import importlib.metadata, sys
sys.modules["paddle"] = None
version = importlib.metadata.version
def without_paddle(name):
    if name.startswith("paddlepaddle"):
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = without_paddle
"""


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("train.py", ["--save_dir", "out"]),
        ("val.py", ["--model_path", "x"]),
        ("predict.py", ["--model_path", "x", "--image_path", "y"]),
        ("export.py", ["--model_path", "x"]),
    ],
)
def test_without_paddle_every_script_says_what_to_install(tmp_path, script, arguments):
    (tmp_path / "sitecustomize.py").write_text(HIDE_PADDLE)
    command = [sys.executable, ROOT / script, "--config", ROOT / "configs/mscale_ocr_toy.yml", *arguments]
    paths = {"PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))}
    run = subprocess.run(command, cwd=tmp_path, env={**os.environ, **paths}, capture_output=True, text=True)
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"error: {WITHOUT_PADDLE}")
