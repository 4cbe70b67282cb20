#!/bin/sh
# Prepares the Python environment, then runs a command in it, from the root of the checkout:
#
#     tools/setup_env.sh [COMMAND [ARGUMENT ...]]
#
# The environment is the active one (VIRTUAL_ENV, a conda environment other than base, or the virtual
# environment that $PYTHON, by default python3, belongs to), else ./.venv, which is created with
# $PYTHON where there is none. What it already holds is kept, torch above all. detectron2 is taken
# from the first that has it:
#   1. the environment (for a new ./.venv also the Python that creates it);
#   2. DETECTRON2=<wheel or checkout>, then the wheel folders that pip searches (find-links);
#   3. the public commit that hypernet_d2/__init__.py names.
# Where none has it the set-up goes on without. DETECTRON2=none goes without on purpose.
set -eu

TORCH=2.14.1        # installed, with the torchvision that belongs to it, where there is none
TORCHVISION=0.29.2
EXTRAS=dev
REACH_SECONDS=20    # to find out whether the public repository can be reached
BUILD_SECONDS=3600  # to fetch and compile it

say() { printf '==> %s\n' "$*"; }
fail() { printf 'setup_env: %s\n' "$*" >&2; exit 1; }

source=${DETECTRON2:-}
case $source in
    '' | none) ;;
    *)
        [ -e "$source" ] || fail "DETECTRON2=$source: no such file or folder (expected a wheel, a checkout or none)"
        source=$(CDPATH='' cd -- "$(dirname -- "$source")" && pwd -P)/$(basename -- "$source")
        ;;
esac

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# No password prompt, and no endless wait on a connection that has gone quiet.
export GIT_TERMINAL_PROMPT=0 GIT_HTTP_LOW_SPEED_LIMIT=1000 GIT_HTTP_LOW_SPEED_TIME=30

# run_for SECONDS COMMAND...: status 124 when the time is over. `timeout` is not on macOS.
run_for() {
    "$py" -c '
import os, signal, subprocess, sys
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, start_new_session=True)
try:
    sys.exit(child.wait(float(sys.argv[1])))
except subprocess.TimeoutExpired:
    os.killpg(child.pid, signal.SIGKILL)
    sys.exit(124)
except KeyboardInterrupt:
    os.killpg(child.pid, signal.SIGKILL)
    sys.exit(130)
' "$@"
}

# Prints nothing when detectron2 works in $1, otherwise why not, in one line.
why_no_detectron2() {
    "$1" -W ignore -c '
import importlib.util
if importlib.util.find_spec("detectron2") is None:
    print("not installed")
else:
    try:
        import pkg_resources
        from detectron2 import _C
    except Exception as error:
        print("does not load:", (str(error).splitlines() or [repr(error)])[0])
' 2>/dev/null || echo "crashes on import"
}

# What pip says is shown only when it fails.
pip_install() {
    "$py" -m pip install --constraint "$work/constraints.txt" "$@" </dev/null >"$work/pip" 2>&1 || {
        tail -n 20 "$work/pip" >&2
        return 1
    }
}

choose_python() {
    if [ -n "${VIRTUAL_ENV:-}" ]; then
        env=$VIRTUAL_ENV
        say "environment: $env (active)"
    elif [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-base}" != base ]; then
        env=$CONDA_PREFIX
        say "environment: $env (active conda environment)"
    elif env=$(virtual_environment_of "${PYTHON:-python3}"); [ -n "$env" ]; then
        say "environment: $env (of ${PYTHON:-python3})"
    else
        env=$root/.venv
        if [ -x .venv/bin/python ]; then
            say "environment: ./.venv (there already)"
        else
            create_environment
        fi
    fi
    py=$env/bin/python
    [ -x "$py" ] || fail "$py is missing: deactivate this environment, or create it anew"
    check_version "$py"
    "$py" -m pip --version >/dev/null 2>&1 || "$py" -m ensurepip >/dev/null 2>&1 \
        || fail "$env has no pip: install pip in it"
}

virtual_environment_of() {
    "$1" -c 'import sys; print(sys.prefix if sys.prefix != sys.base_prefix else "")' 2>/dev/null || :
}

check_version() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
        || fail "$1: expected Python 3.10 or newer (name another with PYTHON=...)"
}

create_environment() {
    base=${PYTHON:-python3}
    command -v "$base" >/dev/null || fail "PYTHON=$base: no such command (expected Python 3.10 or newer)"
    check_version "$base"
    inherit=
    if [ "$source" != none ] && [ -z "$(why_no_detectron2 "$base")" ]; then
        inherit=--system-site-packages
    fi
    say "environment: creating ./.venv with $base${inherit:+ and its packages, detectron2 among them}"
    "$base" -m venv $inherit .venv \
        || fail "$base -m venv failed (on Debian and Ubuntu: apt install python3-venv)"
}

# The version that pip knows, which may lack the "+cu130" of torch.__version__.
torch_version() {
    "$py" -W ignore -c '
import sys
from importlib.metadata import version
import torch
print(version("torch"))
sys.exit(tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 4))' 2>/dev/null
}

