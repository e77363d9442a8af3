#!/usr/bin/env bash
# What the chart does on a real API server: every values file by dry run, install, the controller's rights one by one, the
# policy on nodes, upgrade, uninstall. Needs KUBECONFIG of an empty cluster with a controller manager, as an administrator;
# no node has to run. Acts as the controller's ServiceAccount by impersonation. Exit 0 only if everything held.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
: "${KUBECONFIG:?names an empty cluster}"
chart="${CHART:-charts/tasuki}"
export PATH="$TASUKI_CACHE/kubernetes/bin:$PATH"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
kubectl() { if command -v tasuki-kubernetes >/dev/null; then tasuki-kubernetes kubectl "$@"; else command kubectl "$@"; fi; }
as() { kubectl --as system:serviceaccount:tasuki-system:tasuki "$@"; }
step() { printf '\033[1m==>\033[0m %s\n' "$*"; }
failed=0
fail() { echo "FAILED: $1"; sed 's/^/    /' "$work/out" | tail -5; failed=1; }
may() { local what="$1"; shift; "$@" >"$work/out" 2>&1 || fail "$what"; }
# Refused, with these words: another error proves nothing.
may_not() {
    local what="$1" words="$2"; shift 2
    if "$@" >"$work/out" 2>&1; then fail "$what was allowed"; elif ! grep -qE "$words" "$work/out"; then fail "$what: not refused by '$words'"; fi
}
until_true() { for _ in $(seq 120); do "$@" >/dev/null 2>&1 && return; sleep 0.5; done; fail "never true: $*"; }
crd() { kubectl create -f - <<EOF
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: { name: $1s.monitoring.coreos.com }
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: { kind: $2, plural: $1s, singular: $1 }
  versions: [{ name: v1, served: true, storage: true, schema: { openAPIV3Schema: { type: object, x-kubernetes-preserve-unknown-fields: true } } }]
EOF
}

