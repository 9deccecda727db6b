# shellcheck shell=bash disable=SC2154 # common.sh sets what is not set here
# A node: a network namespace on a private bridge, a mount namespace, and in them containerd, kubelet and kube-proxy.

node_ip() { echo "10.77.0.$((10 + $1))"; } # 10.77.0.1 is this machine
pod_cidr() { echo "10.244.$1.0/24"; }
node_socket() { echo "$run/node$1/containerd.sock"; }
node_ctr() { # NODE ARGS...
  local n=$1
  shift
  "$state/bin/ctr" -a "$(node_socket "$n")" -n k8s.io "$@"
}
in_bridge() { nsenter --net=/run/netns/tf-net -- "$@"; }

# The bridge has a namespace of its own, so that a firewall of this machine (Docker's drops forwarded packets, bridged
# ones too) has no say between nodes, and this machine gets one interface and no firewall rule.
make_bridge() {
  [ ! -e /run/netns/tf-net ] || return 0
  local net
  for net in 10.77.0.0/24 10.244.0.0/16 10.96.0.0/16; do
    [ -z "$(ip -4 route show root "$net")" ] ||
      unusable "this machine already has a route inside $net, which the test cluster uses: $(ip -4 route show root "$net" | head -1)"
  done
  mountpoint -q /run/netns || echo /run/netns >>"$state/made" # ip makes it, and leaves it
  ip netns add tf-net
  in_bridge ip link add br0 type bridge
  in_bridge ip link set br0 up
  ip link add tf-host type veth peer name host netns tf-net
  in_bridge ip link set host master br0 up
  ip addr add 10.77.0.1/24 dev tf-host
  ip link set tf-host up
}

make_network() { # NODE
  local n=$1
  [ ! -e "/run/netns/tf-node$n" ] || return 0
  ip netns add "tf-node$n"
  in_bridge ip link add "tf$n" type veth peer name eth0
  in_bridge ip link set eth0 netns "tf-node$n"
  in_bridge ip link set "tf$n" master br0 up
  nsenter --net="/run/netns/tf-node$n" -- sh -ec "
    ip link set lo up
    ip addr add $(node_ip "$n")/24 dev eth0
    ip link set eth0 up
    ip route add default via 10.77.0.1
    sysctl -qw net.ipv4.ip_forward=1"
}

make_routes() { # NODES: every node to every other's pods, and this machine to pods and Services
  local n m
  for n in $(seq "$1"); do
    for m in $(seq "$1"); do
      [ "$n" = "$m" ] || in_node "$n" ip route replace "$(pod_cidr "$m")" via "$(node_ip "$m")"
    done
    ip route replace "$(pod_cidr "$n")" via "$(node_ip "$n")"
  done
  ip route replace 10.96.0.0/16 via "$(node_ip 1)"
}

# Places that kubelet, containerd and CNI use whatever they are told: each node sees an empty one of its own.
fixed_paths=(/var/lib/kubelet /var/lib/cni /var/log/containers /run/containerd)

# A node's mounts live in a namespace that ends with its last process: nothing to unmount, even after a kill -9.
make_mounts() { # NODE
  local n=$1 p
  [ ! -e "$run/node$n.mnt" ] || return 0
  for p in "${fixed_paths[@]}"; do
    [ -d "$p" ] || { mkdir -p "$p" && echo "$p" >>"$state/made"; }
  done
  # a namespace can only be pinned below a mount that does not propagate
  mountpoint -q "$run" || { mount --bind "$run" "$run" && mount --make-private "$run"; }
  touch "$run/node$n.mnt"
  unshare --mount="$run/node$n.mnt" --propagation private -- sh -ec "
    mount --make-rshared /
    for p in ${fixed_paths[*]}; do mount -t tmpfs -o mode=0755 tlsfarm \$p; done"
}

