# Sourced by scripts/run and scripts/test: goes to the repository root and brings .venv up to date.
#
#   set_up FILE...            installs these requirements files into .venv, unless they already are;
#                             those named *no-deps* without what their packages ask for
#   PYTHON=...                the Python (3.11 or newer) that makes .venv; else the newest one found
#   BIGJAX_EXTRAS=sweep,ray   what these extras of pyproject.toml need, too
#   BIGJAX_JAX_EXTRA=cuda13   JAX for CUDA 13 (or tpu, cuda12) at the pinned version, not the CPU alone
#
# .venv/installed/FILE is a copy of what was installed, written last. A start that finds it equal
# costs a few milliseconds, and a failed installation leaves none.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

is_usable() { # 3.11 or newer and able to make an environment
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidates=("${PYTHON:-}") candidate
    [[ -n "${PYTHON:-}" ]] || candidates=(python3.13 python3.12 python3.11 python3)
    for candidate in "${candidates[@]}"; do
        if is_usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "bigjax needs Python 3.11 or newer with its venv module; tried: ${candidates[*]}." \
        "Install one, or name it: PYTHON=/path/to/python3" >&2
    exit 2
}

stamp_of() { # what .venv/installed/FILE holds once FILE is installed
    echo "$(.venv/bin/python --version 2>&1) jax[${BIGJAX_JAX_EXTRA:-cpu}]"
    cat "$1"
}

is_installed() {
    local file
    for file in "$@"; do
        [[ -f ".venv/installed/$file" ]] || return 1
        [[ "$(stamp_of "$file")" == "$(<".venv/installed/$file")" ]] || return 1
    done
}

ask_for_huge_pages() { # as bigjax/core/compilers.py: the C library reads it as a process starts. $1: the kernel's word; then devices
    local wanted=glibc.malloc.hugetlb=1 device
    local kept=glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184
    for device in "${@:2}"; do [[ ! -e "$device" ]] || kept=; done
    if grep -qs '\[madvise\]' "$1" && [[ "${GLIBC_TUNABLES:-}" != *glibc.malloc.hugetlb* ]]; then
        export GLIBC_TUNABLES="${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}$wanted${kept:+:$kept}"
    fi
}

find_from_anywhere() { # so that `python my_experiment.py` finds bigjax in any folder, also once this one was moved
    local packages
    for packages in .venv/lib/python*/site-packages; do
        if [[ -d "$packages" && ! -d "$(cat "$packages/bigjax.pth" 2>/dev/null)/bigjax" ]]; then
            pwd >"$packages/bigjax.pth"
        fi
    done
}

set_up_extras() {
    local name needed alone extras=${BIGJAX_EXTRAS:-}
    for name in ${extras//,/ }; do
        if [[ -f ".venv/installed/extra-$name" ]]; then continue; fi
        needed=$(
            .venv/bin/python - "$name" <<'PYTHON'
import sys, tomllib

with open("pyproject.toml", "rb") as file:
    known = tomllib.load(file)["project"]["optional-dependencies"]
if sys.argv[1] not in known:
    sys.exit(f"error: BIGJAX_EXTRAS: no extra '{sys.argv[1]}'; there are {', '.join(known)}")
with open("requirements-no-deps.txt") as file:
    alone = {line.partition("==")[0]: line.strip() for line in file if "==" in line}
for wanted in (True, False):  # a line of what is installed without what it asks for, one of the rest
    names = {package: package.partition(">")[0] for package in known[sys.argv[1]]}
    print(*(alone.get(name, package) for package, name in names.items() if (name in alone) == wanted))
PYTHON
        ) || exit 2
        alone=${needed%%$'\n'*} needed=${needed#*$'\n'}
        echo "bigjax: installing $needed $alone into .venv" >&2
        # shellcheck disable=SC2086 # several words
        .venv/bin/python -m pip install -qq --disable-pip-version-check \
            --constraint requirements.txt $needed >&2
        # shellcheck disable=SC2086
        [[ -z "$alone" ]] || .venv/bin/python -m pip install -qq --disable-pip-version-check \
            --no-deps $alone >&2
        touch ".venv/installed/extra-$name"
    done
}

set_up() {
    ask_for_huge_pages /sys/kernel/mm/transparent_hugepage/enabled /dev/nvidiactl /dev/kfd /dev/accel0 /dev/vfio/0
    if is_installed "$@"; then
        find_from_anywhere
        set_up_extras
        return
    fi
    local python file alone
    python=$(find_python)
    # One set-up at a time; the second finds the work done. Python takes the lock because macOS has
    # no flock command; the lock belongs to descriptor 9, which this shell holds until it closes it.
    exec 9>>requirements.txt
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    .venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
    mkdir -p .venv/installed
    for file in "$@"; do
        if is_installed "$file"; then continue; fi
        echo "bigjax: installing $file into .venv" >&2
        rm -f ".venv/installed/$file"
        [[ "$file" == *no-deps* ]] && alone=--no-deps || alone=""
        .venv/bin/python -m pip install -qq --disable-pip-version-check $alone \
            --constraint requirements.txt --requirement "$file" \
            ${BIGJAX_JAX_EXTRA:+"jax[$BIGJAX_JAX_EXTRA]"} >&2
        stamp_of "$file" >".venv/installed/$file"
    done
    find_from_anywhere
    exec 9>&-
    set_up_extras
}