step "Every values file, judged by the API server"
namespaces=(tasuki-agents agents security-agents)
for name in tasuki-system "${namespaces[@]}"; do kubectl create namespace "$name" >/dev/null; done
kubectl label namespace tasuki-system pod-security.kubernetes.io/enforce=restricted >/dev/null
crd servicemonitor ServiceMonitor >/dev/null; crd prometheusrule PrometheusRule >/dev/null
kubectl wait --for=condition=Established crd/servicemonitors.monitoring.coreos.com crd/prometheusrules.monitoring.coreos.com >/dev/null
for values in "$chart"/ci/*-values.yaml; do
    helm template tasuki "$chart" -n tasuki-system -f "$values" >"$work/rendered.yaml"
    may "$values, server side" kubectl apply --server-side --dry-run=server --validate=strict -f "$work/rendered.yaml"
    may "$values, client side" kubectl apply --dry-run=server --validate=strict -f "$work/rendered.yaml"
done
kubectl delete namespace "${namespaces[@]}" >/dev/null
kubectl delete crd servicemonitors.monitoring.coreos.com prometheusrules.monitoring.coreos.com >/dev/null

step "Install; Pod Security restricted takes the controller's pod"
helm install tasuki "$chart" -n tasuki-system >/dev/null
until_true bash -c "$(declare -f kubectl); kubectl -n tasuki-system get pods -o name | grep -q tasuki"

step "Observe: the controller's own objects, and nothing else"
kubectl create -f - >/dev/null <<EOF
apiVersion: v1
kind: Node
metadata: { name: held, labels: { team: shop, kubernetes.io/os: linux }, annotations: { why: "test" } }
spec: { taints: [{ key: gpu, value: "true", effect: NoSchedule }] }
EOF
kubectl -n tasuki-system create secret generic foreign --from-literal=a=b >/dev/null
owner() {
    printf 'ownerReferences: [{ apiVersion: v1, kind: ConfigMap, name: tasuki-anchor, uid: %s }]' \
        "$(kubectl -n "$1" get configmap tasuki-anchor -o 'jsonpath={.metadata.uid}')"
}
own="$(owner tasuki-system)"
cat >"$work/own.yaml" <<EOF
{ apiVersion: v1, kind: Secret, metadata: { name: tasuki-keys, namespace: tasuki-system, $own } }
---
{ apiVersion: coordination.k8s.io/v1, kind: Lease, metadata: { name: tasuki, namespace: tasuki-system, $own } }
---
{ apiVersion: v1, kind: ConfigMap, metadata: { name: tasuki-freeze, namespace: tasuki-system, $own } }
EOF
may "make keys, lease and freeze" as apply --server-side --field-manager tasuki -f "$work/own.yaml"
may "apply them again" as apply --server-side --field-manager tasuki -f "$work/own.yaml"
may_not "read another Secret" 'cannot get' as -n tasuki-system get secret foreign
may_not "list Secrets" 'cannot list' as -n tasuki-system get secrets
may_not "list ConfigMaps" 'cannot list' as -n tasuki-system get configmaps
may_not "make Secrets elsewhere" 'cannot create' as -n default create secret generic x
for right in 'list pods -A' 'watch nodes' 'list namespaces' 'create tokenreviews.authentication.k8s.io' \
    'create events.events.k8s.io -n default' 'patch events.events.k8s.io -n tasuki-system' 'watch events -n tasuki-agents' 'watch daemonsets -n tasuki-agents'; do
    # shellcheck disable=SC2086 # one word each
    may "$right" as auth can-i -q $right
done
for right in 'patch nodes' 'patch pods -A' 'delete pods -n tasuki-agents' 'create daemonsets.apps -n tasuki-agents' 'create pods -n tasuki-agents' \
    'create serviceaccounts/token -n tasuki-agents' 'list secrets -A' 'create clusterrolebindings' 'impersonate users' 'create pods/exec -A'; do
    # shellcheck disable=SC2086 # one word each
    may_not "$right" '^no' as auth can-i $right
done
if kubectl get crd runtimemonitors.tasuki.dev >/dev/null 2>&1; then
    monitor() { printf '{ apiVersion: tasuki.dev/v1alpha1, kind: RuntimeMonitor, metadata: { name: %s }, spec: { targets: { kubernetes: {} } } }' "$1"; }
    until_true kubectl get runtimemonitors
    monitor default >"$work/default.yaml"; monitor other | kubectl apply -f - >/dev/null
    may "make the monitor default" as apply --server-side --field-manager tasuki -f "$work/default.yaml"
    may_not "change another monitor" 'cannot patch' as patch runtimemonitor other --type merge -p '{"spec":{"mode":"Enforce"}}'
    may "write its status" as patch runtimemonitor other --subresource status --type merge -p '{"status":{"observedGeneration":1}}'
fi

step "Enforce: DaemonSets in one namespace, one label on nodes"
helm upgrade tasuki "$chart" -n tasuki-system --reset-then-reuse-values --set enforce=true --set "agent.image.digest=sha256:$(printf '0%.0s' {1..64})" >/dev/null
cat >"$work/agent.yaml" <<EOF
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: tasuki-agent-1, namespace: tasuki-agents, $(owner tasuki-agents) }
spec:
  selector: { matchLabels: { a: b } }
  updateStrategy: { type: OnDelete }
  template:
    metadata: { labels: { a: b } }
    spec:
      serviceAccountName: tasuki-agent
      priorityClassName: tasuki-agent
      hostPID: true
      tolerations: [{ operator: Exists }]
      containers: [{ name: tasuki-agent, image: agent, securityContext: { privileged: true } }]
EOF
until_true as auth can-i -q patch nodes
may "place agents" as apply --server-side --field-manager tasuki -f "$work/agent.yaml"
until_true bash -c "$(declare -f kubectl); kubectl -n tasuki-agents get pods -o name | grep -q tasuki-agent-1"
sed 's/namespace: tasuki-agents/namespace: default/' "$work/agent.yaml" >"$work/elsewhere.yaml"
may_not "place agents elsewhere" 'cannot (patch|create)' as apply --server-side -f "$work/elsewhere.yaml"

policy="tasuki-node-label.*denied"
patch() { as patch node held --type merge -p "$1"; }
# The policy is watched, not read: it holds a moment after it was made.
until_true bash -c "$(declare -f kubectl as patch); ! patch '{\"metadata\":{\"labels\":{\"probe\":\"x\"}}}'"
for value in '"both"' '"only"' null; do may "label $value" patch "{\"metadata\":{\"labels\":{\"tasuki.dev/agent-next\":$value}}}"; done
printf 'apiVersion: v1\nkind: Node\nmetadata: { name: held, labels: { tasuki.dev/agent-next: both } }\n' >"$work/label.yaml"
may "label by server-side apply" as apply --server-side --force-conflicts --field-manager tasuki -f "$work/label.yaml"
while read -r what change; do may_not "node: $what" "$policy" patch "$change"; done <<'EOF'
other-value {"metadata":{"labels":{"tasuki.dev/agent-next":"x"}}}
other-label {"metadata":{"labels":{"role":"x"}}}
change-label {"metadata":{"labels":{"team":"x"}}}
remove-label {"metadata":{"labels":{"team":null}}}
ours-and-other {"metadata":{"labels":{"tasuki.dev/agent-next":"only","role":"x"}}}
annotation {"metadata":{"annotations":{"x":"y"}}}
remove-annotation {"metadata":{"annotations":{"why":null}}}
finalizer {"metadata":{"finalizers":["example.com/x"]}}
owner {"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"x","uid":"x"}]}}
cordon {"spec":{"unschedulable":true}}
untaint {"spec":{"taints":null}}
provider {"spec":{"providerID":"x://y"}}
EOF
kubectl create clusterrolebinding tasuki-test-more --clusterrole cluster-admin --serviceaccount tasuki-system:tasuki >/dev/null
until_true as auth can-i -q patch nodes --subresource status
may_not "status of a node, with rights that the chart never gives" "$policy" as patch node held --subresource status --type merge -p '{"status":{"conditions":[{"type":"Ready","status":"False"}]}}'
kubectl delete clusterrolebinding tasuki-test-more >/dev/null
may "others are not held" kubectl label node held role=x

step "Applied again by another manager, nothing changes"
helm get manifest tasuki -n tasuki-system >"$work/manifest.yaml"
versions() { kubectl get -f "$work/manifest.yaml" -o 'jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}{"\n"}{end}' | grep -v '^Deployment'; }
argo() { kubectl apply --server-side --force-conflicts --field-manager argocd-controller -f "$work/manifest.yaml"; }
may "apply as Argo CD does" argo; versions >"$work/before"
may "apply it again" argo; versions >"$work/after"
may "the second time changed something" diff "$work/before" "$work/after"
may "drift" kubectl diff -f "$work/manifest.yaml"

step "Uninstall leaves CRDs and resources"
helm uninstall tasuki -n tasuki-system --wait --timeout 120s >/dev/null
until_true bash -c "$(declare -f kubectl); ! kubectl get namespace tasuki-agents"
for kind in secret/tasuki-keys configmap/tasuki-freeze lease/tasuki serviceaccount/tasuki; do
    until_true bash -c "$(declare -f kubectl); ! kubectl -n tasuki-system get $kind"
done
left="$(for kind in clusterroles clusterrolebindings priorityclasses validatingadmissionpolicies validatingadmissionpolicybindings; do kubectl get "$kind" -o name; done | grep tasuki || true)
$(kubectl get all,configmaps,secrets,roles,rolebindings,leases,networkpolicies -A -o name | grep tasuki || true)"
[ -z "${left//[[:space:]]/}" ] || { echo "$left" >"$work/out"; fail "left behind"; }
if [ -f "$work/default.yaml" ]; then may "the monitor stays" kubectl get runtimemonitor default; fi
kubectl delete node held >/dev/null
[ "$failed" = 0 ] && echo "the chart holds on $(kubectl version -o yaml 2>/dev/null | awk '/gitVersion/ { version = $2 } END { print version }')"
exit "$failed"
