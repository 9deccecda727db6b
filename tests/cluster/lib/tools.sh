# shellcheck shell=bash disable=SC2154 # common.sh sets what is not set here
# What the cluster is made of: Debian packages, and programs built from the pinned Go modules in tools/.
#
# A program is stored under a key of all that decides its content, so a changed pin rebuilds what it changes and
# checkouts share the rest. A set is a folder of links to the programs of one checkout: it goes on the PATH.

tools=$cluster_dir/tools

# MODULE PACKAGE NAME
programs() {
  local c
  for c in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
    echo "kubernetes k8s.io/kubernetes/cmd/$c $c"
  done
  echo "etcd go.etcd.io/etcd/server/v3 etcd"
  for c in containerd containerd-shim-runc-v2 ctr; do
    echo "containerd github.com/containerd/containerd/v2/cmd/$c $c"
  done
  echo "helm helm.sh/helm/v4/cmd/helm helm"
  echo "load github.com/tsenart/vegeta/v12 vegeta"
  echo "actionlint github.com/rhysd/actionlint/cmd/actionlint actionlint"
}

cni_dir() {
  local d
  for d in /usr/lib/cni /opt/cni/bin /usr/libexec/cni; do
    [ -x "$d/bridge" ] && [ -x "$d/host-local" ] && [ -x "$d/portmap" ] && { echo "$d"; return; }
  done
  return 1
}

have_static_libc() { [ -n "$(find /usr/lib /usr/lib64 -name libc.a -print -quit 2>/dev/null)" ]; }

missing_packages() { # Debian names of what is not there
  without_command ip:iproute2 iptables:iptables conntrack:conntrack openssl:openssl runc:runc buildah:buildah cc:gcc \
    nsenter:util-linux flock:util-linux sysctl:procps curl:curl readelf:binutils
  cni_dir >/dev/null || echo containernetworking-plugins
  have_static_libc || echo libc6-dev
}

require_go() {
  local need have
  need=$(sed -n 's/^go //p' "$tools"/*/go.mod | sort -V | tail -1)
  command -v go >/dev/null || unusable "Go $need or newer is needed to build Kubernetes: there is no 'go' on the PATH"
  have=$(go env GOVERSION) have=${have#go}
  older() { [ "$1" != "$2" ] && [ "$(printf '%s\n' "$1" "$2" | sort -V | head -1)" = "$1" ]; }
  if older "$have" 1.21 || { older "$have" "$need" && [ "$(go env GOTOOLCHAIN)" = local ]; }; then
    unusable "Go $need or newer is needed to build Kubernetes: this is Go $have"
  fi
}

kube_version() { sed -n 's/^.*k8s\.io\/kubernetes \(v[0-9.]*\).*$/\1/p' "$tools/kubernetes/go.mod" | head -1; }

ldflags() { # MODULE
  local v x
  echo -n "-s -w"
  [ "$1" = kubernetes ] || return 0
  v=$(kube_version) # without these, programs and user agents in the audit log say v0.0.0
  for x in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    echo -n " -X $x.gitVersion=$v -X $x.gitMajor=1 -X $x.gitMinor=$(cut -d. -f2 <<<"$v") -X $x.gitTreeState=clean"
  done
}

module_key() { # MODULE: with the Go version, which may differ by module when Go picks its own toolchain
  { cat "$tools/$1/go.mod" "$tools/$1/go.sum"; ldflags "$1"; (cd "$tools/$1" && go env GOVERSION GOOS GOARCH); } | content_key
}

# Sets `set_dir`, and `wanted`: lines of MODULE PACKAGE NAME FILE
plan_set() {
  local module package name mkey last=""
  wanted=""
  while read -r module package name; do
    [ "$module" = "$last" ] || { mkey=$(module_key "$module"); last=$module; }
    wanted+="$module $package $name $cache/store/$name-$(content_key <<<"$mkey $package")"$'\n'
  done < <(programs)
  set_dir=$cache/sets/$(content_key <<<"$wanted")
}

set_complete() {
  local module package name file
  while read -r module package name file; do
    [ -n "$name" ] || continue
    [ -x "$set_dir/$name" ] && [ -x "$file" ] || return 1
  done <<<"$wanted"
}

compile() { # MODULE PACKAGE NAME FILE
  local log=$cache/log/$3.log
  (cd "$tools/$1" && CGO_ENABLED=0 GOWORK=off go build -trimpath -buildvcs=false -ldflags "$(ldflags "$1")" \
    -o "$4.new" "$2") >"$log" 2>&1 || { tail -20 "$log" >&2; die "cannot build $3; the whole log is $log"; }
  mv "$4.new" "$4"
}

build() {
  require_go
  plan_set
  set_complete && return
  mkdir -p "$cache/store" "$cache/log" "$cache/sets"
  (
    lock "$cache/build.lock" "it is building the cluster's programs"
    local module package name file i=0 n missing=0 since=$SECONDS at
    n=$(grep -c . <<<"$wanted")
    while read -r module package name file; do [ -z "$name" ] || [ -x "$file" ] || missing=$((missing + 1)); done <<<"$wanted"
    [ "$missing" = 0 ] || say "building $missing of $n programs into $cache (about ten minutes for all on two cores, once)"
    mkdir -p "$set_dir"
    while read -r module package name file; do
      [ -n "$name" ] || continue
      i=$((i + 1))
      if [ ! -x "$file" ]; then
        at=$SECONDS
        say "[$i/$n] $name: building, $(elapsed $((SECONDS - since))) so far"
        compile "$module" "$package" "$name" "$file"
        say "[$i/$n] $name: built in $(elapsed $((SECONDS - at)))"
      fi
      ln -sfn "$file" "$set_dir/$name"
    done <<<"$wanted"
    touch "$set_dir"
    prune
  )
}

prune() { # programs of pins that no checkout has built with for two months
  local file
  find "$cache/sets" -mindepth 1 -maxdepth 1 -mtime +60 -exec rm -rf {} +
  for file in "$cache"/store/*; do
    [ -n "$(find "$cache/sets" -lname "$file" -print -quit)" ] || rm -f "$file"
  done
}
