#!/usr/bin/env bash
# Holds the local cloud against botocore's models with the real AWS CLI. Makes its own Python environment when there is
# none yet. Usage: run.sh PATH/TO/tasuki-cloud
set -euo pipefail
cloud=${1:?usage: run.sh PATH/TO/tasuki-cloud}
here=$(cd "$(dirname "$0")" && pwd)
cache=${TASUKI_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tasuki}/contract-venv
# A cache that was made for other requirements, or whose making was interrupted, is made again.
if ! cmp -s "$here/requirements.txt" "$cache/requirements.txt"; then
    rm -rf "$cache"
    python3 -m venv "$cache"
    "$cache/bin/pip" -q --disable-pip-version-check install --require-hashes -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$cache/requirements.txt"
fi
log=$(mktemp)
"$cloud" --listen 127.0.0.1:0 --cluster demo --instances 2 --steady-after 0.5 >"$log" 2>"$log.err" &
pid=$!
trap 'kill "$pid" 2>/dev/null || true; rm -f "$log" "$log.err"' EXIT
until grep -q endpoint "$log"; do
    kill -0 "$pid" || { cat "$log.err"; exit 1; }
    sleep 0.1
done
cat "$log"
export AWS_ENDPOINT_URL AWS_DEFAULT_REGION=eu-central-1 AWS_ACCESS_KEY_ID=AKIA111122223333ROOT AWS_SECRET_ACCESS_KEY=local
export AWS_PAGER= AWS_MAX_ATTEMPTS=1 AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null
AWS_ENDPOINT_URL=$(sed -n 's/^endpoint \([^ ]*\).*/\1/p' "$log")
"$cache/bin/python" "$here/contract.py"
