#!cmd alpine libqrencode-tools
#!/bin/sh
# /// cmd
# description = "Draw a QR code of the arguments or stdin, for a terminal"
# ///
[ $# -gt 0 ] || exec qrencode -t UTF8
exec qrencode -t UTF8 -- "$*"
