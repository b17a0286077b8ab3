#!cmd alpine curl
#!/bin/sh
# /// cmd
# description = "Show the response headers of a URL, redirects followed: headers URL"
# ///
[ $# -eq 1 ] || { echo "usage: headers URL" >&2; exit 64; }
exec curl -sSIL -m 60 -- "$1"
