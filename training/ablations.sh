#!/usr/bin/env bash
# Prepare the pools and run the queue of ablations on a rented machine, from the repository's root:
#
#     setsid bash training/ablations.sh WORK MINUTES > WORK/ablations.log 2>&1 &
#
# WORK is what `carry receive` fills: wheels, the weights, held.bin.zst, train_0.bin.zst and
# train_1.bin.zst. Results: WORK/ablations. For a rehearsal CONFIG, DEVICES, UNITS and ONLY change
# the configuration, the GPUs, the shards of a pool, and how many of those are made; for other
# documents DOCUMENTS the numbers of their files and POOLS those that are mixed. MARKED names what
# else the pools are made with, for the variants that need it.
set -euo pipefail
work=$(realpath "$1") minutes=$2 began=$SECONDS
mkdir -p "$work/site/keyturn"
for layer in server engine kernels; do ln -sfn "$PWD/$layer" "$work/site/keyturn/$layer"; done
ln -sfn "$work" lease
export PYTHONPATH="$work/site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
units=${UNITS:-32} only=${ONLY:-12} pools=${POOLS:-python script programs} marked=${MARKED-wanted edited}
train=()
for number in ${DOCUMENTS:-0 1}; do train+=("$work/train_$number.bin.zst"); done

shards() { # FOLDER OPTIONS...
  python3 -m training.prepare engine/embedded/tokenizer.json "$work/$1" "${@:2}" --passes 1
}

until [ -e "$work/held.bin.zst" ]; do sleep 0.5; done
held=("$work/held.bin.zst" --natural --units "$units")
shards held "${held[@]}"
[[ " $marked " != *" wanted "* ]] || shards held-wanted "${held[@]}" --wanted 1
shards edited "${held[@]}" --edited 1
for file in "${train[@]}"; do until [ -e "$file" ]; do sleep 0.5; done; done
train+=(--units "$units")
for pool in $pools; do
  some=()
  [ "$pool" != python ] || some=(--only "$only")
  shards "pools/$pool" "${train[@]}" --pool "$pool" "${some[@]}"
done
for mark in $marked; do
  for pool in $pools; do
    some=$only
    [ "$pool" != python ] || some=$(((only + 1) / 2))
    shards "pools-$mark/$pool" "${train[@]}" --pool "$pool" "--$mark" 0.5 --only "$some"
  done
done
echo "prepared in $((SECONDS - began)) s"
minutes=$(python3 -c "print($minutes - ($SECONDS - $began) / 60)")
exec python3 -m training.ablate "${CONFIG:-training/ablations.json}" "$work/ablations" \
  --minutes "$minutes" --devices "${DEVICES:-0,1}"
