# shellcheck shell=bash disable=SC2034 # what is set here is used by those who source it
# Paths, messages, locks and waiting. Sourced by the scripts of this folder and of tests/backend.

cluster_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${TLSFARM_CLUSTER_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tlsfarm-cluster}

# One cluster per machine: its network names, cgroups and addresses are fixed, so every checkout uses the same one.
state=/var/tmp/tlsfarm-cluster # what must survive nothing but a long test: etcd, images, logs, keys
run=/run/tlsfarm-cluster       # sockets and namespaces
pki=$state/pki
max_nodes=5

speaker=cluster
say() { echo "$speaker: $*" >&2; }
die() { say "$*"; exit 1; }
unusable() { say "$*"; exit 2; } # the caller or the machine must change something first

elapsed() { printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); }

wait_for() { # SECONDS WHAT CMD...
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || { say "timed out waiting for $what; logs are in $state/log"; return 1; }
    sleep 0.1
  done
}

# Daemons are started with descriptor 9 closed, or they would hold the lock for as long as they live.
lock() { # FILE WHAT: hold FILE until the script ends
  exec 9>"$1"
  flock -n 9 || { say "waiting for another process: $2"; flock 9; }
}

content_key() { sha256sum | cut -c1-16; } # of standard input

# buildah works in storage of its own that is thrown away: nothing grows, and the user's own images are left alone.
build_image() { # CONTEXT_DIR NAME:TAG OUT.tar [BUILDAH_FLAG...]: from CONTEXT_DIR/Dockerfile
  local context=$1 name=$2 out=$3 work rc=0
  shift 3
  work=$(mktemp -d)
  (
    cd "$work"
    printf '{"default":[{"type":"insecureAcceptAnything"}]}' >policy.json
    printf '[network]\nnetwork_config_dir = "%s/cni"\n' "$work" >containers.conf # or it makes /etc/cni
    storage=(env CONTAINERS_CONF="$work/containers.conf" buildah --root "$work/root" --runroot "$work/run" --storage-driver vfs)
    # --timestamp: the same input gives the same image
    "${storage[@]}" bud --isolation chroot --signature-policy policy.json --timestamp 0 "$@" -t "$name" "$context" &&
      "${storage[@]}" push --signature-policy policy.json "$name" "docker-archive:$work/image.tar:$name"
  ) >"$work/log" 2>&1 || rc=$?
  if [ "$rc" = 0 ]; then
    mkdir -p "$(dirname "$out")"
    mv "$work/image.tar" "$out.$$" && mv "$out.$$" "$out"
  else
    cat "$work/log" >&2
  fi
  rm -rf "$work"
  [ "$rc" = 0 ] || die "cannot build image $name"
}
