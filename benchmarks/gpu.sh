#!/usr/bin/env bash
# Every figure of docs/benchmarks.md that waits for a GPU: measured, printed and written there.
#
#   benchmarks/gpu.sh                         at most nine minutes on one H100
#   benchmarks/gpu.sh --device cpu --tiny     a rehearsal, which writes nothing
#   benchmarks/gpu.sh pack FOLDER             gathers the wheels for a machine without a network
#   WHEELS=FOLDER benchmarks/gpu.sh           takes them from there
#
# Needs Linux and a Python (PYTHON=...) with torch and torchvision for the GPU. What else it takes is
# named here, and is installed into a folder of its own that is removed at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
NEEDED="numpy Pillow matplotlib pycocotools termcolor yacs tabulate cloudpickle tqdm tensorboard
    fvcore iopath omegaconf hydra-core lvis opencv-python-headless packaging setuptools<82"

if [ "${1:-}" = pack ]; then
    folder=${2:?benchmarks/gpu.sh pack FOLDER}
    mkdir -p "$folder"
    # shellcheck disable=SC2086
    "$PYTHON" -m pip wheel --quiet --wheel-dir "$folder" --constraint <(printf 'setuptools<82\n') $NEEDED
    "$PYTHON" tools/install_detectron2.py --wheel "$folder"
    exit
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=$PYTHON
if ! "$PYTHON" -c "import torch, torchvision, detectron2, lvis, pycocotools, fvcore, cv2" 2>/dev/null; then
    "$PYTHON" -c "import torch, torchvision" || { echo "Install torch and torchvision first." >&2; exit 2; }
    "$PYTHON" -m venv --system-site-packages "$work/venv"
    python=$work/venv/bin/python
    # shellcheck disable=SC2086
    "$python" -m pip install --quiet ${WHEELS:+--no-index --find-links "$WHEELS"} $NEEDED
    if [ -n "${WHEELS:-}" ]; then
        "$python" -m pip install --quiet --no-index --no-deps "$WHEELS"/detectron2-*.whl
    else
        "$python" tools/install_detectron2.py
    fi
fi

case " $* " in
    *" --tiny "* | *" --write "* | *" --help "*) write=() ;;
    *) write=(--write docs/benchmarks.md) ;;
esac
"$python" tools/benchmark.py gpu "${write[@]}" "$@"
