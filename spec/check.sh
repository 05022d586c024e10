#!/bin/sh
# Checks the model exhaustively, then that each broken variant is caught. Needs spin and a C compiler.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
run() {
    spin -a -DBROKEN="$1" "$here/commit.pml" >spin.log 2>&1 || { cat spin.log; exit 2; }
    ${CC:-cc} -O2 -w -DSAFETY -DCOLLAPSE -DMEMLIM=4096 -o pan pan.c
    ./pan -m300000 -n >pan.log 2>&1 || true
    # A search that was killed or did not begin is neither: it must not pass for a violation found.
    if grep -q 'assertion violated' pan.log; then echo violation
    elif grep -q 'errors: 0' pan.log; then echo clean
    else cat pan.log >&2; echo "no result"; fi
}
result=$(run 0)
[ "$result" = clean ] || { echo "the model itself: $result"; cat pan.log; exit 1; }
grep -q 'Search not completed' pan.log && { echo "not exhaustive"; exit 1; }
echo "model: no violation, $(awk '/states, stored/ {print $1}' pan.log) states"
for broken in ${BROKEN_LIST:-1 2 3 4 5 6 7 8}; do
    result=$(run "$broken")
    echo "broken $broken: $result"
    [ "$result" = violation ] || exit 1
done
