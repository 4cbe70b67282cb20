"""tools/setup_env.sh in real environments whose pip is a stub, which logs what it would install."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMIT = re.search(r"@([0-9a-f]{40})", (ROOT / "hypernet_d2/__init__.py").read_text())[1]

# PIP_FAILS_FOR: a word of the command for which pip fails, and its message.
PIP = """
import os, sys
words = sys.argv[1:]
if words != ["--version"]:
    with open(os.environ["PIP_LOG"], "a") as log:
        log.write(" ".join(words) + "\\n")
word, _, message = os.environ.get("PIP_FAILS_FOR", "").partition("|")
if words[0] == "download" or (word and word in " ".join(words)):
    print("Collecting", words[-1])
    print(message or "ERROR: No matching distribution found")
    sys.exit(1)
"""
# Of a checkout of detectron2: its set-up would write and compile, and must not be executed.
SETUP_PY = """
raise SystemExit("executed")
setup(install_requires=["fvcore>=0.1.5,<0.1.6", "black", "iopath; python_version>'3'"])
"""


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    path.chmod(mode)


def write_checkout(folder: Path) -> Path:
    """What counts as a checkout of detectron2; its compiled part is missing."""
    write(folder / "setup.py", SETUP_PY)
    write(folder / "configs" / "a.yaml", "A: 1")
    write(folder / "tests" / "__init__.py", "")
    write(folder / "detectron2" / "__init__.py", "__version__ = '0.6'")
    for name in ("layers", "engine", "evaluation", "model_zoo"):
        write(folder / "detectron2" / name / "__init__.py", "")
    write(folder / "detectron2" / "model_zoo" / "model_zoo.py", "import pkg_resources")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def machine(tmp_path):
    """An environment, a checkout of ours, and a function that runs the set-up in them."""
    checkout = tmp_path / "a checkout ü"
    for name in ("setup.py", "tools", "hypernet_d2/__init__.py"):
        target = checkout / name
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, target)
    environment = tmp_path / "an environment ü"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    log = tmp_path / "pip.log"
    log.touch()
    write(site / "pip" / "__init__.py", "")
    write(site / "pip" / "__main__.py", PIP)
    for package, version in (("torch", "2.4.0"), ("torchvision", "0.19.0")):
        write(site / f"{package}.py", f"__version__ = '{version}'")
        info = site / f"{package}-{version}.dist-info"
        write(info / "METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        write(info / "INSTALLER", "pip\n")
    write(site / "cv2.py", "")
    # The public repository: a folder that is no repository, so that it cannot be reached.
    (tmp_path / "public").mkdir()

    def set_up(*command: str, **env: str) -> subprocess.CompletedProcess:
        ours = ("DETECTRON2", "DETECTRON2_BUILD", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME")
        kept = {key: value for key, value in os.environ.items() if key not in ours}
        fixed = {
            "VIRTUAL_ENV": str(environment),
            "PIP_LOG": str(log),
            "DETECTRON2_URL": (tmp_path / "public").as_uri(),
            "PYTORCH_CPU_INDEX": (tmp_path / "index").as_uri(),
        }
        return subprocess.run(
            ["sh", str(checkout / "tools" / "setup_env.sh"), *command],
            cwd=tmp_path,
            env={**kept, **fixed, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )

    return SimpleNamespace(
        set_up=set_up, log=log, checkout=checkout, environment=environment, site=site
    )


def remove_torch(machine) -> None:
    for path in machine.site.glob("torch*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_installs_once_and_runs_the_command_in_the_checkout(machine):
    show = ("sh", "-c", 'pwd; command -v python; echo "$1"', "sh", "two words")
    first = machine.set_up(*show, DETECTRON2="none")
    assert first.returncode == 0, first.stdout
    assert first.stdout.splitlines()[-3:] == [
        str(machine.checkout),
        str(machine.environment / "bin" / "python"),
        "two words",
    ]
    assert re.search(r"ready after \d+ s: Python .*, torch 2.4.0, without", first.stdout)
    installed = machine.log.read_text()
    assert "--editable .[dev]" in installed
    assert "torch==" not in installed  # the one that is there stays

    second = machine.set_up("true", DETECTRON2="none")
    assert second.returncode == 0 and "nothing changed" in second.stdout
    assert machine.log.read_text() == installed

    with open(machine.checkout / "setup.py", "a") as file:
        file.write("\n# changed\n")
    assert "nothing changed" not in machine.set_up("true", DETECTRON2="none").stdout


def test_goes_on_without_detectron2_and_says_why(machine):
    write(machine.site / "detectron2" / "__init__.py", "raise ImportError('undefined symbol\\nx')")
    done = machine.set_up("echo", "the command ran")
    assert done.returncode == 0
    assert "not from the environment (does not load: undefined symbol)" in done.stdout
    assert "not from pip's find-links" in done.stdout
    assert f"public at {COMMIT[:8]} (git ls-remote failed: " in done.stdout
    assert done.stdout.endswith("the command ran\n")


def test_a_checkout_is_used_as_it_is(machine, tmp_path):
    checkout = write_checkout(tmp_path / "a détectron2")
    before = files_of(checkout)
    use = ("python", "-c", "import detectron2.model_zoo.model_zoo")
    done = machine.set_up(*use, DETECTRON2=str(checkout))
    assert done.returncode == 0, done.stdout
    assert "detectron2 0.6 as plain Python" in done.stdout
    assert "--no-build-isolation fvcore>=0.1.5,<0.1.6 iopath; python_version>'3'\n" in (
        machine.log.read_text()
    )
    after = {name: data for name, data in files_of(checkout).items() if "__pycache__" not in name}
    assert after == before

    code = """
    import importlib.util, sys, pkg_resources, detectron2.model_zoo
    print(pkg_resources.resource_filename("detectron2.model_zoo", "configs/a.yaml"))
    print(importlib.util.find_spec("configs"), importlib.util.find_spec("tests"))
    """
    done = machine.set_up("python", "-c", textwrap.dedent(code))
    config, modules = done.stdout.splitlines()[-2:]
    assert Path(config).read_text() == "A: 1"
    assert modules == "None None"
    assert "nothing changed" in done.stdout

    # Another checkout replaces it; one that does not load, or is none, is refused.
    other = write_checkout(tmp_path / "other")
    write(other / "detectron2" / "__init__.py", "__version__ = '0.7'")
    assert "detectron2 0.7" in machine.set_up(DETECTRON2=str(other)).stdout
    older = write_checkout(tmp_path / "older")
    write(older / "detectron2" / "engine" / "__init__.py", "from PIL.Image import LINEAR")
    done = machine.set_up("true", DETECTRON2=str(older))
    assert done.returncode == 1 and "older cannot be used: does not load: " in done.stdout
    (tmp_path / "empty").mkdir()
    done = machine.set_up("true", DETECTRON2=str(tmp_path / "empty"))
    assert done.returncode == 1
    assert "empty cannot be used: no checkout of detectron2, as setup.py is missing" in done.stdout
    assert "detectron2 0.7" in machine.set_up().stdout


def test_an_archive_is_unpacked_into_the_environment(machine, tmp_path):
    write_checkout(tmp_path / "detectron2-0.6")
    archive = tmp_path / "detectron2-0.6.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(tmp_path / "detectron2-0.6", "detectron2-0.6")
    shutil.rmtree(tmp_path / "detectron2-0.6")
    done = machine.set_up("true", DETECTRON2="detectron2-0.6.tar.gz")
    assert "detectron2 0.6 as plain Python" in done.stdout
    assert (machine.environment / "src" / "detectron2-0.6" / "setup.py").is_file()

    archive.write_bytes(archive.read_bytes()[:100])
    shutil.rmtree(machine.environment / "detectron2_plain")
    done = machine.set_up("true", DETECTRON2=str(archive))
    assert done.returncode == 1
    assert "no wheel, sdist or checkout of detectron2" in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize("has_git", [True, False])
def test_the_public_commit_comes_by_git_or_as_an_archive(machine, tmp_path, has_git):
    public = write_checkout(tmp_path / "public")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname", "basename", "mktemp"):
        (tools / name).symlink_to(shutil.which(name))
    if has_git:
        # git fetch takes a commit by its name only; the name here is not the public one's.
        write(
            tools / "git",
            f"""\
            #!/bin/sh
            case "$3" in
                fetch) [ "$8" = {COMMIT} ] || exit 1 ;;
                checkout) PATH="{os.environ["PATH"]}"; cp -r "{public}"/* "$2" ;;
            esac
            """,
            0o755,
        )
    else:
        (public / "archive").mkdir()
        with tarfile.open(public / "archive" / f"{COMMIT}.tar.gz", "w:gz") as file:
            file.add(public, f"detectron2-{COMMIT}", filter=lambda entry: (
                None if "archive" in entry.name else entry))  # fmt: skip
    done = machine.set_up("true", PATH=str(tools))
    assert "detectron2 0.6 as plain Python" in done.stdout, done.stdout
    assert (machine.environment / "src" / f"detectron2-{COMMIT}" / "setup.py").is_file()
    assert "not from the environment" not in machine.set_up("true", PATH=str(tools)).stdout


def test_a_wheel_that_pip_refuses_is_named(machine, tmp_path):
    wheel = tmp_path / "detectron2-0.6-cp39-cp39-linux_x86_64.whl"
    wheel.touch()
    message = f"ERROR: {wheel.name} is not a supported wheel on this platform."
    done = machine.set_up("true", DETECTRON2=str(wheel), PIP_FAILS_FOR=f"{wheel.name}|{message}")
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("setup_env: ")]
    assert f"DETECTRON2={wheel} cannot be used" in line and "not a supported wheel" in line


def test_a_path_that_does_not_exist_is_refused(machine):
    done = machine.set_up("true", DETECTRON2="no/such.whl")
    assert done.returncode == 1
    assert "DETECTRON2=no/such.whl" in done.stdout and "expected a wheel" in done.stdout
    assert machine.log.read_text() == ""


def test_the_compiled_part_is_built_from_a_copy_where_it_is_asked_for(machine, tmp_path):
    checkout = write_checkout(tmp_path / "detectron2")
    done = machine.set_up("true", DETECTRON2=str(checkout), DETECTRON2_BUILD="1",
                          PIP_FAILS_FOR="--no-deps|error: no compiler")  # fmt: skip
    assert "cannot be compiled (pip install failed: no compiler)" in done.stdout
    assert "detectron2 0.6 as plain Python" in done.stdout
    (build,) = [line for line in machine.log.read_text().splitlines() if "--no-deps" in line]
    assert build.endswith("detectron2") and str(checkout) not in build


@pytest.mark.parametrize(
    "message",
    [
        "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
        "ERROR: No matching distribution found for torch",
    ],
)
def test_a_failure_of_pip_is_one_line_and_the_next_run_continues(machine, message):
    done = machine.set_up("echo", "the command ran", PIP_FAILS_FOR=f"--editable|{message}")
    assert done.returncode == 1 and "the command ran" not in done.stdout
    last = done.stdout.splitlines()[-1]
    assert message.removeprefix("ERROR: ") in last and "run the same command again" in last
    assert "Traceback" not in done.stdout and "ready" not in done.stdout
    assert "ready" in machine.set_up("true", DETECTRON2="none").stdout


def test_a_package_that_was_installed_in_part_is_installed_again(machine):
    # pip writes INSTALLER last.
    info = machine.site / "sympy-1.0.dist-info"
    write(info / "METADATA", "Metadata-Version: 2.1\nName: sympy\nVersion: 1.0\n")
    done = machine.set_up("true", DETECTRON2="none")
    assert "sympy-1.0 is incomplete" in done.stdout
    assert not info.exists()


def test_an_environment_that_was_created_in_part_is_created_again(machine):
    folder = machine.checkout / ".venv"
    write(folder / "bin" / "python", "#!/bin/sh\nexit 1\n", 0o755)
    python = machine.checkout / "python"
    write(
        python,
        f"""\
        #!/bin/sh
        case "$*" in
            *"-m venv"*)
                rm -r .venv
                "{sys.executable}" -m venv --without-pip .venv
                exec cp -r "{machine.site}/pip" .venv/lib/python*/site-packages ;;
            *sys.base_prefix*) exit 0 ;;
        esac
        exec "{sys.executable}" "$@"
        """,
        0o755,
    )
    done = machine.set_up("true", VIRTUAL_ENV="", DETECTRON2="none", PYTHON=str(python))
    assert "creating ./.venv" in done.stdout, done.stdout
    assert (folder / "pyvenv.cfg").is_file()


@pytest.fixture
def cpu_index(tmp_path):
    """The address of a package index that has a page "torch"."""
    (tmp_path / "index" / "torch").mkdir(parents=True)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "index")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("gpu", [False, True])
def test_torch_for_cpus_without_a_gpu(machine, cpu_index, tmp_path, gpu):
    if os.path.exists("/proc/driver/nvidia") or shutil.which("nvidia-smi"):
        pytest.skip("this machine has a GPU")
    remove_torch(machine)
    write(tmp_path / "bin" / "nvidia-smi", "#!/bin/sh\n", 0o755 if gpu else 0o644)
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    machine.set_up("true", DETECTRON2="none", PATH=path, PYTORCH_CPU_INDEX=cpu_index)
    (command,) = [line for line in machine.log.read_text().splitlines() if "torch==" in line]
    assert command.startswith("install " if gpu else f"install --extra-index-url {cpu_index} ")
    assert ("--extra-index-url" in command) != gpu


def test_torch_of_the_index_where_that_for_cpus_cannot_be_reached(machine):
    remove_torch(machine)
    done = machine.set_up("true", DETECTRON2="none")
    assert "cannot be reached" in done.stdout
    assert "a CPU build that is installed beforehand is kept" in done.stdout
    assert "--extra-index-url" not in machine.log.read_text()
    # pip is a stub, so there is still no torch: not a traceback, and not "ready".
    assert done.returncode == 1
    assert "torch is installed, but cannot be used: No module named 'torch'" in done.stdout
