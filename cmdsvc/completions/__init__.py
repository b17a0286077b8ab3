"""Files that complete `ssh HOST NAME` in a shell; `cmdsvc completion` prints them."""
