#!/usr/bin/env bash
# Run `camrt download` from a checkout: download the weights of named models, or with --reference the data files of the
# original demo. Without arguments, list the models.
#
#   scripts/download_models.sh                          list the models: camrt models
#   scripts/download_models.sh vgg16CAM googlenetCAM
#   scripts/download_models.sh --reference
#
# The files are stored in $CAMRT_HOME, by default the user's cache folder for camrt.
# Exit status: 0 on success, 1 if a download failed, 2 for invalid arguments.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
[ -x "$python" ] || python=$(command -v python3) || { echo "error: python3 is not installed" >&2; exit 1; }

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if ! missing=$("$python" -c 'import camrt.cli, platformdirs, requests, rich' 2>&1); then
    echo "error: camrt is not set up for $python (${missing##*$'\n'}). Run: make demo" >&2
    exit 1
fi
[ $# -gt 0 ] || exec "$python" -m camrt models
exec "$python" -m camrt download "$@"
