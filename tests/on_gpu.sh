#!/usr/bin/env bash
# What only a GPU can give, in a quarter of an hour on an H100 or H200 with 16 cores:
#     tests/on_gpu.sh FOLDER [DATA]      DATA: cifar10 (the default), or shapes10 to try the script
# In FOLDER: tests.log, the tables cifar10-seeds.csv and cifar10-unaugmented.csv with their networks,
# speed.csv. Each is written as it goes, so what is done when the time is up is kept. SMALL=1 does all
# of it at a tiny size, on a CPU too; PARTS="training speed" leaves the tests out.
set -u
cd "$(dirname "$0")/.."
folder=$(mkdir -p "$1" && cd "$1" && pwd)
data=${2:-cifar10}
parts=" ${PARTS:-training tests speed} "
export TQDM_DISABLE=1 PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
training=(--data "$data")
speed=() tests=(-m gpu)
if [ "${SMALL:-}" ]; then
  export TEST_DEVICE=cpu
  training+=(--train-size 64 --width 16 --epochs 2)
  speed+=(--tiny)
  tests+=(-k "precision or logits or maps")
fi

part() {  # part NAME SECONDS COMMAND...: run it, but no longer than that, and note how it ended
  local name=$1 limit=$2 start=$SECONDS
  shift 2
  timeout -k 5 "$limit" "$@" > "$folder/$name.log" 2>&1
  echo "$name: status $?, $((SECONDS - start)) s" | tee -a "$folder/summary.txt"
}

seeds=(python3 -m helpers.studies.seeds "${training[@]}")
if [[ $parts == *" training "* ]]; then
  part recipe 500 "${seeds[@]}" --seeds 5 --jobs 5 --output "$folder/$data-seeds.csv" &
fi
if [[ $parts == *" tests "* ]]; then  # meanwhile
  part tests 300 python3 -m pytest -p no:cacheprovider "${tests[@]}" -n 3 -v -W ignore
fi
wait
if [[ $parts == *" speed "* ]]; then  # alone
  part speed 150 python3 tests/gpu_speed.py "$folder/speed.csv" "${speed[@]}"
fi
if [[ $parts == *" training "* ]]; then
  part unaugmented 360 "${seeds[@]}" --seeds 3 --jobs 3 --variants "no augmentation" \
    --output "$folder/$data-unaugmented.csv"
fi
cat "$folder/summary.txt"
