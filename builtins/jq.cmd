#!cmd alpine jq
#!jq
# /// cmd
# description = "Filter JSON on stdin: jq FILTER < FILE"
# ///
