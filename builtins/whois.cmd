#!cmd alpine
#!/bin/sh
# /// cmd
# description = "Ask who holds a domain or an address: whois NAME"
# ///
[ $# -eq 1 ] || { echo "usage: whois NAME" >&2; exit 64; }
exec whois -- "$1"
