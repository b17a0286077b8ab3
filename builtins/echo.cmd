#!cmd alpine
#!/bin/sh
# /// cmd
# description = "Print the arguments; without any, stdin"
# ///
[ $# -gt 0 ] || exec cat
printf '%s' "$1"
shift
for word; do printf ' %s' "$word"; done
echo
