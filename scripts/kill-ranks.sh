#!/usr/bin/env bash
# Kills a random rank of a run at a random instant, again and again. Each time the launcher must
# end within ten seconds, and the run, resumed, must write the very losses of an undisturbed one.
#
#   scripts/kill-ranks.sh [times: 50] [mesh: 1x2x1]      DSR=path of the program
#
# The mesh is the number of pipeline stages, of replicas, and of ranks that share each layer.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
dsr=${DSR:-$root/target/release/dsr}
times=${1:-50}
mesh=${2:-1x2x1}
IFS=x read -r stages replicas sharers <<<"$mesh"
ranks=$((stages * replicas * sharers))
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES='' HF_HUB_OFFLINE=1

work=$(mktemp -d)
launcher=
clean() {
    [ -z "$launcher" ] || kill -9 "$launcher" 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT
cd "$work"

cat > r.rhai <<RECIPE
let model = load_model("$root/tests/golden/gpt2-tiny-v512");
let engine = init_engine(model, #{
    micro_batch_size: 2,
    gradient_accumulation_steps: 2,
    optimizer: #{ type: "AdamW", lr: 5e-4 },
    pipeline: #{ stages: $stages },
    tensor_parallel: #{ autotp_size: $sharers },
});
let loader = dataset("$root/tests/golden/tokens-v512.parquet")
    .loader(#{ micro_batch_size: 2, endless: true });
let run = start_run(engine, loader, #{ total_steps: 40, save_every: 3 });
while run.train_batch() { sleep(0.03); }
run.finish();
RECIPE

launch() {
    "$dsr" launch --nproc-per-node "$ranks" --allow-read="$root/tests/golden" r.rhai "$@"
}
losses() { grep -o '"step":[0-9]*,"loss":[^,]*' "$1/metrics.jsonl"; }
now() { date +%s%N; }

began=$(now)
launch --name undisturbed >undisturbed.out 2>&1
length=$((($(now) - began) / 1000000))
losses runs/undisturbed >expected
[ "$(wc -l <expected)" = 40 ]
echo "an undisturbed run of a mesh $mesh takes $length ms"

slowest=0
for ((i = 1; i <= times; i++)); do
    "$dsr" launch --nproc-per-node "$ranks" --allow-read="$root/tests/golden" r.rhai --name "k$i" >"k$i.out" 2>&1 &
    launcher=$!
    delay=$(((RANDOM * 32768 + RANDOM) % length))
    sleep "$(printf '%d.%03d' $((delay / 1000)) $((delay % 1000)))"
    # The ranks are the launcher's children. Early there may be fewer, at the end none.
    mapfile -t pids < <(ps -o pid= --ppid "$launcher")
    if [ "${#pids[@]}" = 0 ]; then
        wait "$launcher" || { cat "k$i.out"; exit 1; }
        launcher=
        echo "$i: ended before it could be killed after $delay ms"
        continue
    fi
    victim=${pids[RANDOM % ${#pids[@]}]// /}
    killed=$(now)
    kill -9 "$victim" 2>/dev/null || true
    status=0
    wait "$launcher" || status=$?
    launcher=
    took=$((($(now) - killed) / 1000000))
    ((took > slowest)) && slowest=$took
    if ((took > 10000)); then
        echo "$i: the others took $took ms to end"
        cat "k$i.out"
        exit 1
    fi
    if [ "$status" != 0 ] && ! grep -q 'was killed by SIGKILL' "k$i.out"; then
        echo "$i: the last lines do not name the kill"
        cat "k$i.out"
        exit 1
    fi
    for pid in "${pids[@]}"; do
        if kill -0 "${pid// /}" 2>/dev/null; then
            echo "$i: rank process $pid outlives its launcher"
            exit 1
        fi
    done
    # A rank that dies after the last step leaves a whole run, and nothing to go on with.
    if [ "$status" != 0 ] && ! grep -q '^done: ' "k$i.out"; then
        name=k$i
        resume=()
        # Before the first checkpoint there is nothing to go on from.
        if [ -e "runs/$name/checkpoints/latest" ]; then resume=(--resume auto); else name=k$i-2; fi
        launch --name "k$i" "${resume[@]}" >>"k$i.out" 2>&1 || { cat "k$i.out"; exit 1; }
        [ -d "runs/$name" ] || name=k$i
    else
        name=k$i
    fi
    if ! diff expected <(losses "runs/$name"); then
        echo "$i: the resumed run has other losses"
        exit 1
    fi
    steps=${resume[*]:-from the start}
    echo "$i: killed after $delay ms, ended in $took ms, status $status, went on: $steps"
    rm -rf "runs/k$i" "runs/k$i-2" "k$i.out"
done
echo "$times times; the slowest end took $slowest ms"