install_torch() {
    : >"$work/constraints.txt"
    if version=$(torch_version); then
        say "torch: $version is there and stays"
    else
        say "torch: installing torch $TORCH and torchvision $TORCHVISION (may take minutes)"
        pip_install "torch==$TORCH" "torchvision==$TORCHVISION" || {
            say "torch: not that one for this Python or platform; installing the newest"
            pip_install 'torch>=2.4' 'torchvision>=0.19' || fail "torch could not be installed"
        }
        version=$(torch_version) || fail "torch is installed but does not import, or is older than 2.4"
    fi
    # From here on pip must not exchange the torch that detectron2 was or will be compiled against,
    # nor bring a setuptools without pkg_resources, which detectron2 imports.
    printf 'torch==%s\nsetuptools<81\n' "$version" >"$work/constraints.txt"
}

install_project() {
    stamp=$env/.hypernet_d2_setup
    state=$(printf '%s\n' "$root" && cksum setup.py tools/setup_env.sh && "$py" -VV)
    if version=$(torch_version) && [ "$(cat "$stamp" 2>/dev/null)" = "$state $version" ]; then
        printf 'torch==%s\nsetuptools<81\n' "$version" >"$work/constraints.txt"
        say "packages: nothing changed since the last set-up"
        return
    fi
    install_torch
    "$py" -W ignore -c 'import pkg_resources' 2>/dev/null || pip_install 'setuptools>=77,<81'
    say "packages: installing hypernet_d2[$EXTRAS] from this checkout, editable"
    pip_install --no-build-isolation --editable ".[$EXTRAS]" || fail "pip could not install hypernet_d2"
    install_opencv
    printf '%s %s' "$state" "$version" >"$stamp"
}

install_opencv() {
    if ! "$py" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("cv2") is None)'; then
        say "packages: installing opencv-python-headless"
        pip_install opencv-python-headless || fail "pip could not install opencv-python-headless"
    fi
    "$py" -c 'import cv2' 2>"$work/cv2" \
        || fail "cv2 does not load ($(tail -n 1 "$work/cv2")); on a machine without libGL, replace opencv-python by opencv-python-headless"
}

# try_detectron2 WHERE PIP-ARGUMENT...: success when it is installed from there and works.
try_detectron2() {
    where=$1
    shift
    say "detectron2: installing from $where"
    "$py" -m pip uninstall --quiet --yes detectron2 >/dev/null 2>&1 || :
    if run_for "$BUILD_SECONDS" "$py" -m pip install --quiet --no-build-isolation \
        --constraint "$work/constraints.txt" "$@" >"$work/pip" 2>&1; then
        missing=$(why_no_detectron2 "$py")
        [ -n "$missing" ] || return 0
        "$py" -m pip uninstall --quiet --yes detectron2 >/dev/null 2>&1 || :
    else
        missing="pip failed: $(grep -i error "$work/pip" | tail -n 1)"
    fi
    say "detectron2: not from $where ($missing)"
    return 1
}

find_detectron2() {
    missing="DETECTRON2=none"
    [ "$source" != none ] || return 1
    missing=$(why_no_detectron2 "$py")
    [ -n "$missing" ] || return 0
    say "detectron2: not from the environment ($missing)"
    if [ -n "$source" ]; then
        [ ! -d "$source" ] || pip_install ninja || :  # compiles in parallel
        try_detectron2 "$source" "$source" && return 0
        cat "$work/pip" >&2
        fail "DETECTRON2=$source cannot be used: $missing"
    fi
    if "$py" -m pip download --quiet --no-index --no-deps --only-binary :all: --dest "$work/wheel" \
        detectron2 </dev/null >/dev/null 2>&1; then
        try_detectron2 "a wheel folder of pip" "$work"/wheel/*.whl && return 0
    else
        say "detectron2: not from a wheel folder of pip (none holds it for this Python)"
    fi
    commit=$(sed -n 's/.*@\([0-9a-f]\{40\}\).*/\1/p' hypernet_d2/__init__.py | head -n 1)
    public=https://github.com/facebookresearch/detectron2
    if ! command -v git >/dev/null; then
        say "detectron2: not from $public (git is not installed)"
    elif run_for "$REACH_SECONDS" git ls-remote "$public" HEAD >/dev/null 2>&1; then
        pip_install ninja || :
        try_detectron2 "$public at $commit (compiles for minutes)" "git+$public@$commit" && return 0
    else
        say "detectron2: not from $public (cannot be reached)"
    fi
    missing=$(why_no_detectron2 "$py")
    return 1
}

choose_python
install_project
if find_detectron2; then
    found="detectron2 $("$py" -c 'from importlib.metadata import version; print(version("detectron2"))')"
else
    found="without detectron2 ($missing)"
fi
say "ready: $("$py" -V), torch $version, $found"

[ $# -gt 0 ] || exit 0
rm -rf "$work"
trap - EXIT
PATH=$env/bin:$PATH
export PATH
exec "$@"
