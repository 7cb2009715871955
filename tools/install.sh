#!/usr/bin/env bash
# Makes a virtual environment and installs distmoe into it:  tools/install.sh VENV [EXTRAS]
#
# GPU machines get the default build of torch. Machines without a GPU get a CPU build: the default index serves
# CPU files on some systems and several GB of CUDA libraries on others, so pip is asked first what it would
# install. If that is CUDA, the CPU index of PyTorch is used. CUDA is never pulled onto a CPU machine silently.
# A cluster's login node has no GPU and installs for nodes that have: there, say ACCELERATOR=cuda.
#
# ACCELERATOR  cuda | cpu: which build of torch, whatever this machine has (default: what nvidia-smi lists here)
# PYTHON       interpreter of the environment (default python3; 3.11 or newer)
# TORCH        requirement for the CPU build (default torch==2.13.0)
set -euo pipefail

venv=$1
extras=${2:-}
python=${PYTHON:-python3}
accelerator=${ACCELERATOR:-}
torch=${TORCH:-torch==2.13.0}
cpu_index=https://download.pytorch.org/whl/cpu

fail() { # what, got, expected, remedy
    printf '%s\n  got:      %s\n  expected: %s\n  remedy:   %s\n' "$@" >&2
    exit 1
}

has_gpu() { nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

for_gpus() { [ "$accelerator" = cuda ] || { [ -z "$accelerator" ] && has_gpu; }; }

has_cuda_torch() { "$venv/bin/python" -c 'import sys, torch; sys.exit(torch.version.cuda is None)'; }

has_torch() { "$venv/bin/python" -c 'from importlib.metadata import version; version("torch")' 2>/dev/null; }

default_index_is_cpu() { # what would pip install, without installing it?
    local report
    report=$("$venv/bin/pip" install --quiet --dry-run --ignore-installed --report - "$torch") || return 1
    printf '%s' "$report" | "$venv/bin/python" -c '
import json, sys
names = [item["metadata"]["name"].lower() for item in json.load(sys.stdin)["install"]]
sys.exit(any(name.startswith(("nvidia", "cuda", "triton")) for name in names))'
}

install_cpu_torch() {
    if default_index_is_cpu; then
        "$venv/bin/pip" install --quiet "$torch"
    elif ! "$venv/bin/pip" install --quiet --retries 1 --timeout 30 --index-url "$cpu_index" "$torch"; then
        fail "no CPU build of $torch can be reached" \
            "CUDA files from the default index, nothing from $cpu_index" \
            "one of the two with a CPU build" \
            "open a way to $cpu_index, or install torch into $venv yourself and run again"
    fi
}

case "$accelerator" in
    "" | cuda | cpu) ;;
    *) fail "unknown ACCELERATOR" "$accelerator" "cuda | cpu, or none for what this machine has" "for example ACCELERATOR=cuda make install" ;;
esac
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "distmoe needs a newer Python" "$("$python" --version 2>&1 || true)" "3.11 or newer" "set PYTHON, for example PYTHON=python3.12 make demo"

if [ ! -x "$venv/bin/pip" ]; then
    "$python" -m venv "$venv" ||
        fail "no virtual environment could be made" "$python -m venv $venv failed" "Python with its venv module" "on Debian and Ubuntu: apt install python3-venv"
fi
if ! for_gpus && ! has_torch; then
    [ -n "$accelerator" ] || echo "this machine lists no GPU; for GPUs on other nodes: ACCELERATOR=cuda make install"
    echo "installing a CPU build of torch"
    install_cpu_torch
fi
echo "installing distmoe${extras:+ with extra $extras}"
"$venv/bin/pip" install --quiet --editable ".${extras:+[$extras]}"
if [ "$accelerator" = cuda ] && ! has_cuda_torch; then
    fail "torch in $venv cannot use GPUs" "a CPU build, which was there before or is all that pip finds here" \
        "a CUDA build" "$venv/bin/pip uninstall torch, then install again"
fi
