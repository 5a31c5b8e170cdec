#!/bin/bash
# Prepares what benchmarks/gpu.py needs on a machine that has a GPU and PyTorch, but neither a network nor all packages of
# this project, and prints the one command to run there. Run it from the root of the checkout that travels:
#
#     bash benchmarks/device.sh [DATA [WEIGHTS]]      [../shared/data ../shared/weights]
#
# The folder .device, which git ignores, receives
#   store.tar.xz   the BrEaST cohort (DATA/breast_lesions_usg) at 224 px, prepared by mmpkd.cohort
#   wheels/        the packages that the machine lacks, in the versions of constraints.txt, for Python 3.12 on x86-64
#   weights/       MiniLM in float16 (WEIGHTS/minilm_l6_v2), if there is room: random weights of its size take as long
# Images and weights of other models are not needed: no figure of the benchmark depends on the values of weights.
set -euo pipefail
cd "$(dirname "$0")/.."
data=${1:-../shared/data} weights=${2:-../shared/weights}
python=${PYTHON:-.venv/bin/python}
limit=$((62 * 1024 * 1024)) # bytes that travel at most: 64 MiB, less a margin for names and blocks

# The machine has torch, pandas, pyarrow, scikit-learn and what these need. It also has timm, transformers, peft and typing
# packages, in other versions: mmpkd reads internals of timm, its vision-language students need transformers 5.23, and
# pydantic wants new typing packages. The scores of answers need nltk and rouge-score.
missing=(pydantic pydantic-core annotated-types typing-extensions typing-inspection omegaconf pydicom nibabel timm
	transformers peft nltk defusedxml)

if [ ! -d "$data/breast_lesions_usg" ]; then
	echo "no such folder: $data/breast_lesions_usg; say where the data are: bash benchmarks/device.sh DATA" >&2
	exit 2
fi
rm -rf .device && mkdir -p .device/wheels
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
"$python" -m mmpkd.cohort prepare cohort.reader=breast_lesions_usg cohort.root="$data/breast_lesions_usg" \
	cohort.image_size=224 cache="$cache"
mv "$cache"/stores/breast_lesions_usg-*/ "$cache/store"
tar -C "$cache" -cJf .device/store.tar.xz store

pins=$(for name in "${missing[@]}"; do grep "^$name==" constraints.txt; done)
"$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
	--implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
	--platform manylinux2014_x86_64 -d .device/wheels $pins
"$python" -m pip wheel -q --disable-pip-version-check --no-deps -w .device/wheels "$(grep '^rouge-score==' constraints.txt)"
# Without the data of their own tests, the wheels are half as large.
"$python" - .device/wheels/*.whl <<'STRIP'
import os, re, sys, zipfile
for name in sys.argv[1:]:
    with zipfile.ZipFile(name) as whole, zipfile.ZipFile(f"{name}.part", "w", zipfile.ZIP_DEFLATED) as part:
        for entry in whole.infolist():
            if not re.search(r"/(tests|test_files)/", entry.filename):
                part.writestr(entry, whole.read(entry), zipfile.ZIP_DEFLATED)
    os.replace(f"{name}.part", name)
STRIP

bytes() { # of the files that travel: tracked, untracked but not ignored, and .device
	(git ls-files -z --cached --others --exclude-standard && find .device -type f -print0) | xargs -0 cat 2>/dev/null | wc -c
}
encoder=$weights/minilm_l6_v2
if [ -f "$encoder/model.safetensors" ] && [ $(($(bytes) + $(stat -c %s "$encoder/model.safetensors"))) -lt $limit ]; then
	mkdir -p .device/weights/minilm_l6_v2
	cp "$encoder"/{config.json,model.safetensors} .device/weights/minilm_l6_v2/
else
	echo "MiniLM does not travel: it is not in $weights, or there is no room; random weights of its size are used"
fi
size=$(bytes)
echo "$((size / 1024 / 1024)) MiB travel, of which .device has $(du -sm .device | cut -f1) MiB"
[ "$size" -lt $limit ] || { echo "This is too much: 64 MiB travel at most. Remove large files from the checkout." >&2; exit 1; }

cat <<'COMMAND'

Run this in the root of the checkout on that machine, with .device carried along and a limit of 10 minutes; results are
written to the folder $OUT:

set -o pipefail; python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .device/wheels/*.whl && export PYTHONPATH=/tmp/site PYTHONUNBUFFERED=1 && python3 -m tarfile -e .device/store.tar.xz .device && python3 benchmarks/gpu.py --minutes 9 --json $OUT/gpu.json --markdown $OUT/gpu.md 2>&1 | tee $OUT/gpu.log
COMMAND
