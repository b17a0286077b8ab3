#!cmd alpine
#!/bin/sh
# /// cmd
# description = "Print a random UUID (version 4), or several: uuid [COUNT]"
# ///
case "${1:-1}" in *[!0-9]* | '' | ?????*) echo "usage: uuid [COUNT, up to 9999]" >&2; exit 64 ;; esac
i=0
while [ "$i" -lt "${1:-1}" ]; do
  cat /proc/sys/kernel/random/uuid
  i=$((i + 1))
done
