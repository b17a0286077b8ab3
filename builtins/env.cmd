#!cmd alpine
#!/usr/bin/env
# /// cmd
# description = "Show the environment that a script gets"
# ///
