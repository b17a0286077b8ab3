#!cmd alpine curl
#!/bin/sh
# /// cmd
# description = "Show who issued a server's certificate and until when it holds: tls HOST [PORT]"
# timeout = "1m"
# ///
[ $# -ge 1 ] || { echo "usage: tls HOST [PORT]" >&2; exit 64; }
curl -sSvkI -m 30 -o /dev/null -- "https://$1:${2:-443}/" 2>&1 |
  sed -n 's/^\*  *\(subject\|issuer\|start date\|expire date\): /\1: /p; s/^curl: /&/p'
