# Sourced by tests/run and .ci/run: named stages, each with its time.

stage_names=()
stage_times=()
stage_failures=()

# attempt NAME COMMAND...: runs a stage; its failure is remembered and told by finish_stages.
attempt() {
  local name=$1 started=$SECONDS status=0
  shift
  note "== $name"
  # A subshell with errexit of its own: `if` would switch it off.
  set +e
  (set -e; "$@")
  status=$?
  set -e
  stage_names+=("$name")
  stage_times+=($((SECONDS - started)))
  if [ $status -ne 0 ]; then
    stage_failures+=("$name")
    note "== $name FAILED ($((SECONDS - started)) s)"
  else
    note "== $name: $((SECONDS - started)) s"
  fi
  return 0
}

# stage NAME COMMAND...: the same, for a stage that the rest needs: its failure ends the run.
stage() {
  local failures=${#stage_failures[@]}
  attempt "$@"
  if [ ${#stage_failures[@]} -gt "$failures" ]; then finish_stages; fi
}

# Prints every stage's time; exits 1 if one failed.
finish_stages() {
  local i total=0
  {
    echo
    for i in "${!stage_names[@]}"; do
      printf '%6d s  %s\n' "${stage_times[$i]}" "${stage_names[$i]}"
      total=$((total + stage_times[i]))
    done
    printf '%6d s  in all\n' "$total"
  } >&2
  if [ ${#stage_failures[@]} -gt 0 ]; then
    echo "FAILED: $(IFS=,; echo "${stage_failures[*]}")" >&2
    exit 1
  fi
  exit 0
}
