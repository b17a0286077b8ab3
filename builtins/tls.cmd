#!cmd alpine openssl
#!/bin/sh
# /// cmd
# description = "Show who issued a server's certificate and until when it holds: tls HOST [PORT]"
# timeout = "30s"
# ///
[ $# -ge 1 ] || { echo "usage: tls HOST [PORT]" >&2; exit 64; }
openssl s_client -connect "$1:${2:-443}" -servername "$1" </dev/null 2>/dev/null |
  openssl x509 -noout -subject -issuer -dates
