#!cmd alpine
#!/bin/sh
# /// cmd
# description = "Print the digest of stdin: digest [md5|sha1|sha256|sha512]"
# ///
case "${1:-sha256}" in
  md5 | sha1 | sha256 | sha512) "${1:-sha256}sum" | cut -d' ' -f1 ;;
  *) echo "usage: digest [md5|sha1|sha256|sha512]" >&2; exit 64 ;;
esac
