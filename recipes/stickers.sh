#!/usr/bin/env bash
# Makes a model that ships, from nothing: recipes/stickers.sh TECHNIQUE [FOLDER] [PRESET] [--set NAME=VALUE ...]
#
# TECHNIQUE is diffusion, gan, autoregressive, vae or judges. The first run draws the sticker set (about eight minutes
# on two cores); GAN, VAE and diffusion share an autoencoder. Every part goes on where it stopped: give the same command
# again. With a GPU: recipes/stickers.sh diffusion build gpu. At toy size, in a few minutes:
#   LIMIT=400 SCENES=100 EDITS=100 recipes/stickers.sh diffusion build tiny --set steps=50
# SOURCE may name a folder with the pinned packages, where there is no network.
set -euo pipefail
technique=${1:?Name a technique: diffusion, gan, autoregressive, vae or judges.}
folder=${2:-build/stickers}
preset=${3:-cpu}
shift $(($# < 3 ? $# : 3))
here=$(dirname "$0")

size=128
[ "$preset" = tiny ] && size=32
[ -e "$folder/data/manifest.json" ] || imagewright data stickers "$folder/data" --size "$size" \
  --scenes "${SCENES:-12000}" --edits "${EDITS:-24000}" ${SOURCE:+--from "$SOURCE"} ${LIMIT:+--limit "$LIMIT"}

if [ "$technique" = judges ]; then
  python "$here/../scripts/judges.py" train "$folder/data" "$folder/judges"
  exec python "$here/../scripts/judges.py" export "$folder/data" "$folder/judges" "$folder/models/judges"
fi

train() { # TECHNIQUE OUT [OPTION ...]
  local what=$1 out=$2
  shift 2
  imagewright train --technique "$what" --data "$folder/data" --preset "$preset" --out "$out" "$@"
}

small=() # what the two-core preset differs in for the models that ship, as their cards say
finish=(--bits 4 --share)
case $technique in
diffusion | gan | vae)
  stage=()
  [ "$preset" = cpu ] && stage=(--set steps=1500)
  train autoencoder "$folder/autoencoder" ${stage[@]+"${stage[@]}"}
  first=(--autoencoder "$folder/autoencoder")
  if [ "$preset" = cpu ]; then # the decoder goes on alone, and learns to give pictures of twice the size
    train autoencoder "$folder/decoder" --from "$folder/autoencoder" \
      --set seed=5 --set model.detail=40 --set model.frozen=true --set steps=2000 --set lr=1.5e-3
    finish+=(--autoencoder "$folder/decoder")
  fi
  ;;
autoregressive)
  stage=()
  [ "$preset" = cpu ] && stage=(--set steps=3600)
  train tokenizer "$folder/tokenizer" ${stage[@]+"${stage[@]}"}
  first=(--autoencoder "$folder/tokenizer")
  ;;
*) echo "There is no technique $technique." >&2 && exit 2 ;;
esac
if [ "$preset" = cpu ]; then
  case $technique in
  diffusion) # learned pictures first, instructions from there, and then both for longer
    train diffusion "$folder/diffusion-pictures" "${first[@]}" \
      --set steps=4000 --set cooldown=0.3 --set model.edit_share=0 "$@"
    train diffusion "$folder/diffusion-edits" "${first[@]}" --from "$folder/diffusion-pictures" --set seed=1 \
      --set steps=3000 --set lr=6e-4 --set muon_lr=0.012 --set cooldown=0.5 --set model.edit_share=0.4 "$@"
    small=(--from "$folder/diffusion-edits" --set seed=2 --set steps=4700 --set lr=8e-4 --set muon_lr=0.016)
    small+=(--set cooldown=0.4 --set warmup=60 --set ema=0.9985 --set model.edit_share=0.2) finish+=(--steps 12 --sampler ancestral --guidance 3 --rank 0)
    ;;
  gan) small=(--set steps=2050 --set model.alone=500) finish+=(--rank 2) ;;
  autoregressive)
    small=(--set model.width=160 --set model.depth=5 --set model.heads=5)
    train autoregressive "$folder/autoregressive-first" "${first[@]}" "${small[@]}" --set steps=2050 --set cooldown=0.35 "$@"
    small+=(--from "$folder/autoregressive-first" --set seed=7 --set steps=1430 --set cooldown=0.4 --set warmup=60)
    small+=(--set scenes_share=0.1) finish+=(--rank 1 --guidance 2 --temperature 0.7)
    ;;
  vae)
    small=(--set steps=3000 --set cooldown=0.4 --set scenes_share=0 --set warmup=50 --set ema=0.995)
    finish+=(--rank 3 --temperature 0.7 --without encoder --without posterior)
    ;;
  esac
fi
train "$technique" "$folder/$technique" ${first[@]+"${first[@]}"} ${small[@]+"${small[@]}"} "$@"
imagewright export "$folder/$technique" "$folder/models/stickers-$technique" --name "stickers-$technique" \
  "${finish[@]}" --card "$here/stickers-$technique.md"
