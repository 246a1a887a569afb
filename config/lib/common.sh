# Sourced by config/quickstart, tests/run and their helpers: where things are kept, and how
# progress and failures are told.

: "${MAGNETAR_CACHE:=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/magnetar}"
export MAGNETAR_CACHE
mkdir -p "$MAGNETAR_CACHE"

# ccache then finds what another checkout of the same sources has compiled.
CCACHE_BASEDIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
export CCACHE_BASEDIR CCACHE_NOHASHDIR=1

# note TEXT...: one line of progress, on stderr so that output stays for results.
note() { echo "[$(date +%H:%M:%S)] $*" >&2; }

# die TEXT [HINT]: what failed, and what to do about it.
die() {
  echo "error: $1" >&2
  [ $# -lt 2 ] || echo "       $2" >&2
  exit 1
}

need_root() { [ "$(id -u)" = 0 ] || die "$1 must run as root" "run it with sudo"; }

# version_at_least HAVE WANT: compares as Debian does, a leading v ignored.
version_at_least() { dpkg --compare-versions "${1#v}" ge "${2#v}"; }

# logged LOG COMMAND...: runs it with its output in LOG; on failure shows the end of it.
logged() {
  local log=$1
  shift
  mkdir -p "$(dirname "$log")"
  if ! "$@" >"$log" 2>&1 </dev/null; then
    echo "--- the end of $log" >&2
    tail -n 40 "$log" >&2
    return 1
  fi
}