# The kubelet changes these for the whole machine.
kubelet_sysctls=(vm.overcommit_memory vm.panic_on_oom kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys kernel.keys.root_maxbytes)
save_sysctls() { [ -f "$state/sysctl" ] || sysctl -e "${kubelet_sysctls[@]}" >"$state/sysctl" 2>/dev/null || true; }
restore_sysctls() { [ ! -f "$state/sysctl" ] || sysctl -qe -p "$state/sysctl" >/dev/null 2>&1 || true; }

pause_image() { # prints the path of the archive
  local tar dir
  tar=$cache/images/pause-$(cat "$cluster_dir"/pause/* <(cc -dumpmachine) | content_key).tar
  if [ ! -f "$tar" ]; then
    dir=$(mktemp -d)
    cc -O2 -static -o "$dir/pause" "$cluster_dir/pause/pause.c"
    cp "$cluster_dir/pause/Dockerfile" "$dir"
    build_image "$dir" localhost/pause:1 "$tar"
    rm -rf "$dir"
  fi
  echo "$tar"
}

write_node_config() { # NODE
  local n=$1 dir=$state/node$1
  mkdir -p "$dir/cni" "$run/node$n"
  cat >"$dir/cni/10-bridge.conflist" <<EOF
{"cniVersion":"0.4.0","name":"tf","plugins":[
 {"type":"bridge","bridge":"cni0","isGateway":true,"hairpinMode":true,
  "ipam":{"type":"host-local","dataDir":"$dir/ipam","ranges":[[{"subnet":"$(pod_cidr "$n")"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
EOF
  # restrict_oom_score_adj: lowering a score needs CAP_SYS_RESOURCE, which a container or small VM may lack
  cat >"$dir/containerd.toml" <<EOF
version = 3
root = "$dir/containerd"
state = "$run/node$n/containerd"
[grpc]
address = "$(node_socket "$n")"
[plugins."io.containerd.internal.v1.opt"]
path = "$dir/opt"
[plugins."io.containerd.nri.v1.nri"]
disable = true
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "localhost/pause:1"
[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["$(cni_dir)"]
conf_dir = "$dir/cni"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
BinaryName = "$(command -v runc)"
SystemdCgroup = false
EOF
  echo "nameserver 10.96.0.10" >"$dir/resolv.conf"
  # failCgroupV1: the machine may still be on cgroup v1
  cat >"$dir/kubelet.yaml" <<EOF
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: /tf-node$n
containerRuntimeEndpoint: unix://$(node_socket "$n")
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
clusterDNS: ["10.96.0.10"]
clusterDomain: cluster.local
resolvConf: $dir/resolv.conf
podLogsDir: $dir/pod-logs
localStorageCapacityIsolation: false
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: "100Mi", nodefs.available: "1%", imagefs.available: "1%"}
EOF
  cat >"$dir/kube-proxy.yaml" <<EOF
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: $pki/kube-proxy.kubeconfig}
clusterCIDR: 10.244.0.0/16
hostnameOverride: node$n
conntrack: {maxPerCore: 0, min: 0}
EOF
}

start_node() { # NODE PAUSE_TAR
  local n=$1 dir=$state/node$1
  running "containerd$n" && running "kubelet$n" && running "kube-proxy$n" && return
  write_node_config "$n"
  PATH=$state/bin:$PATH start "$n" "containerd$n" "$state/bin/containerd" --config "$dir/containerd.toml" # finds its shim on the PATH
  wait_for 20 "containerd on node$n" node_ctr "$n" version
  import_image "$n" "$2"
  start "$n" "kubelet$n" "$state/bin/kubelet" --config "$dir/kubelet.yaml" --kubeconfig "$pki/kubelet$n.kubeconfig" \
    --hostname-override="node$n" --node-ip="$(node_ip "$n")" --root-dir="$dir/kubelet"
  start "$n" "kube-proxy$n" "$state/bin/kube-proxy" --config "$dir/kube-proxy.yaml"
}

import_image() { # NODE TAR
  local out
  out=$(node_ctr "$1" images import "$2" 2>&1) || { say "cannot import $2 into node$1: $out"; return 1; }
}
