#!/bin/sh
# Prepares the Python environment, then runs a command in it, from the root of the checkout:
#
#     tools/setup_env.sh [COMMAND [ARGUMENT ...]]
#
# The environment is the active one (VIRTUAL_ENV, a conda environment other than base, or the virtual
# environment that $PYTHON, by default python3, belongs to), otherwise ./.venv, which is created with
# $PYTHON if it does not exist. tools/set_up then installs what is missing, and its
# __main__.py says where detectron2 is taken from.
set -eu

say() { printf '==> %s\n' "$*"; }
fail() { printf 'setup_env: %s\n' "$*" >&2; exit 1; }
trap 'fail "interrupted; run the same command again to continue"' INT TERM

case ${DETECTRON2:-} in
    '' | none | plain) ;;
    *)
        [ -e "$DETECTRON2" ] || fail "DETECTRON2=$DETECTRON2: no such file or folder (expected a wheel, an sdist or a checkout of detectron2, none or plain)"
        DETECTRON2=$(CDPATH='' cd -- "$(dirname -- "$DETECTRON2")" && pwd -P)/$(basename -- "$DETECTRON2")
        export DETECTRON2
        ;;
esac

root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$root"

choose_environment() {
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
        if has_pip; then
            say "environment: ./.venv (exists)"
        else
            create_environment
        fi
    fi
    [ -x "$(python_of_env)" ] || fail "$env has no Python: deactivate this environment, or create it again"
    check_version "$(python_of_env)"
    has_pip || fail "$env has no pip: install pip in it"
}

virtual_environment_of() {
    "$1" -c 'import sys; print(sys.prefix if sys.prefix != sys.base_prefix else "")' 2>/dev/null || :
}

python_of_env() {
    if [ -d "$env/Scripts" ]; then echo "$env/Scripts/python.exe"; else echo "$env/bin/python"; fi
}

# Also false if the environment was created only in part, or if its Python was removed.
has_pip() {
    "$(python_of_env)" -m pip --version >/dev/null 2>&1 \
        || "$(python_of_env)" -m ensurepip >/dev/null 2>&1
}

check_version() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
        || fail "$1: expected Python 3.10 or newer (name another one with PYTHON=...)"
}

create_environment() {
    base=${PYTHON:-python3}
    command -v "$base" >/dev/null || fail "PYTHON=$base: no such command (expected Python 3.10 or newer)"
    check_version "$base"
    inherit=
    if [ "${DETECTRON2:-}" != none ] && "$base" -W ignore -c 'import detectron2.layers' 2>/dev/null; then
        inherit=--system-site-packages
    fi
    say "environment: creating ./.venv with $base${inherit:+ and its packages, which include detectron2}"
    "$base" -m venv --clear $inherit .venv >/dev/null \
        || fail "$base -m venv failed (on Debian and Ubuntu: apt install python3-venv)"
}

choose_environment
"$(python_of_env)" tools/set_up

[ $# -gt 0 ] || exit 0
PATH=$(dirname "$(python_of_env)"):$PATH
export PATH
trap - INT TERM
exec "$@"
