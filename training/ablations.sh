#!/usr/bin/env bash
# Prepare the pools and run the queue of ablations on a rented machine, from the repository's root:
#
#     setsid bash training/ablations.sh WORK MINUTES > WORK/ablations.log 2>&1 &
#
# WORK is what `carry receive` fills: wheels, the weights, held.bin.zst, train_0.bin.zst and
# train_1.bin.zst. Results: WORK/ablations. For a rehearsal CONFIG, DEVICES, UNITS and ONLY change
# the configuration, the GPUs, the shards of a pool, and how many of those are made.
set -euo pipefail
work=$(realpath "$1") minutes=$2 began=$SECONDS
mkdir -p "$work/site/keyturn"
for layer in server engine kernels; do ln -sfn "$PWD/$layer" "$work/site/keyturn/$layer"; done
ln -sfn "$work" lease
export PYTHONPATH="$work/site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
units=${UNITS:-32} only=${ONLY:-12}

shards() { # FOLDER OPTIONS...
  python3 -m training.prepare engine/embedded/tokenizer.json "$work/$1" "${@:2}" --passes 1
}

until [ -e "$work/held.bin.zst" ]; do sleep 0.5; done
held=("$work/held.bin.zst" --natural --units "$units")
shards held "${held[@]}"
shards held-wanted "${held[@]}" --wanted 1
shards edited "${held[@]}" --edited 1
until [ -e "$work/train_0.bin.zst" ] && [ -e "$work/train_1.bin.zst" ]; do sleep 0.5; done
train=("$work"/train_[01].bin.zst --units "$units")
shards pools/python "${train[@]}" --pool python --edited 0.5 --only "$only"
shards pools/script "${train[@]}" --pool script --edited 0.5
shards pools/programs "${train[@]}" --pool programs --edited 0.5
for pool in python script programs; do
  shards "pools-wanted/$pool" "${train[@]}" --pool "$pool" --wanted 0.5 --only "$only"
done
echo "prepared in $((SECONDS - began)) s"
minutes=$(python3 -c "print($minutes - ($SECONDS - $began) / 60)")
exec python3 -m training.ablate "${CONFIG:-training/ablations.json}" "$work/ablations" \
  --minutes "$minutes" --devices "${DEVICES:-0,1}"
