# Sourced by the scripts that run several commands at once: set JOBS before.
jobs_of_all=()
start() { # COMMAND …: run it in the background, at most JOBS at once
  while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do sleep 1; done
  "$@" &
  jobs_of_all+=($!)
}
finish_all() { # wait for all; fails if one of them failed
  for job in "${jobs_of_all[@]}"; do wait "$job"; done
  jobs_of_all=()
}
