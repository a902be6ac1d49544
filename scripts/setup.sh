#!/bin/sh
# Make a virtual environment with Ornstein in it: setup.sh FOLDER [EXTRA]
set -eu
cd "$(dirname "$0")/.."
venv=$1
extra=${2:+[$2]}
python=${PYTHON:-python3}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Ornstein needs Python 3.11 or newer; $python is $("$python" -V 2>&1)." >&2
    echo "Name another one: make PYTHON=python3.12 ..." >&2
    exit 2
}
if ! pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
    "$python" -m venv "$venv" || {
        rm -rf "$venv"
        echo "could not make $venv; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 2
    }
fi
pip install --quiet --upgrade 'pip>=24'

# On Linux the usual build of torch brings some three gigabytes of CUDA libraries along.
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
    echo "Looking up torch ..."
    if pip install --dry-run --quiet --report - -c constraints.txt torch 2>/dev/null |
        grep -q '"name": "nvidia-'; then
        echo
        echo "  About to download torch with CUDA, some 3 GB. Without an NVIDIA GPU, stop with"
        echo "  Ctrl-C, point PIP_INDEX_URL at PyTorch's index of CPU builds (its address is on"
        echo "  pytorch.org under 'Get Started'), and run this again. Going on in 10 seconds."
        echo
        sleep 10
    fi
fi
echo "Installing into $venv ..."
pip install --quiet -c constraints.txt -e ".$extra"
