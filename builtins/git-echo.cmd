#!cmd alpine git
#!/bin/sh
# /// cmd
# description = "Look at a git push and keep nothing: git push ssh://HOST/cmd/git-echo main"
# git_receive = true
# ///
set -e
git init -q --bare repo
mkdir -p repo/hooks
cat >repo/hooks/pre-receive <<'END'
#!/bin/sh
# What it prints the client shows as "remote: ..."; a status other than 0 refuses the push.
while read -r old new ref; do
  echo "$ref is $(git log -1 --format='%h %s' "$new")"
  git ls-tree -r -l "$new" | awk '{ n++; size += $4 } END { print n + 0 " files, " size + 0 " bytes" }'
  if git grep -I -n -e '^<<<<<<< ' "$new" --; then
    echo "a merge is not finished there: refused"
    exit 1
  fi
done
END
chmod +x repo/hooks/pre-receive
exec git receive-pack repo
