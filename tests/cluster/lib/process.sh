# shellcheck shell=bash disable=SC2154 # common.sh sets what is not set here
# Starting daemons and ending all that came of them. Nothing is ever found by name: whether a daemon runs is told by the
# pid file that `start` wrote, checked against start time and arguments, and what has to end by the node's cgroup.

start_time() { # PID: in clock ticks since boot; field 22, counted after the command name, which may hold spaces
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }
  cut -d' ' -f20 <<<"$stat"
}

running() { # NAME
  local pid started
  read -r pid started 2>/dev/null <"$state/$1.pid" || return 1
  [ "$(start_time "$pid")" = "$started" ] && grep -qsF -- "$state/" "/proc/$pid/cmdline"
}

in_node() { # NODE CMD...: not `ip netns exec`, which gives every command mounts of its own
  local n=$1
  shift
  nsenter --net="/run/netns/tf-node$n" --mount="$run/node$n.mnt" -- "$@"
}

start() { # NODE NAME CMD...: a daemon on a node, in a session of its own, unless it runs
  local n=$1 name=$2
  shift 2
  running "$name" && return
  (
    # a proxy of the machine's is not for addresses that exist only here
    unset HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy https_proxy all_proxy
    echo "$BASHPID" >"$(node_cgroup "$n")/daemons/cgroup.procs"
    exec nsenter --net="/run/netns/tf-node$n" --mount="$run/node$n.mnt" -- setsid "$@"
  ) >>"$state/log/$name.log" 2>&1 </dev/null 9>&- &
  echo "$! $(start_time $!)" >"$state/$name.pid"
}

# The cgroup that tells what belongs to a node: `start` puts daemons into it, shims inherit it, containers are below it.
# Only a cgroup finds them all after a crash of whatever started them.
node_cgroup() { # NODE
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then echo "/sys/fs/cgroup/tf-node$1"; else echo "/sys/fs/cgroup/pids/tf-node$1"; fi
}

make_cgroup() { # NODE: a subtree for its kubelet; on cgroup v1 in every hierarchy, named ones too
  local n=$1 c f
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    for c in cpuset cpu io memory hugetlb pids; do echo "+$c" >/sys/fs/cgroup/cgroup.subtree_control; done 2>/dev/null || true
  else
    for c in /sys/fs/cgroup/*/; do
      if [ -e "$c/cgroup.procs" ]; then mkdir -p "$c/tf-node$n"; fi
    done
    for f in cpus mems; do # a new cpuset is empty and takes no process
      if [ -e "/sys/fs/cgroup/cpuset/cpuset.$f" ]; then
        cat "/sys/fs/cgroup/cpuset/cpuset.$f" >"/sys/fs/cgroup/cpuset/tf-node$n/cpuset.$f"
      fi
    done
  fi
  mkdir -p "$(node_cgroup "$n")/daemons"
}

kill_cgroup() { # NODE: every process of the node; no need to ask first, as its data is thrown away too
  local dir pids deadline=$((SECONDS + 20))
  dir=$(node_cgroup "$1")
  [ -d "$dir" ] || return 0
  while pids=$(find "$dir" -name cgroup.procs -exec cat {} + 2>/dev/null) && [ -n "$pids" ]; do
    [ "$SECONDS" -lt "$deadline" ] || { say "processes of node$1 do not end: ${pids//$'\n'/ }"; return 1; }
    # shellcheck disable=SC2086 # a list of words
    kill -KILL $pids 2>/dev/null || true
    sleep 0.05
  done
}

remove_cgroup() { # NODE
  local c
  for c in /sys/fs/cgroup/tf-node"$1" /sys/fs/cgroup/*/tf-node"$1"; do
    if [ -d "$c" ]; then find "$c" -depth -type d -exec rmdir {} \; 2>/dev/null || true; fi
  done
}
