#!/usr/bin/env bash
# Trains all four techniques on one folder of captioned pictures, and compares them:
#   recipes/four-techniques.sh FOLDER [OUT] [MINUTES]
#
# Each model trains for MINUTES (2 if not said) in two halves, so that the second resumes the first; then it draws a
# picture, is exported, and is measured. The last step writes OUT/report/index.html. PRESET names another preset than
# tiny; a first argument after MINUTES goes to every training, for example: --set steps=20
set -euo pipefail
data=${1:?Name a folder of captioned pictures.}
out=${2:-build/four-techniques}
minutes=${3:-2}
shift $(($# < 3 ? $# : 3))
preset=${PRESET:-tiny}
prompt=${PROMPT:-red apple}
half=$(awk "BEGIN { print $minutes / 2 }")

train() { # TECHNIQUE FOLDER [OPTION ...]: half of the time, and then the rest
  local technique=$1 folder=$2
  shift 2
  for budget in "$half" "$minutes"; do
    imagewright train --technique "$technique" --data "$data" --preset "$preset" --out "$folder" --minutes "$budget" "$@"
  done
}

train autoencoder "$out/autoencoder" "$@"
train tokenizer "$out/tokenizer" "$@"
train diffusion "$out/runs/diffusion" --autoencoder "$out/autoencoder" "$@"
train gan "$out/runs/gan" --autoencoder "$out/autoencoder" "$@"
train autoregressive "$out/runs/autoregressive" --autoencoder "$out/tokenizer" "$@"
train vae "$out/runs/vae" --autoencoder "$out/autoencoder" "$@"

models=""
runs=()
for technique in diffusion gan autoregressive vae; do
  run=$out/runs/$technique
  imagewright generate "$prompt" --model "$run" --seed 1 --output "$out/$technique.png"
  imagewright export "$run" "$out/models/$technique" --name "$technique"
  imagewright evaluate "$out/models/$technique" --against "$data" --suite own -n "${N:-100}" --out "$out/evaluations/$technique"
  models=$models${models:+,}$out/models/$technique
  runs+=(--run "$run")
done
imagewright compare --report "$out/report" --models "$models" "${runs[@]}" --evaluations "$out/evaluations"
