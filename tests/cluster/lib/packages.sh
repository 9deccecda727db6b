# shellcheck shell=bash
# Debian packages that are not there yet. Needs common.sh.

without_command() { # COMMAND:PACKAGE...: the packages whose command is not on the PATH
  local pair
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || echo "${pair#*:}"
  done | sort -u
}

install_packages() { # CMD...: a command that prints the Debian names of what is missing
  local missing apt policy=/usr/sbin/policy-rc.d
  missing=$("$@" | tr '\n' ' ')
  [ -n "$missing" ] || return 0
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    unusable "missing on this machine (Debian package names): ${missing% }"
  fi
  say "installing ${missing% }"
  apt=(env DEBIAN_FRONTEND=noninteractive apt-get -y -qq -o DPkg::Lock::Timeout=120)
  (
    # Nobody asked for the services that some packages start.
    if [ ! -e "$policy" ]; then
      trap 'rm -f "$policy"' EXIT
      printf '#!/bin/sh\nexit 101\n' >"$policy"
      chmod +x "$policy"
    fi
    # The lists of a fresh machine may be empty or old: fetch them only when it does not work without.
    # shellcheck disable=SC2086 # a list of words
    "${apt[@]}" install --no-install-recommends $missing >/dev/null 2>&1 || {
      "${apt[@]}" update >/dev/null 2>&1 || true
      "${apt[@]}" install --no-install-recommends $missing >&2
    }
  ) || unusable "apt-get could not install: ${missing% }"
  missing=$("$@" | tr '\n' ' ')
  [ -z "$missing" ] || unusable "still missing after apt-get install: ${missing% }"
}
