#!cmd alpine bash curl jq
#!/bin/bash
# /// cmd
# description = "Fetch a URL and pick from its JSON: http URL FILTER"
# ///
set -o pipefail
[ $# -ge 1 ] || { echo "usage: http URL [FILTER]" >&2; exit 64; }
curl -sS --fail-with-body -m 60 -- "${1}" | jq -r "${2:-.}"
