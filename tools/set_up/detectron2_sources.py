"""Where detectron2 comes from."""

from __future__ import annotations

import ast
import os
import re
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import plain_detectron2
from commands import (
    ROOT,
    SetupError,
    error_line,
    is_installed,
    pip,
    pip_install,
    probe,
    run,
    say,
    step,
)

PUBLIC = "https://github.com/facebookresearch/detectron2"
REACH_SECONDS = 15  # to find out whether the public repository can be reached
FETCH_SECONDS = 600
BUILD_SECONDS = 3600
# Required by detectron2's setup.py, but not for its use: a formatter of Python code.
NOT_REQUIRED = ("black",)


def find_detectron2(state: dict) -> str:
    """Install detectron2 if the environment has none that loads; return what there is, in words.

    Raises:
        SetupError: the detectron2 that the variable DETECTRON2 names cannot be used.
    """
    named = os.environ.get("DETECTRON2", "")
    if named == "none":
        return "without detectron2 (DETECTRON2=none)"
    source = None if named in ("", "plain") else Path(named)
    build = os.environ.get("DETECTRON2_BUILD", "") not in ("", "0")
    linked = plain_detectron2.linked_checkout()
    if state["detectron2"]:
        other = source and linked and source != linked
        if not other and (state["compiled"] or not build):
            return in_words(state)
        reason = f"the environment uses {linked}" if other else "it is not compiled"
    else:
        reason = state["detectron2_error"]
        say(f"detectron2: not from the environment ({reason})")
    with tempfile.TemporaryDirectory() as scratch:
        for where, get in [(named, lambda: source)] if source else places(Path(scratch)):
            try:
                with step(f"detectron2: from {where}"):
                    return in_words(install(state, get(), build))
            except SetupError as error:
                if source:
                    raise SetupError(f"DETECTRON2={source} cannot be used: {error}") from error
                reason = str(error)
                say(f"detectron2: not from {where} ({reason})")
    return in_words(state) if state["detectron2"] else f"without detectron2 ({reason})"


def in_words(state: dict) -> str:
    if state["compiled"]:
        return f"detectron2 {state['detectron2']} with its compiled part"
    return (
        f"detectron2 {state['detectron2']} as plain Python (without deformable convolutions and "
        "operations on rotated boxes)"
    )


def places(scratch: Path) -> Iterator[tuple[str, Callable[[], Path]]]:
    """The name of each source, and a function that gets it."""
    options = ("--no-index", "--no-deps", "--only-binary", ":all:", "--dest", scratch)
    try:
        pip("download", *options, "detectron2")
    except SetupError:
        say("detectron2: not from pip's find-links (no wheel for this Python)")
    else:
        (wheel,) = scratch.glob("*.whl")
        yield f"pip's find-links, {wheel.name}", lambda: wheel
    source = (ROOT / "hypernet_d2" / "__init__.py").read_text(encoding="utf-8")
    (commit,) = re.findall(r"@([0-9a-f]{40})", source)
    url = os.environ.get("DETECTRON2_URL") or PUBLIC
    yield f"{url} at {commit[:8]}", lambda: fetch(url, commit)


def install(state: dict, source: Path, build: bool) -> dict:
    """Install from a wheel, an sdist or a checkout; return the state of the environment.

    Raises:
        SetupError: detectron2 cannot be installed from there, or does not load afterwards. A
            checkout that was used before is used again then.
    """
    previous = plain_detectron2.linked_checkout()
    if source.suffix == ".whl":
        plain_detectron2.remove()
        pip("uninstall", "--yes", "detectron2")
        pip_install(state, source)
    else:
        checkout = source if source.is_dir() else unpack(source)
        for name in ("setup.py", "detectron2/__init__.py", "detectron2/layers/__init__.py"):
            if not (checkout / name).is_file():
                raise SetupError(f"no checkout of detectron2, as {name} is missing")
        pip_install(state, "--no-build-isolation", *requirements(checkout))
        pip("uninstall", "--yes", "detectron2")
        if not (build and compiles(state, checkout)):
            plain_detectron2.link(checkout)
    if not is_installed("pkg_resources"):
        plain_detectron2.add_pkg_resources()
    state = probe()
    if not state["detectron2"]:
        plain_detectron2.remove()
        if previous:
            plain_detectron2.link(previous)
        raise SetupError(state["detectron2_error"])
    return state


