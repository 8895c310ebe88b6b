#!/usr/bin/env bash
# Makes the model that ships, from nothing: recipes/stickers-diffusion.sh [FOLDER] [PRESET] [NAME=VALUE ...]
#
# The first run draws the sticker set (about eight minutes on two cores), then trains an autoencoder and, on its
# latents, the diffusion transformer. Every part goes on where it stopped: give the same command again.
# With a GPU: recipes/stickers-diffusion.sh build gpu. At toy size, in a few minutes:
#   recipes/stickers-diffusion.sh build tiny steps=50 autoencoder.steps=50
# SOURCE may name a folder with the pinned packages, where there is no network.
set -euo pipefail
folder=${1:-build/stickers}
preset=${2:-cpu}
shift $(($# < 2 ? $# : 2))

size=128
[ "$preset" = tiny ] && size=32
overrides=()
for pair in "$@"; do overrides+=(--set "$pair"); done

imagewright data stickers "$folder/data" --size "$size" --scenes "${SCENES:-12000}" ${SOURCE:+--from "$SOURCE"} ${LIMIT:+--limit "$LIMIT"}
imagewright train --technique diffusion --data "$folder/data" --preset "$preset" --out "$folder/run" ${overrides[@]+"${overrides[@]}"}
imagewright export "$folder/run" "$folder/stickers-diffusion" --name stickers-diffusion --guidance 4 \
  --card "$(dirname "$0")/stickers-diffusion.md"
