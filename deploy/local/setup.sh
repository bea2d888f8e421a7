#!/usr/bin/env bash
# Makes .venv: Python's own venv, uv (pinned) from PyPI, then every dependency at the version of constraints.txt.
# A warm run compares one checksum and returns. PYTHON names the interpreter; default: the first of 3.11 or 3.12.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

uv_version=0.13.9
extras=cpu,bench,dev
venv=.venv
stamp=$venv/.evorec-setup

is_supported() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.12 python3.11}; do
        if is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

# What is there instead of a supported Python; nothing where there is none and none was asked for, which apt can help.
other_python() {
    local name=${PYTHON:-python3} version
    if version=$("$name" -V 2>&1); then
        echo "$name is $version"
    elif [[ -n ${PYTHON:-} ]]; then
        echo "PYTHON=$name does not run"
    fi
}

has_libnuma() {
    compgen -G '/usr/lib/*/libnuma.so.1' >/dev/null || compgen -G '/lib/*/libnuma.so.1' >/dev/null ||
        compgen -G '/usr/lib*/libnuma.so.1' >/dev/null
}

# Everything that is missing goes into one apt line, so that nobody has to come back here twice.
require_system_parts() {
    local python=$1 missing=() other=
    if [[ -z $python ]]; then
        other=$(other_python)
        [[ -n $other ]] || missing+=(python3 python3-venv)
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        case $python in
        python3.*) missing+=("$python-venv") ;;
        *) missing+=(python3-venv) ;;
        esac
    fi
    has_libnuma || missing+=(libnuma1)
    if [[ -z $other ]] && ((${#missing[@]} == 0)); then return; fi

    local sudo=sudo
    if ((EUID == 0)); then sudo=; fi
    {
        if [[ -n $other ]]; then
            echo "evorec needs Python 3.11 or 3.12, and $other. Install one of them beside it, with uv for example:"
            echo
            echo "    uv python install 3.12 && PYTHON=\$(uv python find 3.12) make setup"
            echo
        elif [[ -z $python ]]; then
            echo "evorec needs Python 3.11 or 3.12 (set PYTHON to its path if it is not on PATH)."
        fi
        if ((${#missing[@]} > 0)); then
            echo "This system lacks ${missing[*]}. Install with:"
            echo
            echo "    ${sudo:+$sudo }apt-get install -y ${missing[*]}"
            echo
        fi
    } >&2
    exit 1
}

# What decides the environment's content; a venv does not survive a move, hence the folder.
fingerprint() {
    { cat pyproject.toml constraints.txt deploy/local/setup.sh && "$1" -VV && pwd; } | sha256sum | cut -d' ' -f1
}

# uv does not read pip's configuration. Where pip has find-links (a mirror, an offline machine), torch's CPU wheel is
# expected there; everywhere else uv takes it from PyTorch's CPU index, because PyPI's is the CUDA build.
choose_torch_source() {
    if [[ -n ${UV_FIND_LINKS:-}${UV_TORCH_BACKEND:-} ]]; then return; fi
    local links=${PIP_FIND_LINKS:-} key
    for key in :env:.find-links global.find-links install.find-links; do
        [[ -n $links ]] || links=$("$venv/bin/python" -m pip config get "$key" 2>/dev/null || true)
    done
    if [[ -n $links ]]; then
        UV_FIND_LINKS=$(tr -s '[:space:]' ',' <<<"$links" | sed 's/^,//; s/,$//')
        export UV_FIND_LINKS
    else
        export UV_TORCH_BACKEND=cpu
    fi
}

# Whether the venv is one that this very Python made in this very place: the scripts of one that was moved call what is
# no longer there.
is_own() {
    [[ $("$venv/bin/python" -VV 2>/dev/null) == "$("$1" -VV)" ]] && grep -qsF "$(pwd -P)/$venv" "$venv/bin/activate"
}

install() {
    local python=$1
    rm -f "$stamp" # of what may be cut off half-way
    echo "Setting up $venv with $("$python" -V) (about 1 GB of packages, once)"
    if ! is_own "$python"; then
        rm -rf "$venv"
        "$python" -m venv "$venv"
    fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "uv==$uv_version"
    choose_torch_source
    "$venv/bin/uv" pip install --python "$venv/bin/python" -c constraints.txt -e ".[$extras]"
}

main() {
    local python wanted
    python=$(find_python)
    require_system_parts "$python"
    wanted=$(fingerprint "$python")
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then return; fi
    exec 9>.setup.lock
    flock 9 # two makes at once: the second waits, then finds the stamp
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then return; fi
    install "$python"
    echo "$wanted" >"$stamp"
}

main
