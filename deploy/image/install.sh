#!/usr/bin/env bash
# The image's two install steps; they run the same in a clean folder without a container engine:
#   install.sh dependencies cpu|gpu VENV [EXTRA...]   what pyproject.toml names, at the versions of constraints*.txt
#   install.sh package VENV                           this project itself; a change of code repeats this step alone
# Run in a folder with pyproject.toml and constraints*.txt (and, for `package`, the sources); uv must be on PATH.
set -euo pipefail

dependencies() {
    local extra=$1 venv=$2 constraints more
    shift 2
    case $extra in
    cpu)
        constraints=constraints.txt
        # A mirror given by UV_FIND_LINKS carries torch's CPU wheel; otherwise PyTorch's index does, PyPI's is for CUDA.
        if [[ -z ${UV_FIND_LINKS:-} ]]; then export UV_TORCH_BACKEND=cpu; fi
        ;;
    gpu) constraints=constraints-gpu.txt ;;
    *)
        echo "unknown extra $extra" >&2
        exit 2
        ;;
    esac
    uv venv --python "${PYTHON:-python3}" "$venv"
    local extras=(--extra "$extra")
    for more in "$@"; do extras+=(--extra "$more"); done
    uv pip install --python "$venv/bin/python" --compile-bytecode -c "$constraints" -r pyproject.toml "${extras[@]}"
}

package() {
    uv pip install --python "$1/bin/python" --compile-bytecode --no-deps .
}

"$@"