def requirements(checkout: Path) -> list[str]:
    """install_requires of the checkout's setup.py, which is parsed and not executed."""
    tree = ast.parse((checkout / "setup.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "install_requires":
            found = ast.literal_eval(node.value)
            return [text for text in found if re.match(r"[\w-]+", text)[0] not in NOT_REQUIRED]
    raise SetupError("no checkout of detectron2, as its setup.py has no install_requires")


def compiles(state: dict, checkout: Path) -> bool:
    """Compile and install a copy of a checkout, as the build writes into the folder it is in."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "detectron2")
        shutil.copytree(checkout, copy, ignore=shutil.ignore_patterns(".git", "build", "*.so"))
        plain_detectron2.remove()
        options = ("--no-build-isolation", "--no-deps")
        try:
            pip_install(state, "ninja")  # compiles in parallel
            pip_install(state, *options, copy, seconds=BUILD_SECONDS)
        except SetupError as error:
            say(f"detectron2: used as plain Python, as it cannot be compiled ({error})")
            return False
    return True


def fetch(url: str, commit: str) -> Path:
    """A checkout of the public commit, by git or, if git is missing, from an archive."""
    target = plain_detectron2.SOURCES / f"detectron2-{commit}"
    if (target / "setup.py").is_file():
        return target
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as scratch:
        if shutil.which("git") is None:
            archive = Path(scratch, f"{target.name}.tar.gz")
            address = f"{url}/archive/{commit}.tar.gz"
            try:
                with urllib.request.urlopen(address, timeout=REACH_SECONDS) as data:
                    with open(archive, "wb") as file:
                        shutil.copyfileobj(data, file)
            except OSError as error:
                raise SetupError(f"{address} cannot be fetched: {error}") from error
            return unpack(archive)
        # No password prompt, and no endless wait on a connection that has become silent.
        os.environ |= {"GIT_TERMINAL_PROMPT": "0", "GIT_HTTP_LOW_SPEED_LIMIT": "1000"}
        os.environ |= {"GIT_HTTP_LOW_SPEED_TIME": "30"}
        checkout = Path(scratch, target.name)
        checkout.mkdir()
        for arguments, seconds in (
            (("ls-remote", url, "HEAD"), REACH_SECONDS),
            (("init", "--quiet"), REACH_SECONDS),
            (("fetch", "--quiet", "--depth", "1", url, commit), FETCH_SECONDS),
            (("checkout", "--quiet", "FETCH_HEAD"), FETCH_SECONDS),
        ):
            done = run("git", "-C", checkout, *arguments, seconds=seconds)
            if done.returncode:
                raise SetupError(f"git {arguments[0]} failed: {error_line(done.stdout)}")
        checkout.rename(target)
    return target


def unpack(archive: Path) -> Path:
    """The folder of an sdist or archive, unpacked in the environment."""
    name = re.sub(r"(\.tar)?\.\w+$", "", archive.name)
    target = plain_detectron2.SOURCES / name
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as scratch:
        try:
            shutil.unpack_archive(archive, scratch)
            (inner,) = [path for path in Path(scratch).iterdir() if path.is_dir()]
        except (shutil.ReadError, ValueError, OSError, EOFError) as error:
            raise SetupError(f"no wheel, sdist or checkout of detectron2: {error}") from error
        shutil.rmtree(target, ignore_errors=True)
        inner.rename(target)
    return target
