#!/usr/bin/env bash
# Checks of the Helm chart that need no cluster: lint, every values file rendered twice, schemas, README.
# tools/chart.sh           check
# tools/chart.sh --write   write the table of values into the chart's README
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
chart=charts/tasuki
export PATH="$TASUKI_CACHE/kubernetes/bin:$PATH"

with_table() {
    awk -f tools/chart-values.awk "$chart/values.yaml" >"$1/table"
    awk -v table="$1/table" '
        /^<!-- values:/ { print; print ""; while ((getline line < table) > 0) print line; print ""; skipping = 1; next }
        /^<!-- end of values -->/ { skipping = 0 }
        !skipping' "$chart/README.md"
}

work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
with_table "$work" >"$work/README.md"
if [ "${1:-}" = --write ]; then
    cp "$work/README.md" "$chart/README.md"
    exit 0
fi
diff -u "$chart/README.md" "$work/README.md" ||
    { echo "error: the chart's README is not of its values.yaml; run tools/chart.sh --write" >&2; exit 1; }
command -v helm >/dev/null || { echo "error: no helm; tools/kubernetes.sh builds it" >&2; exit 1; }

# What lies in the way of a render: combinations that must be refused, each with a word of its message.
digest="sha256:$(printf '0%.0s' {1..64})"
refused() {
    local word="$1"; shift
    if helm template tasuki "$chart" -n tasuki-system "$@" >"$work/refused" 2>&1; then
        echo "error: not refused: helm template $*" >&2; exit 1
    fi
    grep -q -- "$word" "$work/refused" || { echo "error: helm template $* is refused without the word '$word':" >&2; cat "$work/refused" >&2; exit 1; }
}
refused enfroce --set enfroce=true
refused repositroy --set image.repositroy=x
refused 'agent.image.digest is empty' --set enforce=true
refused 'enforce is off' --set sidecars.live=true
refused 'digest' --set image.digest=sha256:short
refused 'store.existingSecret is empty' --set replicas=2
refused 'is the release namespace' --set agent.namespace=tasuki-system
refused 'ReadWriteOnce' --set replicas=2,store.existingSecret=x,persistence.enabled=true
refused 'url' --set gateway.url=http://plain:8443

helm lint --strict --quiet "$chart"
for values in "$chart"/ci/*-values.yaml; do
    name="$(basename "$values" -values.yaml)"
    helm lint --strict --quiet "$chart" -f "$values"
    helm template tasuki "$chart" -n tasuki-system -f "$values" >"$work/$name.yaml"
    helm template tasuki "$chart" -n tasuki-system -f "$values" | cmp - "$work/$name.yaml" ||
        { echo "error: $values renders differently the second time" >&2; exit 1; }
    echo "$name: $(grep -c '^kind:' "$work/$name.yaml") objects"
done

# Rights appear with `enforce` alone.
render() { helm template tasuki "$chart" -n tasuki-system "$@"; }
if render | grep -qE 'tasuki-enforce|tasuki-handover|ValidatingAdmissionPolicy'; then
    echo "error: without enforce the chart grants rights to change the cluster" >&2; exit 1
fi
render --set "enforce=true,agent.image.digest=$digest" | grep -c 'kind: ValidatingAdmissionPolicy' | grep -qx 2 ||
    { echo "error: enforce comes without its policy" >&2; exit 1; }

if render --set "enforce=true,agent.image.digest=$digest" | grep -qE 'tasuki-sidecar|tasuki-probe'; then
    echo "error: without sidecars.live the chart grants rights to change pods" >&2; exit 1
fi

# All generated definitions are there, outlive the release unless told otherwise, and are absent where they come from elsewhere.
files=$(find "$chart/files" -path "*/crds/*.yaml" | wc -l)
[ "$(render | grep -c '^kind: CustomResourceDefinition' || true)" = "$files" ] || { echo "error: not $files CRDs in the render" >&2; exit 1; }
[ "$(render | grep -c 'helm.sh/resource-policy: keep' || true)" = "$files" ] || { echo "error: a CRD would go with the release" >&2; exit 1; }
if render --set crds.keep=false | grep -q 'helm.sh/resource-policy' || render --set crds.enabled=false | grep -q '^kind: CustomResourceDefinition'; then
    echo "error: crds.keep or crds.enabled has no effect" >&2; exit 1
fi

# Schemas of a running API server, where a caller has them: KUBECONFORM_SCHEMAS is kubeconform's -schema-location.
if [ -n "${KUBECONFORM_SCHEMAS:-}" ]; then
    for rendered in "$work"/*.yaml; do
        kubeconform -strict -summary -schema-location "$KUBECONFORM_SCHEMAS" \
            -skip ServiceMonitor,PrometheusRule,CustomResourceDefinition "$rendered"
    done
fi
